"""The transparency log and its witnesses, from settings."""

import ssl
from dataclasses import dataclass

from control_plane.keys.signer import OrderSigner
from control_plane.log.keys import CustodyLogKeys
from control_plane.log.service import LogService
from control_plane.log.store import PostgresLogStore
from control_plane.settings import ControlSettings
from control_plane.wiring.base import Base
from control_plane.witnesses.asking import NoWitnesses
from control_plane.witnesses.domain import Witness, WitnessPolicy
from control_plane.witnesses.metrics import WitnessMetrics
from control_plane.witnesses.ports import WitnessClient
from control_plane.witnesses.service import WitnessService
from control_plane.witnesses.store import PostgresWitnessStore
from shared.checkpoints import log_origin, parse_verifier_key
from shared.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class LogParts:
    """The log, and who cosigns it."""

    log: LogService
    witnesses: WitnessService
    client: WitnessClient
    """It keeps connections of its own."""


def build_log(base: Base, signer: OrderSigner) -> LogParts:
    """Return the log; nothing runs yet.

    Raises:
        SettingsError: The file of certificates cannot be read.
    """
    origin, store = log_origin(base.found.installation, base.found.epoch), PostgresLogStore()
    client = _client(base.settings)
    witnesses = WitnessService(
        database=base.database,
        store=PostgresWitnessStore(),
        logs=store,
        client=client,
        policy=_policy(base.settings),
        origin=origin,
        audit=base.audit,
        observer=WitnessMetrics(base.registry),
        clock=base.clock,
        random=base.random,
    )
    log = LogService(
        # One log for all: a call that publishes integrates what waits of everybody.
        database=base.database.of_every_tenant(),
        store=store,
        origin=origin,
        keys=CustodyLogKeys(custody=signer.custody, keysets=base.keysets, sessions=signer, clock=base.clock),
        observer=base.metrics,
        random=base.random,
        witnesses=witnesses,
    )
    return LogParts(log=log, witnesses=witnesses, client=client)


def _policy(settings: ControlSettings) -> WitnessPolicy:
    return WitnessPolicy(
        witnesses=tuple(
            Witness(url=one.url, key=parse_verifier_key(one.key)) for one in settings.log_witnesses
        ),
        quorum=settings.log_witness_quorum,
        every=settings.log_witness_every,
        timeout=settings.log_witness_timeout,
    )


def _client(settings: ControlSettings) -> WitnessClient:
    if not settings.log_witnesses:
        return NoWitnesses()
    # Whoever asks no witness loads no HTTP library.
    from control_plane.witnesses.http_client import HttpWitnessClient  # noqa: PLC0415

    try:
        trusted = ssl.create_default_context(cafile=settings.log_witness_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"log_witness_ca_file cannot be read: {error}") from error
    return HttpWitnessClient(timeout=settings.log_witness_timeout, trusted=trusted)

"""Policy, the gate in front of rare changes, and what manages bundles, from settings."""

import ssl
from dataclasses import dataclass

from control_plane.installation.domain import DEFAULT_TENANT
from control_plane.log.ports import Inclusion
from control_plane.policy.active import ActivePolicy
from control_plane.policy.builtin import builtin_policy, builtin_record
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.gate import PolicyGate
from control_plane.policy.library import PolicyLibrary
from control_plane.policy.ports import PolicyEngines
from control_plane.policy.review import PolicyReview
from control_plane.policy.service import PolicyService
from control_plane.policy.servicer import PolicyServicer
from control_plane.settings import ControlSettings
from control_plane.wiring.base import Base
from control_plane.wiring.stores import Stores
from shared.errors import SettingsError


def build_engines(settings: ControlSettings) -> PolicyEngines:
    """Return what loads bundles: OPA servers where some are named, else the engine in this process.

    Raises:
        SettingsError: The file of the token or of the certificates cannot be read.
    """
    if not settings.opa_urls:
        return EmbeddedPolicyEngines()
    # Whoever asks no OPA server loads no HTTP library.
    from control_plane.policy.opa_server import OpaPolicyEngines, TokenFile  # noqa: PLC0415

    try:
        return OpaPolicyEngines(
            settings.opa_urls,
            timeout=settings.opa_timeout,
            token=TokenFile(settings.opa_token_file) if settings.opa_token_file else None,
            ca_file=settings.opa_ca_file,
        )
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the files for the OPA servers cannot be read: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyParts:
    """What is in force, and what serves those who manage it."""

    active: ActivePolicy
    servicer: PolicyServicer


async def open_policies(base: Base, stores: Stores, log: Inclusion) -> PolicyParts:
    """Load the policy in force and build what manages it.

    Raises:
        DatabaseUnavailableError: It cannot be learnt.
        SettingsError: As `build_engines`.
    """
    engines = build_engines(base.settings)
    builtin = builtin_record(
        builtin_policy(base.settings.allowed_http, base.settings.allowed_llm), now=base.clock.now()
    )
    active = ActivePolicy(
        database=base.database,
        store=stores.bundles,
        keys=base.keysets,
        engines=engines,
        builtin=builtin,
        observer=base.metrics,
        clock=base.clock,
    )
    await active.confirmed()
    library = PolicyLibrary(
        database=base.database,
        store=stores.bundles,
        keys=base.keysets,
        engines=engines,
        in_force=active,
        builtin=builtin,
        home=DEFAULT_TENANT,
        audit=base.audit,
        log=log,
        clock=base.clock,
        random=base.random,
    )
    review = PolicyReview(
        database=base.database,
        store=stores.bundles,
        decisions=stores.decision_reader,
        engines=engines,
        library=library,
        clock=base.clock,
    )
    return PolicyParts(active=active, servicer=PolicyServicer(library, review))


def build_policy(base: Base, active: ActivePolicy) -> PolicyService:
    return PolicyService(in_force=active, observer=base.metrics, clock=base.clock, random=base.random)


def build_gate(base: Base, stores: Stores, policy: PolicyService) -> PolicyGate:
    return PolicyGate(
        policy=policy,
        decisions=stores.decisions,
        audit=base.audit,
        database=base.database,
        clock=base.clock,
        random=base.random,
    )

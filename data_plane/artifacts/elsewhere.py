"""Takes what a compiling node made of a module, if a compiler key vouches for it. Compiles nothing.

Whatever is wrong with it, the node goes on as if there were none: it compiles the module itself.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from data_plane.artifacts.memory import Received
from data_plane.artifacts.pieces import HeldPiece, HeldPieces, PieceLostError
from data_plane.artifacts.ports import CompiledSource, ModuleObserver
from data_plane.artifacts.reception import receive
from data_plane.orders.domain import attempt_of
from data_plane.orders.keyset import NodeKeyset
from data_plane.sandbox.domain import EngineInfo
from shared.clock import Clock
from shared.compiled import Target, VerifiedStatement, verify_compiled
from shared.digests import Digest
from shared.dsse import decode_envelope
from shared.errors import (
    AgentFactoryError,
    ArtifactInvalidError,
    KeyRevokedError,
    NotFoundError,
    PackageAlteredError,
    UnavailableError,
    UnknownKeyError,
)
from shared.ids import KeyId
from shared.keyset import KeyPurpose
from shared.logs import get_logger
from shared.orders import Order
from shared.packages import VerifiedManifest, verify_manifest

logger = get_logger(__name__)

MAX_RECEPTIONS: Final = 2
"""At once, of at most 128 MiB each; others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedModule:
    """A verified template and the machine code of its module; the descriptor in it is the caller's."""

    template: VerifiedManifest
    envelope: bytes
    artifact: Received


def target_of(engine: EngineInfo) -> Target:
    """Return what an engine of this machine is called in statements."""
    return Target(
        profile=engine.profile,
        engine_name=engine.name,
        engine_version=engine.version,
        config_digest=engine.config_digest,
        cpu_features=engine.cpu_features,
    )


class CompiledElsewhere:
    """What other machines compiled, under the keyset that is in force now."""

    def __init__(
        self,
        *,
        source: CompiledSource,
        keyset: NodeKeyset,
        observer: ModuleObserver,
        pieces: HeldPieces,
        clock: Clock,
    ) -> None:
        self._source = source
        self._keyset = keyset
        self._observer = observer
        self._pieces = pieces
        self._clock = clock
        self._receptions = asyncio.Semaphore(MAX_RECEPTIONS)

    def trusts(self, key_id: KeyId) -> bool:
        """Return whether the word of a compiler key counts now."""
        return key_id in self._keyset.keys_for(KeyPurpose.COMPILER, self._clock.now())

    async def obtain(self, order: Order, engine: EngineInfo) -> ReceivedModule | None:
        """Return the module of an order as it was compiled for this engine; None: there is none that counts.

        1. The envelope is that of the order's template and module, by a publisher of the keyset.
        2. A compiler key that is in the keyset, valid and not revoked signed the statement.
        3. It is of this installation, of exactly this module and of exactly this engine, profile and CPU.
        4. The pieces are those that it names, and unpack to as many bytes as it says. Those that this node
           has on its disk need not come; if one of them is not there as it was, all are asked for.
        """
        if not self._keyset.keys_for(KeyPurpose.COMPILER, self._clock.now()):
            return None
        try:
            async with self._receptions:
                received = await self._obtain(order, engine)
        except NotFoundError:
            return None
        except AgentFactoryError as error:
            self._refused(order, error)
            return None
        except OSError as error:
            self._refused(order, UnavailableError(f"no memory for it: {error.strerror}"))
            return None
        pieces, reused = len(received.artifact.piece_digests), len(received.artifact.reused)
        self._observer.pieces_received(fetched=pieces - reused, reused=reused)
        return received

    async def _obtain(self, order: Order, engine: EngineInfo) -> ReceivedModule:
        try:
            return await self._fetch(order, engine, self._pieces.held())
        except PieceLostError as error:
            logger.warning("a piece of an artifact is fetched again", detail=str(error))
            self._pieces.forget(error.path)
        return await self._fetch(order, engine, {})

    async def _fetch(
        self, order: Order, engine: EngineInfo, held: Mapping[Digest, HeldPiece]
    ) -> ReceivedModule:
        async with self._source.fetch_compiled(
            attempt_of(order), order.template_digest, target_of(engine), held.keys()
        ) as offer:
            template = self._check_template(order, offer.envelope)
            verified = self._check_statement(order, engine, offer.statement)
            artifact = await receive(offer, verified, held)
        return ReceivedModule(template=template, envelope=offer.envelope, artifact=artifact)

    def _check_template(self, order: Order, envelope: bytes) -> VerifiedManifest:
        trusted = self._keyset.keys_for(KeyPurpose.PUBLISHER, self._clock.now())
        template = verify_manifest(envelope, publisher_keys=trusted)
        if template.digest != order.template_digest:
            raise PackageAlteredError(f"check 1: template is {template.digest}, not the order's")
        if template.manifest.module.digest != order.module_digest:
            raise PackageAlteredError("check 1: the template's module is not the order's")
        return template

    def _check_statement(self, order: Order, engine: EngineInfo, envelope: bytes) -> VerifiedStatement:
        now = self._clock.now()
        try:
            verified = verify_compiled(
                envelope,
                keys=self._keyset.keys_for(KeyPurpose.COMPILER, now),
                installation=self._keyset.installation,
            )
        except UnknownKeyError as error:
            signers = {signature.key_id for signature in decode_envelope(envelope).signatures}
            if signers & self._keyset.revoked(KeyPurpose.COMPILER, now):
                raise KeyRevokedError("check 2: the statement is by a revoked compiler key") from error
            raise
        stated = verified.statement
        if stated.module_digest != order.module_digest:
            raise ArtifactInvalidError(f"check 3: the statement is of module {stated.module_digest}")
        if stated.target != target_of(engine):
            raise ArtifactInvalidError(f"check 3: the statement is for {stated.target}")
        return verified

    def _refused(self, order: Order, error: AgentFactoryError) -> None:
        self._observer.compiled_refused(error.reason)
        logger.warning(
            "an artifact that was compiled elsewhere is not taken",
            module_digest=order.module_digest,
            reason=error.reason,
            detail=str(error),
        )

"""Takes what a compiling node made of a module, if a compiler key vouches for it. Compiles nothing.

Whatever is wrong with it, the node goes on as if there were none: it compiles the module itself.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from data_plane.artifacts.memory import Received, freeze
from data_plane.artifacts.ports import CompiledOffer, CompiledSource, ModuleObserver
from data_plane.files import write_all
from data_plane.orders.domain import attempt_of
from data_plane.orders.keyset import NodeKeyset
from data_plane.sandbox.domain import EngineInfo
from shared.clock import Clock
from shared.compiled import (
    PIECE_BYTES,
    CompiledStatement,
    Target,
    VerifiedStatement,
    unpack_piece,
    verify_compiled,
)
from shared.digests import Digest, same_digest, sha256_digest
from shared.dsse import decode_envelope
from shared.errors import (
    AgentFactoryError,
    ArtifactInvalidError,
    KeyRevokedError,
    MalformedError,
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

UNPACKED_AT_ONCE: Final = 2


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
        self, *, source: CompiledSource, keyset: NodeKeyset, observer: ModuleObserver, clock: Clock
    ) -> None:
        self._source = source
        self._keyset = keyset
        self._observer = observer
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
        4. The pieces are those that it names, and unpack to as many bytes as it says.
        """
        if not self._keyset.keys_for(KeyPurpose.COMPILER, self._clock.now()):
            return None
        try:
            async with (
                self._receptions,
                self._source.fetch_compiled(
                    attempt_of(order), order.template_digest, target_of(engine)
                ) as offer,
            ):
                template = self._check_template(order, offer.envelope)
                verified = self._check_statement(order, engine, offer.statement)
                artifact = await _receive(offer, verified)
        except NotFoundError:
            return None
        except AgentFactoryError as error:
            self._refused(order, error)
            return None
        except OSError as error:
            self._refused(order, UnavailableError(f"no memory for it: {error.strerror}"))
            return None
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


class _Memory:
    """A memory file that is closed when nobody holds it any more: a thread may write to it still."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def __del__(self) -> None:
        os.close(self.descriptor)


async def _receive(offer: CompiledOffer, verified: VerifiedStatement) -> Received:
    """Check 4."""
    stated, memory = verified.statement, _Memory()
    await _fill(memory, offer.pieces, stated)
    if os.fstat(memory.descriptor).st_size != stated.artifact_bytes:
        raise MalformedError(f"check 4: the pieces are not the {stated.artifact_bytes} bytes stated")
    freeze(memory.descriptor)
    return Received(
        descriptor=os.dup(memory.descriptor),
        digest=stated.artifact_digest,
        size_bytes=stated.artifact_bytes,
        vouched_by=verified.key_id,
    )


async def _fill(memory: _Memory, pieces: AsyncIterator[bytes], stated: CompiledStatement) -> None:
    """Verify each piece before it is unpacked, some at once."""
    expected, number = stated.piece_digests, 0
    under_way: deque[asyncio.Task[None]] = deque()
    try:
        async for packed in pieces:
            if number == len(expected):
                raise MalformedError(f"check 4: more came than the {number} pieces stated")
            if len(under_way) == UNPACKED_AT_ONCE:
                await under_way.popleft()
            work = asyncio.to_thread(_take_piece, memory, number, packed, expected[number])
            under_way.append(asyncio.create_task(work))
            number += 1
        while under_way:
            await under_way.popleft()
    finally:
        # Threads go on to the end of their piece, in memory that is theirs until then.
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    if number != len(expected):
        raise MalformedError(f"check 4: {number} pieces came, {len(expected)} are stated")


def _take_piece(memory: _Memory, number: int, packed: bytes, expected: Digest) -> None:
    if not same_digest(sha256_digest(packed), expected):
        raise PackageAlteredError(f"check 4: piece {number} is not the one that the statement names")
    write_all(memory.descriptor, unpack_piece(packed), offset=number * PIECE_BYTES)

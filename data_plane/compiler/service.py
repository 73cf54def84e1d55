"""Compiles what the control plane lists, and states by signature what became of it.

The module is compiled only when a publisher of the keyset signed its template, and in a worker that is jailed
as on every node. The statement is made here, outside of that worker, over bytes that nobody can change any
more.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Final

from data_plane.artifacts.elsewhere import target_of
from data_plane.artifacts.memory import chunks_of, digest_of, freeze, memory_file
from data_plane.compiler.metrics import CompilerMetrics
from data_plane.compiler.ports import Compilation, CompileDesk
from data_plane.orders.keyset import NodeKeyset
from data_plane.sandbox.domain import EngineInfo
from data_plane.sandbox.ports import Compiler
from shared.clock import Clock
from shared.compiled import CompiledStatement, pack_piece, sign_compiled
from shared.digests import Digest, sha256_digest
from shared.errors import (
    AgentFactoryError,
    KeyUnavailableError,
    PackageAlteredError,
    ResourceExhaustedError,
    UnavailableError,
)
from shared.keyset import KeyPurpose
from shared.logs import get_logger
from shared.manifest import Profile
from shared.packages import verify_manifest, verify_package
from shared.signatures import PublicKey, Signer

logger = get_logger(__name__)

MAX_FAILED_MODULES: Final = 4096
FAILURE_IS_REMEMBERED: Final = timedelta(minutes=10)
"""A module that took the compiler down is not compiled again at each look."""
MAX_PAGES: Final = 64
"""Looked at for one that has not failed lately."""


class CompileService:
    """Looks for work again and again; one module after the other."""

    def __init__(
        self,
        *,
        desk: CompileDesk,
        compiler: Compiler,
        engines: Mapping[Profile, EngineInfo],
        keyset: NodeKeyset,
        signer: Signer,
        public: PublicKey,
        metrics: CompilerMetrics,
        clock: Clock,
    ) -> None:
        """Sign with `signer`, whose key is `public`."""
        self._desk = desk
        self._compiler = compiler
        self._engines = engines
        self._keyset = keyset
        self._signer = signer
        self._public = public
        self._metrics = metrics
        self._clock = clock
        self._failed: OrderedDict[tuple[Digest, Profile], float] = OrderedDict()

    async def look(self) -> bool:
        """Compile the newest module that wants it; returns whether there was one.

        Raises:
            UnknownKeyError, KeyRevokedError: The keyset does not list the compiler key, or not any more.
            AgentFactoryError: The control plane does not answer, or refuses.
        """
        targets, token = [target_of(engine) for engine in self._engines.values()], ""
        for _ in range(MAX_PAGES):
            page = await self._desk.list(targets, token)
            self._keyset.offer(page.keyset)
            self._keyset.require(KeyPurpose.COMPILER, self._public.key_id, self._clock.now())
            for one in page.compilations:
                if one.profile in self._engines and not self._failed_lately(one):
                    await self._try(one)
                    return True
            token = page.next_page_token
            if not token:
                break
        return False

    async def _try(self, one: Compilation) -> None:
        try:
            await self._compile(one)
        except (UnavailableError, KeyUnavailableError):
            raise
        except OSError as error:
            # No memory or descriptor for it, or its worker keeps what it made: the others are compiled still.
            self._failed_for(one, ResourceExhaustedError(f"not compiled on this machine: {error.strerror}"))
        except AgentFactoryError as error:
            self._failed_for(one, error)

    async def _compile(self, one: Compilation) -> None:
        module = await self._verified_module(one)
        source = memory_file("module", module)
        try:
            artifact = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                with self._metrics.seconds.time():
                    await self._compiler.compile(module_fd=source, artifact_fd=artifact, profile=one.profile)
                # Its worker is gone; if anybody could write there still, this fails.
                freeze(artifact)
                await self._hand_in(one, artifact)
            finally:
                os.close(artifact)
        finally:
            os.close(source)

    async def _verified_module(self, one: Compilation) -> bytes:
        """Return the module's bytes if a publisher of the keyset signed exactly this template."""
        fetched = await self._desk.fetch(one.template_digest)
        trusted = self._keyset.keys_for(KeyPurpose.PUBLISHER, self._clock.now())
        signed = verify_manifest(fetched.envelope, publisher_keys=trusted)
        if signed.digest != one.template_digest or signed.manifest.module.digest != one.module_digest:
            raise PackageAlteredError(f"template {signed.digest} came, or another module than was listed")
        files = {signed.manifest.module.digest: fetched.module}
        return verify_package(fetched.envelope, files, publisher_keys=trusted).module

    async def _hand_in(self, one: Compilation, artifact: int) -> None:
        digest, size_bytes = await asyncio.to_thread(digest_of, artifact)
        pieces = await asyncio.to_thread(_packed, artifact)
        statement = CompiledStatement(
            installation=self._keyset.installation,
            module_digest=one.module_digest,
            target=target_of(self._engines[one.profile]),
            artifact_digest=digest,
            artifact_bytes=size_bytes,
            piece_digests=tuple(map(sha256_digest, pieces)),
            compiled_at=self._clock.now(),
        )
        envelope = await sign_compiled(statement, self._signer)
        stored = await self._desk.hand_in(envelope, _sent(pieces))
        self._metrics.compiled.inc()
        logger.info(
            "a module was compiled" if stored else "a module was compiled by somebody else meanwhile",
            module_digest=one.module_digest,
            profile=one.profile,
            artifact_bytes=size_bytes,
        )

    def _failed_lately(self, one: Compilation) -> bool:
        failed_at = self._failed.get((one.module_digest, one.profile))
        return (
            failed_at is not None
            and self._clock.monotonic() - failed_at < FAILURE_IS_REMEMBERED.total_seconds()
        )

    def _failed_for(self, one: Compilation, error: AgentFactoryError) -> None:
        self._remember(one)
        self._metrics.failures.labels(error.reason).inc()
        logger.warning(
            "a module was not compiled",
            module_digest=one.module_digest,
            profile=one.profile,
            reason=error.reason,
            detail=str(error),
        )

    def _remember(self, one: Compilation) -> None:
        self._failed[one.module_digest, one.profile] = self._clock.monotonic()
        self._failed.move_to_end((one.module_digest, one.profile))
        while len(self._failed) > MAX_FAILED_MODULES:
            self._failed.popitem(last=False)


def _packed(artifact: int) -> list[bytes]:
    return [pack_piece(piece) for piece in chunks_of(artifact)]


async def _sent(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece

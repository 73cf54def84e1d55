"""Lists what there is to compile, takes what was compiled, and finds it for nodes. Believes nobody's code.

What is checked here keeps out mistakes and waste early; whether machine code is loaded is for each node to
say, by its own keyset.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from control_plane.audit.domain import NewAuditEntry, node_actor
from control_plane.compiled.domain import Compiled, NewCompiled, Wanted
from control_plane.compiled.ports import CompiledStore, Keysets, Modules, PullGate
from control_plane.paging import MAX_PAGE_SIZE, Page, decode_token, encode_token
from control_plane.transfers import TransferSlots, paced
from shared.clock import Clock, Random
from shared.compiled import PIECE_BYTES, Target, unpack_piece, verify_compiled
from shared.digests import Digest, digest_from_raw, same_digest
from shared.errors import InvalidInputError, NotFoundError
from shared.ids import (
    AUDIT_ENTRY,
    COMPILED_ARTIFACT,
    TEMPLATE_VERSION,
    InstallationId,
    KeyId,
    NodeId,
    TenantId,
    new_id,
    parse_id,
)
from shared.keyset import KeyPurpose
from shared.logs import get_logger

logger = get_logger(__name__)

CHUNK_BYTES: Final = 1024 * 1024
MAX_UPLOADS: Final = 2
"""At once, of one piece in memory each."""
DEFAULT_LIST: Final = 50


class CompiledService:
    """The use cases of compiled artifacts."""

    def __init__(
        self,
        *,
        store: CompiledStore,
        modules: Modules,
        keysets: Keysets,
        gate: PullGate,
        installation: InstallationId,
        bound_bytes: int,
        clock: Clock,
        random: Random,
    ) -> None:
        self._store = store
        self._modules = modules
        self._keysets = keysets
        self._gate = gate
        self._installation = installation
        self._bound_bytes = bound_bytes
        self._clock = clock
        self._random = random
        self._uploads = TransferSlots(MAX_UPLOADS)

    async def wanted(
        self, targets: Sequence[Target], *, page_size: int, page_token: str
    ) -> tuple[Page[Wanted], bytes]:
        """Return what nobody compiled yet for these engines, newest first, and the newest keyset.

        Raises:
            InvalidInputError: The page token is not one of ours, or two targets are of one profile.
        """
        if len({target.profile for target in targets}) != len(targets):
            raise InvalidInputError("two targets are of one profile")
        size = min(page_size or DEFAULT_LIST, MAX_PAGE_SIZE)
        before = parse_id(TEMPLATE_VERSION, decode_token(page_token)) if page_token else None
        found = await self._store.wanted(targets, await self._keys(), before=before, limit=size + 1)
        _, keyset = await self._keysets.newest()
        more = encode_token(found[size - 1].template_version_id) if len(found) > size else ""
        return Page(items=tuple(found[:size]), next_page_token=more), keyset

    async def module(self, node_id: NodeId, template_digest: Digest) -> AsyncIterator[bytes]:
        """Yield the envelope of an active version, then its module in chunks of at most 1 MiB.

        Raises:
            NotFoundError: There is no such version, or nothing may start from it any more.
            PolicyDeniedError: Policy keeps the module from this node.
        """
        found = await self._store.source(template_digest)
        if found is None:
            raise NotFoundError(f"there is no active template {template_digest}")
        await self._gate.pull(
            identity=node_actor(node_id),
            tenant_id=found.tenant_id,
            node_id=node_id,
            module_digest=found.module_digest,
        )
        yield found.envelope
        offset = 0
        while chunk := await self._modules.module(
            found.module_digest, offset_bytes=offset, max_bytes=CHUNK_BYTES
        ):
            yield chunk
            offset += len(chunk)

    async def keep(
        self, node_id: NodeId, tenant_id: TenantId, envelope: bytes, pieces: AsyncIterator[bytes]
    ) -> bool:
        """Keep what a module was compiled to; False when it was there already.

        1. A compiler key of the keyset in force signed the statement, and it is of this installation.
        2. Its module is one of an active template version, and there is room.
        3. The pieces are exactly as many bytes as it says, and of the digest that it says.

        Raises:
            VerificationError: Check 1; or check 3, a piece does not decompress within its bound.
            NotFoundError, ResourceExhaustedError: Check 2; or too many uploads are under way.
            InvalidInputError: Check 3.
            DeadlineExceededError: The node was silent for too long.
        """
        keys = (await self._keysets.current()).keys_for(KeyPurpose.COMPILER, self._clock.now())
        verified = verify_compiled(envelope, keys=keys, installation=self._installation)
        artifact = NewCompiled(
            compiled_artifact_id=new_id(COMPILED_ARTIFACT, self._clock, self._random),
            statement=verified.statement,
            envelope=envelope,
            key_id=verified.key_id,
            node_id=node_id,
        )
        async with self._uploads.hold(node_id):
            if await self.find(verified.statement.module_digest, verified.statement.target) is not None:
                return False
            await self._store.begin(artifact, bound_bytes=self._bound_bytes)
            try:
                await self._take(artifact, paced(pieces))
                stored = await self._store.complete(
                    artifact, await self._keys(), audit=self._entry(artifact, tenant_id)
                )
            except BaseException:
                await asyncio.shield(self._store.abandon(artifact.compiled_artifact_id))
                raise
        logger.info(
            "a compiled artifact was kept" if stored else "a compiled artifact was there already",
            module_digest=verified.statement.module_digest,
            target=str(verified.statement.target),
            node_id=node_id,
        )
        return stored

    async def find(self, module_digest: Digest, target: Target) -> Compiled | None:
        """Return what a module was compiled to for an engine, by a key that counts now."""
        return await self._store.find(module_digest, target, await self._keys())

    async def pieces(self, compiled: Compiled) -> AsyncIterator[bytes]:
        """Yield an artifact's pieces, compressed; each is read while the one before travels.

        Raises:
            NotFoundError: It was dropped meanwhile.
        """
        following = asyncio.ensure_future(self._store.piece(compiled.compiled_artifact_id, 0))
        try:
            for number in range(1, compiled.pieces + 1):
                content = await following
                if content is None:
                    raise NotFoundError("the compiled artifact was dropped meanwhile")
                if number < compiled.pieces:
                    following = asyncio.ensure_future(
                        self._store.piece(compiled.compiled_artifact_id, number)
                    )
                yield content
        finally:
            following.cancel()

    async def _take(self, artifact: NewCompiled, pieces: AsyncIterator[bytes]) -> None:
        size_bytes = artifact.statement.artifact_bytes
        state, seen, number = hashlib.sha256(), 0, 0
        async for packed in pieces:
            piece = await asyncio.to_thread(unpack_piece, packed)
            if len(piece) != min(PIECE_BYTES, size_bytes - seen):
                raise InvalidInputError(
                    f"check 3: piece {number} has {len(piece)} bytes, of {size_bytes} {seen} came before it"
                )
            state.update(piece)
            await self._store.add_piece(artifact.compiled_artifact_id, number, packed)
            seen, number = seen + len(piece), number + 1
        if seen != size_bytes:
            raise InvalidInputError(f"check 3: {seen} bytes came, the statement says {size_bytes}")
        if not same_digest(digest_from_raw(state.digest()), artifact.statement.artifact_digest):
            raise InvalidInputError("check 3: the bytes are not those that the statement names")

    async def _keys(self) -> frozenset[KeyId]:
        keyset = await self._keysets.current()
        return frozenset(keyset.keys_for(KeyPurpose.COMPILER, self._clock.now()))

    def _entry(self, artifact: NewCompiled, tenant_id: TenantId) -> NewAuditEntry:
        made = artifact.statement
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=tenant_id,
            actor=node_actor(artifact.node_id),
            action="artifact.compiled",
            subject=made.module_digest,
            details={
                "artifact_digest": made.artifact_digest,
                "artifact_bytes": str(made.artifact_bytes),
                "target": str(made.target)[:256],
                "config_digest": made.target.config_digest,
                "compiler_key_id": artifact.key_id,
            },
        )

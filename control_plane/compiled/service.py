"""Lists what there is to compile, takes what was compiled, and finds it for nodes. Believes nobody's code.

What is checked here keeps out mistakes and waste early; whether machine code is loaded is for each node to
say, by its own keyset.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from typing import Final

from control_plane.audit.domain import NewAuditEntry, node_actor
from control_plane.compiled.domain import Compiled, NewCompiled, Wanted
from control_plane.compiled.ports import CompiledStore, Keysets, Modules, PullGate
from control_plane.paging import MAX_PAGE_SIZE, Page, decode_token, encode_token
from control_plane.transfers import TransferSlots, paced
from shared.clock import Clock, Random
from shared.compiled import Target, most_packed, verify_compiled
from shared.digests import Digest, same_digest, sha256_digest
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
MAX_UPLOADS: Final = 4
"""At once, of one piece in memory each; each node hands in one after the other."""
DEFAULT_LIST: Final = 50
READ_PIECES: Final = 8
"""Read from the store at once; so many are held twice for each node that fetches."""


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
        self._uploads = TransferSlots(MAX_UPLOADS, per_identity=1)

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
        3. The pieces are exactly those that it names, and not larger than the bytes that they are of: those
           are what the bound counts. They are not unpacked here.

        Raises:
            VerificationError: Check 1.
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
            await self._store.begin(artifact, keys, bound_bytes=self._bound_bytes)
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

    async def held(self, compiled: Compiled, digests: Collection[Digest]) -> tuple[int, ...]:
        """Return the numbers of those pieces that have one of these digests, packed; ascending.

        Raises:
            VerificationError: The key that vouches for it stopped counting meanwhile.
        """
        if not digests:
            return ()
        keys = (await self._keysets.current()).keys_for(KeyPurpose.COMPILER, self._clock.now())
        stated = verify_compiled(compiled.envelope, keys=keys, installation=self._installation).statement
        return tuple(number for number, digest in enumerate(stated.piece_digests) if digest in digests)

    async def pieces(
        self, compiled: Compiled, *, without: Collection[int] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Yield an artifact's pieces, packed, but for some; others are read while those before travel.

        Raises:
            NotFoundError: It was dropped meanwhile.
        """
        numbers = sorted(set(range(compiled.pieces)).difference(without))
        following = asyncio.ensure_future(self._read(compiled, numbers[:READ_PIECES]))
        try:
            for end in range(READ_PIECES, len(numbers) + READ_PIECES, READ_PIECES):
                found = await following
                following = asyncio.ensure_future(self._read(compiled, numbers[end : end + READ_PIECES]))
                for piece in found:
                    yield piece
        finally:
            following.cancel()

    async def _read(self, compiled: Compiled, numbers: Sequence[int]) -> Sequence[bytes]:
        if not numbers:
            return ()
        found = await self._store.read(compiled.compiled_artifact_id, numbers)
        if len(found) != len(numbers):
            raise NotFoundError("the compiled artifact was dropped meanwhile")
        return found

    async def _take(self, artifact: NewCompiled, pieces: AsyncIterator[bytes]) -> None:
        expected, number = artifact.statement.piece_digests, 0
        async for packed in pieces:
            if number == len(expected) or not same_digest(sha256_digest(packed), expected[number]):
                raise InvalidInputError(f"check 3: piece {number} is none that the statement names")
            if len(packed) > most_packed(artifact.statement.artifact_bytes, number):
                raise InvalidInputError(f"check 3: piece {number} is larger than the bytes that it is of")
            await self._store.add_piece(artifact.compiled_artifact_id, number, packed)
            number += 1
        if number != len(expected):
            raise InvalidInputError(f"check 3: {number} pieces came, the statement names {len(expected)}")

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

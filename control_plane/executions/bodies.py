"""Use cases of callers that move bodies above 64 KiB: upload an input, download what a run left."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from control_plane.executions.domain import MAX_BODY_BYTES, BodyKind, StoredBody, UploadQuota
from control_plane.executions.ports import ExecutionStore
from control_plane.policy.domain import Subject
from control_plane.transfers import TransferSlots, paced
from shared.clock import Clock, Random
from shared.digests import SALT_BYTES, Digest, commit_body_hash, digest_to_raw, sha256_digest
from shared.errors import InvalidInputError
from shared.ids import BODY, BodyId, ExecutionId, TenantId, new_id

DOWNLOAD_CHUNK_BYTES: Final = 256 * 1024
MAX_UPLOADS: Final = 8
"""At the same time in this replica; each holds up to 16 MiB."""
MAX_UNUSED_BODIES: Final = 256
"""Uploads of one caller that no request has used yet."""
MAX_UNUSED_BYTES: Final = 256 * 1024 * 1024
"""Of those."""


class BodyService:
    """Moves bodies in pieces; a whole one is held only while it is uploaded."""

    def __init__(
        self, *, store: ExecutionStore, clock: Clock, random: Random, slots: TransferSlots | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._random = random
        self._uploads = slots or TransferSlots(MAX_UPLOADS)

    async def upload(
        self,
        subject: Subject,
        *,
        digest: Digest,
        size_bytes: int,
        chunks: AsyncIterator[bytes],
    ) -> BodyId:
        """Store an input for a later request; unused it is removed after 24 hours.

        Raises:
            InvalidInputError: It is larger than 16 MiB, or size or digest are not those of the chunks.
            ResourceExhaustedError: Too many uploads are under way, or the caller has too much stored unused.
            DeadlineExceededError: The caller was silent for too long.
        """
        if size_bytes > MAX_BODY_BYTES:
            raise InvalidInputError(f"the body has {size_bytes} bytes, at most {MAX_BODY_BYTES} are possible")
        async with self._uploads.hold(subject.identity):
            content = await _collect(paced(chunks), size_bytes)
            if sha256_digest(content) != digest:
                raise InvalidInputError("the body has another digest than its header says")
            salt = self._random.token_bytes(SALT_BYTES)
            body = StoredBody(
                body_id=new_id(BODY, self._clock, self._random),
                salt=salt,
                commitment=commit_body_hash(digest_to_raw(digest), salt),
                digest=digest,
                size_bytes=len(content),
                content=content,
            )
            quota = UploadQuota(
                owner=subject.identity, max_bodies=MAX_UNUSED_BODIES, max_bytes=MAX_UNUSED_BYTES
            )
            await self._store.add_body(subject.tenant_id, body, quota=quota)
        return body.body_id

    async def download(
        self, tenant_id: TenantId, execution_id: ExecutionId, kind: BodyKind
    ) -> AsyncGenerator[bytes]:
        """Yield a body of an execution in pieces.

        Raises:
            NotFoundError: There is no such execution, or it has no such body.
        """
        body = await self._store.body_of(tenant_id, execution_id, kind)
        for offset in range(0, body.size_bytes, DOWNLOAD_CHUNK_BYTES):
            yield await self._store.read_body(
                tenant_id, body.body_id, offset_bytes=offset, max_bytes=DOWNLOAD_CHUNK_BYTES
            )


async def _collect(chunks: AsyncIterator[bytes], size_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in chunks:
        if len(content) + len(chunk) > size_bytes:
            raise InvalidInputError(f"the body is longer than the {size_bytes} bytes that its header says")
        content += chunk
    if len(content) != size_bytes:
        raise InvalidInputError(f"the body has {len(content)} bytes, its header says {size_bytes}")
    return bytes(content)

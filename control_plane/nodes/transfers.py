"""What nodes pull and push beside their session: artifacts, inputs, outputs. Each needs the lease."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from control_plane.audit.domain import node_actor
from control_plane.compiled.domain import Compiled
from control_plane.executions.domain import MAX_BODY_BYTES, AttemptRef, LiveAttempt, StoredBody, UploadQuota
from control_plane.executions.ports import ExecutionStore, LeaseStore
from control_plane.nodes.ports import AttemptOwners, CompiledContents, NodeGate, TemplateContents
from control_plane.transfers import TransferSlots, paced
from shared.clock import Clock, Random
from shared.compiled import Target
from shared.digests import Digest, commit_body_hash, digest_from_raw, same_digest
from shared.errors import InvalidInputError, NotFoundError, PermissionDeniedError
from shared.ids import BODY, NodeId, new_id

CHUNK_BYTES: Final = 1024 * 1024
MAX_UPLOADS: Final = 8
"""Outputs in memory at once, of at most 16 MiB each."""
MAX_DOWNLOADS: Final = 32
"""Compiled artifacts on their way at once, of up to 16 pieces of 1 MiB in memory each; a node takes two."""
DOWNLOAD_WAIT: Final = timedelta(seconds=5)
"""For a slot: a node that waits longer compiles the module itself."""
MAX_BODIES_OF_ATTEMPT: Final = 3
"""An output, a log and a recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHeader:
    """What a node says about an output before its bytes."""

    attempt: AttemptRef
    commitment: Digest
    salt: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledDownload:
    """What a node is sent of a module's machine code. Whoever began with the pieces closes them."""

    envelope: bytes
    """Of the template."""
    statement: bytes
    left_out: tuple[int, ...]
    """Numbers of the pieces that the node has."""
    pieces: AsyncGenerator[bytes, None]
    """The others, compressed.

    Raises NotFoundError: it was dropped meanwhile; ResourceExhaustedError: too many are under way, of this
    node or altogether."""


class NodeTransfers:
    """Streams of their own, so that large bytes never stand in the way of orders."""

    def __init__(
        self,
        *,
        leases: LeaseStore,
        executions: ExecutionStore,
        templates: TemplateContents,
        owners: AttemptOwners,
        compiled: CompiledContents,
        clock: Clock,
        random: Random,
        gate: NodeGate,
        uploads: TransferSlots | None = None,
    ) -> None:
        self._leases = leases
        self._executions = executions
        self._templates = templates
        self._owners = owners
        self._compiled = compiled
        self._clock = clock
        self._random = random
        self._gate = gate
        self._uploads = uploads or TransferSlots(MAX_UPLOADS)
        self._downloads = TransferSlots(MAX_DOWNLOADS, wait=DOWNLOAD_WAIT)

    async def artifact(
        self, node_id: NodeId, attempt: AttemptRef, template_digest: str
    ) -> AsyncIterator[bytes]:
        """Yield the template's envelope, then its module in chunks of at most 1 MiB.

        Raises:
            PermissionDeniedError: The node holds no live lease of this attempt, or it is about another one.
            PolicyDeniedError: Policy keeps the module from this node.
            TemplateRevokedError: The template was revoked.
        """
        live = await self._live(node_id, attempt, template_digest)
        await self._may_pull(node_id, live)
        yield await self._templates.envelope(live.tenant_id, live.template_digest)
        offset = 0
        while chunk := await self._templates.module(
            live.module_digest, offset_bytes=offset, max_bytes=CHUNK_BYTES
        ):
            yield chunk
            offset += len(chunk)

    async def compiled(
        self,
        node_id: NodeId,
        attempt: AttemptRef,
        template_digest: str,
        target: Target,
        held: Collection[Digest] = (),
    ) -> CompiledDownload:
        """Return what a compiling node made of the template's module, without pieces that the node has.

        Raises:
            PermissionDeniedError, PolicyDeniedError, TemplateRevokedError: As `artifact`.
            NotFoundError: There is none for this engine, by a key that counts now.
            VerificationError: That key stopped counting just now.
        """
        live = await self._live(node_id, attempt, template_digest)
        found = await self._compiled.find(live.module_digest, target)
        if found is None:
            raise NotFoundError(f"module {live.module_digest} is not compiled for {target}")
        await self._may_pull(node_id, live)
        left_out = await self._compiled.held(found, held)
        return CompiledDownload(
            envelope=await self._templates.envelope(live.tenant_id, live.template_digest),
            statement=found.envelope,
            left_out=left_out,
            pieces=self._pieces(node_id, found, left_out),
        )

    async def _pieces(
        self, node_id: NodeId, found: Compiled, left_out: Collection[int]
    ) -> AsyncGenerator[bytes, None]:
        async with (
            self._downloads.hold(node_id),
            aclosing(self._compiled.pieces(found, without=left_out)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def input(self, node_id: NodeId, attempt: AttemptRef) -> AsyncIterator[bytes]:
        """Yield the input of the attempt's execution in chunks of at most 1 MiB.

        Raises:
            PermissionDeniedError: The node holds no live lease of this attempt.
            NotFoundError: The input was erased.
        """
        live = await self._leases.live_attempt(node_id, attempt)
        offset = 0
        while offset < live.input_bytes:
            chunk = await self._executions.read_body(
                live.tenant_id, live.input_body_id, offset_bytes=offset, max_bytes=CHUNK_BYTES
            )
            if not chunk:
                return
            yield chunk
            offset += len(chunk)

    async def store_output(self, node_id: NodeId, header: OutputHeader, chunks: AsyncIterator[bytes]) -> None:
        """Keep an output that a receipt will name.

        1. The attempt was given to this node; a late output is kept as well, as evidence.
        2. Its size is within the limits of the order, or of a recording, and exactly as many bytes come.
        3. The bytes are what the salted commitment says.
        4. The attempt has at most an output, a log and a recording waiting for their receipt, within its
           limits.

        A repeat changes nothing.

        Raises:
            PermissionDeniedError: Check 1.
            InvalidInputError: Check 2 or 3.
            ResourceExhaustedError: Check 4, or too many uploads are under way.
            DeadlineExceededError: The node was silent for too long.
        """
        attempt = header.attempt
        owner = await self._owners.owner_of_attempt(node_id, attempt.execution_id, attempt.fencing_token)
        tenant_id = owner.tenant_id
        most = min(max(owner.output_bytes, owner.log_bytes, owner.recording_bytes), MAX_BODY_BYTES)
        if not 0 <= header.size_bytes <= most:
            raise InvalidInputError(f"check 2: output of {header.size_bytes} bytes, at most {most}")
        quota = UploadQuota(
            owner=f"attempt {attempt.fencing_token} of {attempt.execution_id}",
            max_bodies=MAX_BODIES_OF_ATTEMPT,
            max_bytes=owner.output_bytes + owner.log_bytes + owner.recording_bytes,
        )
        async with self._uploads.hold(node_id):
            content = await _collect(paced(chunks), header.size_bytes)
            sha256 = hashlib.sha256(content).digest()
            if not same_digest(commit_body_hash(sha256, header.salt), header.commitment):
                raise InvalidInputError("check 3: the output is not what its commitment says")
            if await self._executions.find_uploaded_body(tenant_id, header.commitment) is not None:
                return
            await self._executions.add_body(
                tenant_id,
                StoredBody(
                    body_id=new_id(BODY, self._clock, self._random),
                    salt=header.salt,
                    commitment=header.commitment,
                    digest=digest_from_raw(sha256),
                    size_bytes=header.size_bytes,
                    content=content,
                ),
                quota=quota,
            )

    async def _live(self, node_id: NodeId, attempt: AttemptRef, template_digest: str) -> LiveAttempt:
        live = await self._leases.live_attempt(node_id, attempt)
        if live.template_digest != template_digest:
            raise PermissionDeniedError(
                f"attempt {attempt.fencing_token} of {attempt.execution_id} is not about template"
                f" {template_digest[:71]}",
                hint="fetch the template that the order names",
            )
        return live

    async def _may_pull(self, node_id: NodeId, live: LiveAttempt) -> None:
        await self._gate.pull(
            identity=node_actor(node_id),
            tenant_id=live.tenant_id,
            node_id=node_id,
            module_digest=live.module_digest,
        )


async def _collect(chunks: AsyncIterator[bytes], size_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in chunks:
        if len(content) + len(chunk) > size_bytes:
            raise InvalidInputError(f"check 2: more bytes came than the {size_bytes} that were said")
        content += chunk
    if len(content) != size_bytes:
        raise InvalidInputError(f"check 2: {len(content)} bytes came, {size_bytes} were said")
    return bytes(content)

"""What the use cases of compiled artifacts need from the outside."""

from collections.abc import Collection, Sequence
from typing import Protocol

from control_plane.audit.domain import NewAuditEntry
from control_plane.compiled.domain import Compiled, NewCompiled, Source, Wanted
from shared.compiled import Target
from shared.digests import Digest
from shared.ids import CompiledArtifactId, KeyId, NodeId, TemplateVersionId, TenantId
from shared.keyset import Keyset


class CompiledStore(Protocol):
    """Keeps artifacts in pieces. Each method is one transaction: none stays open while bytes travel."""

    async def wanted(
        self,
        targets: Sequence[Target],
        keys: Collection[KeyId],
        *,
        before: TemplateVersionId | None,
        limit: int,
    ) -> Sequence[Wanted]:
        """Return modules of active template versions without an artifact by one of the keys, newest first."""

    async def source(self, template_digest: Digest) -> Source | None:
        """Return an active version, of whatever tenant."""

    async def find(self, module_digest: Digest, target: Target, keys: Collection[KeyId]) -> Compiled | None:
        """Return the whole artifact of a module for an engine, if one of the keys vouches for it."""

    async def read(self, compiled_artifact_id: CompiledArtifactId, numbers: Sequence[int]) -> Sequence[bytes]:
        """Return the pieces of these numbers, in ascending order; none when it is gone."""

    async def begin(self, artifact: NewCompiled, keys: Collection[KeyId], *, bound_bytes: int) -> None:
        """Add an artifact that is not whole yet.

        Drops what no active version needs, what none of the keys vouches for and old uploads first.

        Raises:
            NotFoundError: No active template version has this module.
            ResourceExhaustedError: All artifacts together would pass the bound.
        """

    async def add_piece(self, compiled_artifact_id: CompiledArtifactId, number: int, content: bytes) -> None:
        """Add one piece, compressed.

        Raises:
            NotFoundError: The upload is gone: it took too long.
        """

    async def complete(self, artifact: NewCompiled, keys: Collection[KeyId], *, audit: NewAuditEntry) -> bool:
        """Make it whole, unless there is one by one of the keys already; one by another key gives way."""

    async def abandon(self, compiled_artifact_id: CompiledArtifactId) -> None:
        """Drop an upload that did not become whole."""


class Modules(Protocol):
    """The modules of templates. Implemented by control_plane/templates."""

    async def module(self, module_digest: Digest, *, offset_bytes: int, max_bytes: int) -> bytes:
        """Return a piece of the module's exact bytes; empty behind its end.

        Raises:
            NotFoundError: There is no such module.
        """


class PullGate(Protocol):
    """Asks policy whether a node may have a module. Implemented by control_plane/policy."""

    async def pull(
        self, *, identity: str, tenant_id: TenantId, node_id: NodeId, module_digest: Digest
    ) -> None:
        """Let it pass.

        Raises:
            PolicyDeniedError: It may not.
        """


class Keysets(Protocol):
    """The keyset in force. Implemented by control_plane/keys."""

    async def current(self) -> Keyset:
        """Return it, verified."""

    async def newest(self) -> tuple[int, bytes]:
        """Return its version and its envelope, as it is relayed."""

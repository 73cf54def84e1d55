"""What the use cases of templates need from the outside."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.executions.domain import EndReason, HaltScope
from control_plane.templates.domain import TemplateRef, TemplateState, TemplateVersion
from shared.digests import Digest
from shared.ids import KeyId, TemplateId, TemplateVersionId, TenantId
from shared.signatures import PublicKey


class TemplateStore(Protocol):
    """Keeps template versions and modules."""

    async def add(
        self, tx: Transaction, template_id: TemplateId, version: TemplateVersion, module: bytes
    ) -> TemplateVersion | None:
        """Store a version; None when one of this name and version, or of this digest, is there already."""

    async def find(self, tx: Transaction, tenant_id: TenantId, ref: TemplateRef) -> TemplateVersion | None:
        """Return the version that is named."""

    async def list(
        self, tx: Transaction, tenant_id: TenantId, *, name: str, before: TemplateVersionId | None, limit: int
    ) -> Sequence[TemplateVersion]:
        """Return up to `limit` versions, newest first, without envelopes; an empty name means all."""

    async def set_state(self, tx: Transaction, version: TemplateVersion, state: TemplateState) -> None:
        """Write the state."""

    async def lock(self, tx: Transaction, tenant_id: TenantId, digest: Digest) -> TemplateVersion | None:
        """Return a version, whose state nobody changes before the transaction ends."""

    async def children(
        self, tx: Transaction, tenant_id: TenantId, digest: Digest
    ) -> Sequence[TemplateVersion]:
        """Return all that extend a version, directly or not, without envelopes, and lock them as writers do.

        The order is that of publishing, so a parent always comes before its children.
        """

    async def read_module(
        self, tx: Transaction, module_digest: Digest, *, offset_bytes: int, max_bytes: int
    ) -> bytes | None:
        """Return a piece of a module's exact bytes, empty behind its end; None: there is no such module."""


class PublisherKeys(Protocol):
    """Who may sign templates now."""

    async def publishers(self, at: datetime) -> Mapping[KeyId, PublicKey]:
        """Return the trusted publishers.

        Raises:
            DatabaseUnavailableError: The keyset cannot be read now.
        """


class ModuleCheck(Protocol):
    """Whether bytes are a module that the engine takes. CPU-bound: runs in a thread."""

    def __call__(self, module: bytes) -> None:
        """Return if the module is an agent's.

        Raises:
            ModuleInvalidError: It is not.
        """


class RunningExecutions(Protocol):
    """What runs of a template; implemented beside dispatch."""

    async def halt(self, scope: HaltScope, reason: EndReason, *, actor: str) -> int:
        """End what the reason does not spare of a version (rule 7); returns how many nodes were told.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """

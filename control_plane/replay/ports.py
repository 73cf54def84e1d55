"""What handing out an execution's ingredients needs from the outside."""

from typing import Protocol

from control_plane.executions.domain import BodyKind, StoredBody
from control_plane.replay.domain import Ingredients
from shared.digests import Digest
from shared.ids import BodyId, ExecutionId, TenantId


class IngredientStore(Protocol):
    """Knows what an execution was made of."""

    async def find(self, tenant_id: TenantId, execution_id: ExecutionId) -> Ingredients:
        """Return it.

        Raises:
            NotFoundError: The tenant has no such execution.
        """


class Bodies(Protocol):
    """The bodies of executions. Implemented by the store of executions."""

    async def body_of(self, tenant_id: TenantId, execution_id: ExecutionId, kind: BodyKind) -> StoredBody:
        """See `ExecutionStore.body_of`."""

    async def read_body(
        self, tenant_id: TenantId, body_id: BodyId, *, offset_bytes: int, max_bytes: int
    ) -> bytes:
        """See `ExecutionStore.read_body`."""


class Modules(Protocol):
    """The modules of templates. Implemented by the catalog of templates."""

    async def module(self, module_digest: Digest, *, offset_bytes: int, max_bytes: int) -> bytes:
        """See `TemplateContents.module`."""

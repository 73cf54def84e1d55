"""What erasing needs from the outside."""

from collections.abc import Sequence
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.erasure.domain import Erased
from shared.ids import ExecutionId, TenantId


class ErasureStore(Protocol):
    """Removes bodies. Every method runs in the caller's transaction."""

    async def find(self, tx: Transaction, tenant_id: TenantId, execution_id: ExecutionId) -> bool:
        """Whether the execution has ended; locks it.

        Raises:
            NotFoundError: The tenant has no such execution.
        """

    async def of_caller(
        self, tx: Transaction, tenant_id: TenantId, caller: str, *, limit: int
    ) -> Sequence[ExecutionId]:
        """Return, and lock, ended executions of an identity that are not erased and that nobody locks.

        One whose input an execution reads that has not ended is left out.
        """

    async def erase(
        self, tx: Transaction, tenant_id: TenantId, execution_ids: Sequence[ExecutionId]
    ) -> Sequence[Erased]:
        """Remove what these executions read and wrote; returns those that were not erased before.

        Raises:
            WrongStateError: One reads the same input as an execution that has not ended.
        """

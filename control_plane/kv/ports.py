"""What others need of the values that agents keep."""

from collections.abc import Sequence
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.kv.domain import KvAnswer, KvRead
from shared.ids import AgentId, TenantId


class KvReader(Protocol):
    """Answers what running guests ask for."""

    async def read(self, reads: Sequence[KvRead]) -> Sequence[KvAnswer]:
        """Return the committed values, in order; a read changes nothing.

        A node reads for attempts whose live lease it holds, by Postgres' time (rule 6), and whose execution
        may use kv.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """


class KvRemover(Protocol):
    """Takes values away with their agent."""

    async def remove_all(self, tx: Transaction, tenant_id: TenantId, agent_id: AgentId) -> int:
        """Remove everything that an agent keeps; returns how many keys there were."""

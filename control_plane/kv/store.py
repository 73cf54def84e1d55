"""Postgres behind `KvReader` and `KvRemover`."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update

from control_plane.database.ports import Transaction
from control_plane.database.tables import agents, kv_entries
from control_plane.database.unit_of_work import DriverRecord, PostgresDatabase, connection_of
from control_plane.executions.encoding import capabilities_of_bytes
from control_plane.kv import sql
from control_plane.kv.domain import KvAnswer, KvDenial, KvRead
from shared.ids import AgentId, TenantId


class PostgresKvStore:
    """Implements both. What accepted results write: settlement.py."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._reading = database.held()

    async def close(self) -> None:
        """Give the connection up."""
        await self._reading.close()

    async def read(self, reads: Sequence[KvRead]) -> Sequence[KvAnswer]:
        """See `KvReader.read`."""
        async with self._reading.use() as connection:
            rows = await connection.fetch(
                sql.READ,
                [one.node_id for one in reads],
                [one.execution_id for one in reads],
                [one.attempt_number for one in reads],
                [one.fencing_token for one in reads],
                [one.key for one in reads],
            )
        return [_answer(row) for row in rows]

    async def remove_all(self, tx: Transaction, tenant_id: TenantId, agent_id: AgentId) -> int:
        """See `KvRemover.remove_all`."""
        connection = connection_of(tx)
        # The agent's row is locked by this: whoever settles writes of the agent waits, or is waited for.
        await connection.execute(
            update(agents).where(agents.c.agent_id == agent_id).values(kv_keys=0, kv_bytes=0)
        )
        mine = (kv_entries.c.tenant_id == tenant_id, kv_entries.c.agent_id == agent_id)
        count = await connection.scalar(select(func.count()).select_from(kv_entries).where(*mine))
        await connection.execute(delete(kv_entries).where(*mine))
        return int(count or 0)


def _answer(row: DriverRecord) -> KvAnswer:
    if not row["held"]:
        return KvAnswer(denial=KvDenial.LEASE_NOT_HELD)
    if not capabilities_of_bytes(row["capabilities"]).kv:
        return KvAnswer(denial=KvDenial.NOT_GRANTED)
    return KvAnswer(value=row["value"])

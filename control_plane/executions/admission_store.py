"""Counts in Postgres for admission. Changes no execution."""

from collections.abc import Mapping
from typing import Final

from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.executions.claim_sql import DUE, WAITING_TENANTS
from shared.ids import TenantId

COUNT_WAITING: Final = f"""
WITH RECURSIVE {WAITING_TENANTS}
SELECT w.tenant_id, (
    SELECT count(*) FROM (
        SELECT 1 FROM executions e
        WHERE e.claimable_at IS NOT NULL AND e.tenant_id = w.tenant_id
        ORDER BY e.tenant_id, {DUE}, e.execution_id LIMIT $1::bigint
    ) AS counted
) AS waiting
FROM waiting w WHERE w.tenant_id IS NOT NULL
"""  # noqa: S608 - constants of our own; values are parameters
"""By the queue's index, which the order sees to; of one tenant no more are looked at than the bound."""


class PostgresQueueCount:
    """Implements `QueueCount`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def waiting(self, *, at_most: int) -> Mapping[TenantId, int]:
        """See `QueueCount.waiting`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(COUNT_WAITING, at_most)
        return {TenantId(row["tenant_id"]): int(row["waiting"]) for row in rows}

"""Counts in Postgres for admission. Changes no execution."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Final

from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.executions.admission import NO_LLM_BOUNDS, LlmBounds, TenantQuota
from control_plane.executions.claim_sql import DUE, WAITING_TENANTS
from control_plane.executions.llm_use import SPENT
from shared.clock import Clock
from shared.ids import EXECUTION, TenantId, least_id

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

COUNT_ACCEPTED: Final = """
SELECT q.tenant_id, (
    SELECT count(*) FROM (
        SELECT 1 FROM executions e WHERE e.tenant_id = q.tenant_id AND e.execution_id >= $3
        ORDER BY e.tenant_id, e.execution_id LIMIT q.bound
    ) AS counted
) AS accepted
FROM unnest($1::text[], $2::bigint[]) AS q (tenant_id, bound)
"""
"""Ids begin with the time at which they were made: the index of ids is one of time."""

QUOTAS: Final = """
SELECT tenant_id, max_pending, executions_per_minute FROM tenants
WHERE max_pending IS NOT NULL OR executions_per_minute IS NOT NULL
"""

_MINUTE: Final = timedelta(minutes=1)


class PostgresQueueCount:
    """Implements `QueueCount`. What the last minute is, the clock says that also makes ids."""

    def __init__(self, database: PostgresDatabase, clock: Clock, bounds: LlmBounds = NO_LLM_BOUNDS) -> None:
        self._database = database
        self._clock = clock
        self._bounds = bounds

    async def quotas(self) -> Mapping[TenantId, TenantQuota]:
        """See `QueueCount.quotas`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(QUOTAS)
        return {
            TenantId(row["tenant_id"]): TenantQuota(
                pending=row["max_pending"], per_minute=row["executions_per_minute"]
            )
            for row in rows
        }

    async def accepted(self, at_most: Mapping[TenantId, int]) -> Mapping[TenantId, int]:
        """See `QueueCount.accepted`."""
        oldest = least_id(EXECUTION.prefix, self._clock.now() - _MINUTE)
        async with self._database.driver() as connection:
            rows = await connection.fetch(COUNT_ACCEPTED, list(at_most), list(at_most.values()), oldest)
        return {TenantId(row["tenant_id"]): int(row["accepted"]) for row in rows}

    async def spent_on_models(self) -> Collection[TenantId]:
        """See `QueueCount.spent_on_models`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(
                SPENT, self._bounds.tokens_per_day, self._bounds.cost_micros_per_day
            )
        return frozenset(TenantId(row["tenant_id"]) for row in rows)

    async def waiting(self, *, at_most: int) -> Mapping[TenantId, int]:
        """See `QueueCount.waiting`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(COUNT_WAITING, at_most)
        return {TenantId(row["tenant_id"]): int(row["waiting"]) for row in rows}

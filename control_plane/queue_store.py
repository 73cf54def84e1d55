"""Questions to Postgres for health and metrics: is it there, how much waits and how long. Changes nothing."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.executions.claim_sql import DUE
from shared.ids import TenantId

MAX_COUNTED: Final = 100_000
"""A longer queue is reported as this: counting it must not become a load of its own."""

_WAITING: Final = f"""
    SELECT e.tenant_id, e.claimable_at FROM executions e WHERE e.claimable_at IS NOT NULL
    ORDER BY e.tenant_id, {DUE}, e.execution_id LIMIT $1::bigint
"""  # noqa: S608 - constants of our own; values are parameters
"""By the index of what waits, which the order sees to: a look must not grow with what has ended."""
DEPTH: Final = f"SELECT count(*) FROM ({_WAITING}) AS waiting"  # noqa: S608 - the same
AGES: Final = f"""
SELECT tenant_id, extract(epoch FROM now() - min(claimable_at)) AS seconds FROM ({_WAITING}) AS waiting
WHERE claimable_at <= now() GROUP BY tenant_id
"""  # noqa: S608 - the same


class QueueGauge:
    """Asked every few seconds."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def ping(self) -> None:
        """Return when Postgres answers.

        Raises:
            DatabaseUnavailableError: It does not.
        """
        async with self._database.driver() as connection:
            await connection.fetch("SELECT 1")

    async def depth(self) -> int:
        """Return how many executions wait for a node, at most 100,000.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """
        async with self._database.driver() as connection:
            (row,) = await connection.fetch(DEPTH, MAX_COUNTED)
        return int(row["count"])

    async def ages(self) -> Mapping[TenantId, timedelta]:
        """Return how long the oldest claimable execution of each tenant that has any has waited for a node.

        A retry counts from the end of its backoff. Of a queue longer than 100,000 only so many are looked at.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """
        async with self._database.driver() as connection:
            rows = await connection.fetch(AGES, MAX_COUNTED)
        return {TenantId(row["tenant_id"]): timedelta(seconds=float(row["seconds"])) for row in rows}

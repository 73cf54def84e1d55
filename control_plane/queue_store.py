"""Questions to Postgres for health and metrics: is it there, how much waits and how long. Changes nothing."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import func, literal, select

from control_plane.database.tables import executions
from control_plane.database.unit_of_work import PostgresDatabase
from shared.ids import TenantId

MAX_COUNTED: Final = 100_000
"""A longer queue is reported as this: counting it must not become a load of its own."""


class QueueGauge:
    """Asked every few seconds."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def ping(self) -> None:
        """Return when Postgres answers.

        Raises:
            DatabaseUnavailableError: It does not.
        """
        async with self._database.reading() as connection:
            await connection.execute(select(literal(1)))

    async def depth(self) -> int:
        """Return how many executions wait for a node, at most 100,000.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """
        waiting = select(literal(1)).where(executions.c.state == "pending").limit(MAX_COUNTED).subquery()
        async with self._database.reading() as connection:
            return int(await connection.scalar(select(func.count()).select_from(waiting)) or 0)

    async def ages(self) -> Mapping[TenantId, timedelta]:
        """Return how long the oldest claimable execution of each tenant that has any has waited for a node.

        A retry counts from the end of its backoff. Of a queue longer than 100,000 only so many are looked at.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """
        claimable_at = executions.c.claimable_at
        waiting = (
            select(executions.c.tenant_id, claimable_at)
            .where(claimable_at <= func.now())
            .limit(MAX_COUNTED)
            .subquery()
        )
        seconds = func.extract("epoch", func.now() - func.min(waiting.c.claimable_at)).label("seconds")
        oldest = select(waiting.c.tenant_id, seconds).group_by(waiting.c.tenant_id)
        async with self._database.reading() as connection:
            rows: Sequence[Any] = (await connection.execute(oldest)).all()
        return {TenantId(row.tenant_id): timedelta(seconds=float(row.seconds)) for row in rows}

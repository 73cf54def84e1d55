"""Postgres goes away: for a restart, for its connections, for good."""

import asyncio

from cli.stack.children import stop
from tests.chaos.faults.fault import Fault
from tests.chaos.world import Needs, World


class PostgresRestart(Fault):
    name = "postgres_restart"
    says = "Postgres is stopped and started"
    hold_seconds = 3.0

    async def inject(self, world: World) -> None:
        await stop(world.postgres)

    async def lift(self, world: World) -> None:
        await world.start_postgres()


class TerminatedConnections(Fault):
    """Again and again, as a fail-over proxy or an impatient administrator does."""

    name = "postgres_terminate"
    says = "pg_terminate_backend of every connection, five times"
    hold_seconds = 0.0
    TIMES = 5

    async def inject(self, world: World) -> None:
        for _ in range(self.TIMES):
            async with world.sql() as sql:
                await sql.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            await asyncio.sleep(1)

    async def lift(self, world: World) -> None:
        pass


class CutConnections(Fault):
    name = "postgres_cut"
    says = "every connection to Postgres is cut and refused"
    needs = Needs(database_proxy=True)
    hold_seconds = 5.0

    async def inject(self, world: World) -> None:
        assert world.database_proxy is not None
        world.database_proxy.refuse()

    async def lift(self, world: World) -> None:
        assert world.database_proxy is not None
        world.database_proxy.lift()

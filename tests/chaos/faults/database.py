"""Postgres goes away: for a restart, for its connections, for good."""

import asyncio

from cli.stack.children import stop
from tests.chaos.faults.fault import Fault
from tests.chaos.standby import promote
from tests.chaos.world import Needs, World
from tests.e2e.stack import kill


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


class Failover(Fault):
    """What was acknowledged is on the standby; control planes name both and find the one that is the primary."""

    name = "postgres_failover"
    says = "Postgres is killed, its synchronous standby promoted"
    needs = Needs(standby=True)
    hold_seconds = 2.0

    async def inject(self, world: World) -> None:
        await kill(world.postgres)

    async def lift(self, world: World) -> None:
        assert world.standby is not None
        await promote(world.standby)
        world.database, world.postgres = world.standby.files, world.standby.child
        world.standby = None

    async def proof(self, world: World) -> str:
        async with world.sql() as sql:
            # A file of the log is named after its timeline first.
            file = await sql.fetchval("SELECT pg_walfile_name(pg_current_wal_lsn())")
        timeline = int(file[:8], 16)
        assert timeline > 1, "Postgres is on its first timeline: nothing was promoted"
        return f"timeline {timeline}"

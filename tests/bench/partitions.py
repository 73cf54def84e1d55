"""What dividing tables by time costs Postgres: ``python -m tests.bench.partitions [--rounds N]``.

CPU time of the backends that accept, claim and finish, as the kernel counts it, with 4, 13 and 30 partitions in each
divided table beside the same tables undivided, interleaved. Writes build/bench/partitions.json.
"""

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from control_plane.database.partitions import DIVIDED, SCHEMA, DividedTable
from control_plane.database.unit_of_work import HeldConnection
from tests.bench.report import Figure, median, publish, spread
from tests.fixtures.execution_worlds import claim, postgres_world
from tests.fixtures.postgres import PostgresServer, postgres_18_binaries, running_server

COUNTS = (4, 13, 30)
GROUPS = ((1, 40), (4, 20), (32, 6))
"""Executions in one statement, and statements in one round."""
SECONDS = 600


async def divide(sql: Any, table: DividedTable, count: int) -> None:
    """Give a table that many partitions, of a week each; 1: no partitions at all."""
    name = table.name
    await sql.execute(f"ALTER TABLE {name} RENAME TO {name}_before")
    like = f"CREATE TABLE {name} (LIKE {name}_before INCLUDING ALL)"
    if count == 1:
        await sql.execute(like)
        if table.unique:
            await sql.execute(f"CREATE UNIQUE INDEX ON {name} ({table.unique})")
    else:
        await sql.execute(f"{like} PARTITION BY RANGE ({table.column})")
        begin = datetime.now(UTC) - timedelta(days=7 * (count - 3))
        bounds = [table.least_id(begin + timedelta(days=7 * n)) for n in range(count - 1)]
        lows = ["MINVALUE", *(f"'{one}'" for one in bounds)]
        for n, (low, high) in enumerate(zip(lows, [*lows[1:], "MAXVALUE"], strict=True)):
            part = f"{SCHEMA}.{name}_{n}"
            await sql.execute(f"CREATE TABLE {part} PARTITION OF {name} FOR VALUES FROM ({low}) TO ({high})")
            if table.unique:
                await sql.execute(f"CREATE UNIQUE INDEX ON {part} ({table.unique})")
    await sql.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO af_service")


def cpu_us(backend: int) -> float:
    return int(Path(f"/proc/{backend}/schedstat").read_text().split()[0]) / 1e3


async def backend_of(held: HeldConnection) -> int:
    async with held.use() as lent:
        connection: Any = lent
        return int(connection.get_server_pid())


async def measure(world: Any, size: int, groups: int) -> dict[str, float]:
    """Return µs per execution of each statement."""
    backends = {
        "accept": await backend_of(world.store._accepting),
        "claim": await backend_of(world.leases._claiming),
        "finish": await backend_of(world.leases._finishing._connection),
    }
    build = world.build
    started = {name: cpu_us(backend) for name, backend in backends.items()}
    for _ in range(groups):
        items = [build.execution(body=build.body(b"x" * 1000)) for _ in range(size)]
        # Half of them go to a node at once, half wait for a claim.
        placements = [build.placement(one) if n % 2 == 0 else None for n, one in enumerate(items)]
        if size == 1:
            placements = [None]
        await world.store.accept(items, placements)
        claimed = (await claim(world, limit=size)).placements
        ran = [one for one in (*placements, *claimed) if one is not None]
        await world.leases.finish([build.result(one, output=build.body(b"y" * 1000)) for one in ran])
    count = size * groups
    share = {"claim": count if size == 1 else count / 2}
    return {
        name: (cpu_us(backend) - started[name]) / share.get(name, count) for name, backend in backends.items()
    }


async def bench(server: PostgresServer, rounds: int) -> list[Figure]:
    found: dict[tuple[int, str, int], list[float]] = {}
    async with AsyncExitStack() as opened:
        worlds = {}
        for count in (1, *COUNTS):
            database = await asyncio.to_thread(server.new_database)
            sql: Any = await asyncpg.connect(server.url(database))  # type: ignore[no-untyped-call]
            for table in DIVIDED:
                await divide(sql, table, count)
            await sql.close()
            worlds[count] = await opened.enter_async_context(postgres_world(server, database))
        for turn in range(rounds + 1):
            for size, groups in GROUPS:
                for count, world in list(worlds.items())[:: 1 if turn % 2 else -1]:
                    for name, us in (await measure(world, size, groups)).items():
                        if turn:  # the first one warms up
                            found.setdefault((size, name, count), []).append(us)
    return [
        Figure(
            figure=f"{name}, {size} at once, {count} partitions: Postgres CPU per execution",
            value=median(values),
            unit="µs",
            reference="undivided" if count > 1 else None,
            reference_value=median(found[size, name, 1]) if count > 1 else None,
            repeats=len(values),
            spread=spread(values),
        )
        for (size, name, count), values in sorted(found.items())
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.partitions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    binaries = postgres_18_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL 18 is not installed")
    with running_server(binaries) as server:
        figures = asyncio.run(asyncio.wait_for(bench(server, parser.parse_args().rounds), SECONDS))
    return publish("partitions", figures)


if __name__ == "__main__":
    sys.exit(main())

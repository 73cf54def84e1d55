"""What stored history costs: the same load on an empty database and on one with a million executions in it.

History is one real execution copied N times in every table that it is in, with ids of its own that are older than
those of new executions, as time makes them.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentfactory.v1 import common_pb2, executions_pb2

from control_plane.database.engine import PoolBounds, session_settings
from tests.bench.report import Figure, quantile
from tests.bench.scale.growth import grown, say_measured
from tests.bench.scale.world import AGENT, CALL_SECONDS, Measured, World, running_world, say
from tests.integration.executions import test_plans

STEP = 20_000
"""Executions of one statement."""
READS = 100

TABLES = {
    "bodies": "t.body_id IN (e.input_body_id, e.output_body_id)",
    "decisions": "t.decision_id = e.decision_id",
    "executions": "t.execution_id = e.execution_id",
    "idempotency_keys": "t.execution_id = e.execution_id",
    "attempts": "t.execution_id = e.execution_id",
    "orders": "t.execution_id = e.execution_id",
    "order_batches": "t.batch_id = (SELECT batch_id FROM orders o WHERE o.execution_id = e.execution_id)",
    "receipts": "t.execution_id = e.execution_id",
    "audit_entries": "t.subject = e.execution_id",
}
"""Each table with what makes a row of it one of the copied execution's, as `e`."""

_OWN = "left(t.{column}, 4) || g.own"
CHANGED = {
    # An input and an output are two rows of one table.
    "body_id": "left(t.body_id, 4) || CASE WHEN t.body_id = e.output_body_id THEN g.other ELSE g.own END",
    "output_body_id": "left(t.output_body_id, 4) || g.other",
    "audit_entry_id": "left(t.audit_entry_id, 4) || replace(g.own, '-7000-', '-7' ||"
    " lpad(to_hex(row_number() OVER (PARTITION BY g.n)), 3, '0') || '-')",
    "subject": _OWN.format(column="subject"),
    # Below those of any node.
    "sequence": "-g.n",
    "request_id": "t.request_id || g.n",
    **{
        name: _OWN.format(column=name)
        for name in ("execution_id", "input_body_id", "decision_id", "order_id", "receipt_id", "batch_id")
    },
}
"""What differs from copy to copy; every other column is the same."""

_IDS = """
SELECT n, h || '-7000-8000-' || tail AS own, h || '-7001-8000-' || tail AS other FROM (
    SELECT n, lpad(to_hex(n), 12, '0') AS tail, left(ms, 8) || '-' || right(ms, 4) AS h
    FROM (SELECT n, lpad(to_hex(1600000000000 + n * 50), 12, '0') AS ms
          FROM generate_series($1::bigint, $2::bigint) n) AS numbers) AS parts
"""

STATEMENTS = {
    f"{kind}: {name}": test_plans.STATEMENTS[name]
    for kind, name in (
        ("claim", "claimable"),
        ("sweep", "cancel requests"),
        ("sweep", "expired leases"),
        ("sweep", "past deadline"),
    )
}


async def fill(world: World, count: int) -> float:
    """Copy the newest execution `count` times and return the seconds that took."""
    sql = world.sql
    started = time.perf_counter()
    await sql.execute("SET synchronous_commit = off")
    newest = await sql.fetchval("SELECT max(execution_id) FROM executions")
    statements = [await _statement(sql, table, where) for table, where in TABLES.items()]
    for first in range(1, count + 1, STEP):
        last = min(count, first + STEP - 1)
        for statement in statements:
            await sql.execute(statement, first, last, newest)
        say(f"{last:,} of {count:,} executions stored ({time.perf_counter() - started:.0f} s)")
    filled = time.perf_counter() - started
    await sql.execute("VACUUM ANALYZE")
    await sql.execute("CHECKPOINT")
    return filled


async def _statement(sql: Any, table: str, where: str) -> str:
    rows = await sql.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position",
        table,
    )
    names = [row["column_name"] for row in rows]
    values = ", ".join(CHANGED.get(name, f"t.{name}") for name in names)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {values}"
        f" FROM ({_IDS}) AS g, executions e, {table} t WHERE e.execution_id = $3 AND {where}"
    )


async def reads(world: World) -> dict[str, float]:
    """Return the p50 of what people read, in milliseconds."""
    stub = world.clients[0].executions
    newest = await world.sql.fetchval("SELECT max(execution_id) FROM executions")
    page = common_pb2.PageRequest(page_size=50)

    async def get() -> None:
        await stub.GetExecution(executions_pb2.GetExecutionRequest(execution_id=newest), timeout=CALL_SECONDS)

    async def first_page() -> None:
        await stub.ListExecutions(executions_pb2.ListExecutionsRequest(page=page), timeout=CALL_SECONDS)

    async def of_agent() -> None:
        await stub.ListExecutions(
            executions_pb2.ListExecutionsRequest(page=page, agent=AGENT), timeout=CALL_SECONDS
        )

    calls = {
        "GetExecution": get,
        "ListExecutions, first page": first_page,
        "ListExecutions of an agent": of_agent,
    }
    return {name: await _p50_ms(call) for name, call in calls.items()} | {
        name: await _p50_ms(lambda one=one: _rolled_back(world.sql, *one))  # type: ignore[misc]
        for name, one in STATEMENTS.items()
    }


async def _p50_ms(call: Callable[[], Awaitable[None]]) -> float:
    times = []
    for _ in range(READS):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1e3)
    return quantile(times, 0.5)


async def _rolled_back(sql: Any, statement: str, arguments: tuple[Any, ...]) -> None:
    transaction = sql.transaction()
    await transaction.start()
    try:
        await sql.fetch(statement, *arguments)
    finally:
        await transaction.rollback()


async def scans(world: World) -> list[str]:
    """Return the statements of claim and sweep whose plan, as the service has it, reads a table from end to end."""
    found = []
    async with world.sql.transaction():
        for name, value in session_settings("bench", PoolBounds()).items():
            if name.startswith("enable_"):
                await world.sql.execute(f"SET LOCAL {name} = {value}")
        for name, (statement, arguments) in STATEMENTS.items():
            rows = await world.sql.fetch(f"EXPLAIN {statement}", *arguments)
            plan = "\n".join(row["QUERY PLAN"] for row in rows)
            if any(f"Seq Scan on {table}" in plan for table in TABLES):
                found.append(name)
    return found


async def measure(
    nodes: int, *, stored: int, rate: float, rounds: int, idle_seconds: float, seconds: float
) -> list[Figure]:
    """Return cost, latency and reads with the history, beside those without it."""
    async with running_world(nodes=nodes) as world:

        async def visit(what: str) -> tuple[list[Measured], dict[str, float]]:
            found = []
            for _ in range(rounds):
                one = await world.measure(nodes, rate=rate, idle_seconds=idle_seconds, seconds=seconds)
                say_measured(what, one)
                found.append(one)
            return found, await reads(world)

        without, reads_without = await visit("without history")
        empty_bytes = await world.sql.fetchval("SELECT pg_database_size(current_database())")
        took = await fill(world, stored)
        full_bytes = await world.sql.fetchval("SELECT pg_database_size(current_database())")
        found, reads_with = await visit(f"with {stored:,} executions")
        unindexed = await scans(world)
    for name in unindexed:
        say(f"{name} reads a whole table")
    return [
        Figure(figure=f"storing {stored:,} executions of history", value=took, unit="s"),
        Figure(
            figure="a stored execution with indexes",
            value=(full_bytes - empty_bytes) / stored,
            unit="bytes",
        ),
        *_beside(found, without, stored),
        *(
            Figure(
                figure=f"with history: {name}, p50",
                value=value,
                unit="ms",
                reference="without",
                reference_value=reads_without[name],
            )
            for name, value in reads_with.items()
        ),
        Figure(
            figure="with history: claims and sweeps without an index",
            value=len(unindexed),
            unit="",
            bar="0",
            bar_ok=not unindexed,
        ),
    ]


def _beside(found: Sequence[Measured], without: Sequence[Measured], stored: int) -> list[Figure]:
    measures: tuple[tuple[str, str, Callable[[Measured], float]], ...] = (
        ("control plane CPU per execution", "µs", lambda one: one.cost.control_plane_us),
        ("Postgres CPU per execution", "µs", lambda one: one.cost.postgres_us),
        ("WAL per execution", "bytes", lambda one: one.cost.wal_bytes),
        ("p95, open loop", "ms", lambda one: one.p95_ms),
        # Looks at the queue, sweeps, the log: what is taken off above must not grow either.
        ("idle control plane CPU", "ms/s", lambda one: one.idle.control_plane * 1e3),
        ("idle Postgres CPU", "ms/s", lambda one: one.idle.postgres * 1e3),
    )
    # WAL has no bar: the first write to a page after a checkpoint is logged whole, more pages, more of them.
    return [
        grown(
            f"with {stored:,} stored: {label}",
            [read(one) for one in found],
            unit,
            beside=("without", [read(one) for one in without]),
            barred=not label.startswith("WAL"),
        )
        for label, unit, read in measures
    ]

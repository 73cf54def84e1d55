"""The statements of the hot path find rows by index, however empty the tables were when their plans were made."""

import re
from datetime import timedelta
from typing import Any

import pytest

from control_plane.executions import accept_sql, claim_sql, finish_sql
from control_plane.executions.turns import Turns
from control_plane.kv import sql as kv_sql
from control_plane.queue_store import AGES, DEPTH
from tests.builders.executions import node
from tests.fixtures.execution_worlds import PostgresWorld

GROWING = (
    "executions",
    "attempts",
    "orders",
    "receipts",
    "bodies",
    "decisions",
    "idempotency_keys",
    "kv_entries",
    "agents",
)
_SCAN = re.compile(rf"Seq Scan on (?:{'|'.join(GROWING)})\b")

_MANY = 10
"""What Postgres takes for the length of an array it does not know."""
_ATTEMPTS: tuple[Any, ...] = (["exe_1"] * _MANY, [1] * _MANY)
STATEMENTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "resolve": (accept_sql.RESOLVE, tuple(["x"] * _MANY for _ in range(6))),
    "stored receipts": (finish_sql.STORED_RECEIPTS, (["nod_1"] * _MANY, [1] * _MANY)),
    "start": (claim_sql.START, (*_ATTEMPTS, ["aud_1"] * _MANY)),
    "renew": (claim_sql.RENEW, (*_ATTEMPTS, node(), timedelta(seconds=1))),
    "live": (claim_sql.LIVE_OF, _ATTEMPTS),
    "claimable": (
        claim_sql.LOCK_CLAIMABLE,
        claim_sql.claimable_arguments(node(), 10, Turns(), alone=True),
    ),
    "live attempt": (claim_sql.LIVE_ATTEMPT, ("exe_1", 1, 1, node())),
    "cancel requests": (claim_sql.CANCEL_REQUESTS, ([node()],)),
    "expired leases": (claim_sql.EXPIRED_LEASES, (10, timedelta(0))),
    "declare unsafe": (
        claim_sql.DECLARE_UNSAFE,
        (*_ATTEMPTS, [1] * _MANY, [node()] * _MANY, ["aud_1"] * _MANY),
    ),
    "read values": (
        kv_sql.READ,
        ([node()] * _MANY, ["exe_1"] * _MANY, [1] * _MANY, [1] * _MANY, ["k"] * _MANY),
    ),
    "lock decided": (
        kv_sql.LOCK_DECIDED,
        (*_ATTEMPTS, ["ord_1"] * _MANY, ["d"] * _MANY, [node()] * _MANY, [1] * _MANY),
    ),
    "lock agents": (kv_sql.LOCK_AGENTS, (["agt_1"] * _MANY,)),
    "sizes of values": (kv_sql.SIZES, (["t"] * _MANY, ["agt_1"] * _MANY, ["k"] * _MANY)),
    "write values": (
        kv_sql.WRITE,
        (
            *(["t"] * _MANY, ["agt_1"] * _MANY, ["k"] * _MANY, [b"v"] * _MANY, [2] * _MANY),
            *(["exe_1"] * _MANY, ["agt_1"] * _MANY, [1] * _MANY, [2] * _MANY),
        ),
    ),
    "past deadline": (claim_sql.PAST_DEADLINE, (10,)),
    "queue depth": (DEPTH, (10,)),
    "queue ages": (AGES, (10,)),
}


async def plan(world: PostgresWorld, statement: str, arguments: tuple[Any, ...]) -> str:
    async with world.database.driver() as connection:
        rows = await connection.fetch(f"EXPLAIN {statement}", *arguments)
    return "\n".join(row["QUERY PLAN"] for row in rows)


@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_statement_reads_a_growing_table_from_end_to_end(world: PostgresWorld, name: str) -> None:
    assert not _SCAN.findall(await plan(world, *STATEMENTS[name]))


@pytest.mark.parametrize("statement", [accept_sql.ACCEPT, accept_sql.ACCEPT_UPLOADED])
async def test_accepting_reads_no_growing_table_from_end_to_end(world: PostgresWorld, statement: str) -> None:
    items = [world.build.execution() for _ in range(_MANY)]
    arguments = accept_sql.accept_arguments(items, [world.build.placement(item) for item in items])
    assert not _SCAN.findall(await plan(world, statement, tuple(arguments)))


@pytest.mark.parametrize(
    "statement", [finish_sql.FINISH, finish_sql.FINISH_UPLOADED, finish_sql.FINISH_RECORDED]
)
async def test_finishing_reads_no_growing_table_from_end_to_end(world: PostgresWorld, statement: str) -> None:
    placements = [world.build.placement(world.build.execution()) for _ in range(_MANY)]
    recording = world.build.body(b"calls") if statement == finish_sql.FINISH_RECORDED else None
    results = [world.build.result(one, recording=recording) for one in placements]
    arguments = finish_sql.finish_arguments(results)
    assert finish_sql.finish_statement(results) in {statement, finish_sql.FINISH}
    assert not _SCAN.findall(await plan(world, statement, tuple(arguments)))


@pytest.mark.parametrize("name", ["claimable", "queue depth", "queue ages"])
async def test_what_waits_is_found_by_its_own_index_alone(world: PostgresWorld, name: str) -> None:
    found = await plan(world, *STATEMENTS[name])
    assert set(re.findall(r"using (\w+) on executions", found)) == {"ix_executions_queue"}

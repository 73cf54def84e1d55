"""Tables divided by time: made ahead, dropped beside a load, never with what has not ended."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import ProgrammingError

from control_plane.database import retention
from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.migrate import downgrade, upgrade
from control_plane.database.partitions import DIVIDED, Period
from control_plane.database.retention import Retained, RetentionPlan
from control_plane.executions.domain import Disposition, Outcome
from shared.clock import SystemRandom
from shared.errors import ConflictError, InvalidInputError
from shared.ids import NodeId
from tests.builders.executions import TENANT, Builder
from tests.fakes.clock import FakeClock
from tests.fixtures.execution_worlds import PostgresWorld, postgres_world, run_at_once, submit
from tests.fixtures.postgres import SERVICE, PostgresServer

NOW = datetime.now(UTC)
MONTHS_LATER = NOW + timedelta(days=60)
MONTH = timedelta(days=30)


@pytest.fixture
async def world(postgres_server: PostgresServer, database_name: str) -> AsyncIterator[PostgresWorld]:
    async with postgres_world(postgres_server, database_name) as opened:
        yield opened


async def retain(owner_url: str, *, at: datetime = MONTHS_LATER, **plan: Any) -> Retained:
    return await retention.retain(
        owner_url, RetentionPlan(**plan), clock=FakeClock(at), random=SystemRandom(), tenant=TENANT
    )


async def run(world: PostgresWorld, *, at: datetime | None = None) -> str:
    """Run one execution to its end, with ids of that time; return its receipt's id."""
    if at is not None:
        world.build.clock = FakeClock(at)
    placement = await run_at_once(world, world.build.execution())
    result = world.build.result(placement)
    (finished,) = await world.leases.finish([result])
    assert finished.disposition is Disposition.ACCEPTED
    return result.receipt_id


async def partitions(world: PostgresWorld, table: str) -> list[str]:
    found = await world.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
        " WHERE inhparent = CAST(:t AS regclass) ORDER BY relname",
        t=table,
    )
    return [str(one) for one in found]


async def count(world: PostgresWorld, table: str) -> int:
    (found,) = await world.fetch(f"SELECT count(*) FROM {table}")
    assert isinstance(found, int)
    return found


async def test_a_new_database_has_partitions_for_weeks_and_one_without_end(
    world: PostgresWorld, owner_url: str
) -> None:
    assert (await retain(owner_url, at=NOW)).made == ()
    for table in DIVIDED:
        assert len(await partitions(world, table.name)) == 4
    await run(world, at=NOW + timedelta(days=3650))  # nobody made a partition for ten years


async def test_partitions_are_made_ahead_and_take_what_comes_in_their_time(
    world: PostgresWorld, owner_url: str
) -> None:
    await run(world, at=MONTHS_LATER - timedelta(days=20))  # the one without end is in use
    made = (await retain(owner_url, ahead=3, period=Period.DAY)).made
    assert len(made) == 4 * len(DIVIDED)
    assert (await retain(owner_url, ahead=3, period=Period.DAY)).made == ()

    for day in range(6):
        await run(world, at=MONTHS_LATER + timedelta(days=day))

    filled = await world.fetch("SELECT count(DISTINCT tableoid) FROM bodies")
    assert filled == [5]  # what was without end, three days, and the new one without end
    assert len(await partitions(world, "receipts")) == 8


async def test_what_is_made_a_day_later_cuts_what_nobody_used_yet(
    world: PostgresWorld, owner_url: str
) -> None:
    await retain(owner_url, period=Period.DAY)
    before = await partitions(world, "bodies")
    made = (await retain(owner_url, at=MONTHS_LATER + timedelta(days=1), period=Period.DAY)).made
    assert len(made) == len(DIVIDED)
    assert len(await partitions(world, "bodies")) == len(before) + 1
    await run(world, at=MONTHS_LATER + timedelta(days=2))


@pytest.mark.parametrize("table", [one.name for one in DIVIDED])
async def test_rule_19_the_service_reaches_partitions_through_their_table_alone(
    world: PostgresWorld, owner_url: str, database_url: str, table: str
) -> None:
    await retain(owner_url)
    engine = create_engine(database_url, application="test")
    try:
        for name in await partitions(world, table):
            for statement in ("SELECT 1 FROM {}", "DELETE FROM {}", "DROP TABLE {}"):
                async with engine.connect() as connection:
                    with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
                        await connection.exec_driver_sql(statement.format(f"partitions.{name}"))
        async with engine.connect() as connection:
            with pytest.raises(ProgrammingError, match="must be owner"):
                await connection.exec_driver_sql(
                    f"ALTER TABLE {table} DETACH PARTITION partitions.{(await partitions(world, table))[0]}"
                )
    finally:
        await engine.dispose()


async def test_inputs_and_outputs_go_before_what_proves_them(world: PostgresWorld, owner_url: str) -> None:
    await run(world)
    await run(world, at=MONTHS_LATER - timedelta(days=3))
    (live,) = await submit(world, world.build.execution())
    plan = {"inputs_older_than": timedelta(days=7), "outputs_older_than": timedelta(days=2)}
    assert (await retain(owner_url, **plan, dry_run=True)).bodies == 3
    assert await count(world, "bodies") == 5
    done = await retain(owner_url, **plan)
    assert (done.bodies, done.dropped, done.executions) == (3, (), 0)
    kept = "SELECT count(*) FROM bodies b JOIN executions e ON e.input_body_id = b.body_id"
    assert await world.fetch(kept) == [2]
    assert await count(world, "receipts") == 2
    assert live.run.input.body_id in await world.fetch("SELECT body_id FROM bodies")
    assert await world.fetch(
        "SELECT subject || (details ->> 'bodies') FROM audit_entries WHERE action = 'retention.erased'"
        " ORDER BY subject"
    ) == ["inputs1", "outputs2"]
    assert (await retain(owner_url, **plan)).bodies == 0


async def test_old_partitions_go_with_their_executions_and_leave_an_audit_entry(
    world: PostgresWorld, owner_url: str
) -> None:
    await run(world)
    kept = await run(world, at=MONTHS_LATER - timedelta(days=3))
    found = await retain(owner_url, older_than=MONTH, dry_run=True)
    assert (found.executions, len(found.dropped)) == (1, 3 * 5)
    assert await count(world, "executions") == 2

    done = await retain(owner_url, older_than=MONTH)

    assert [one.name for one in done.dropped] == [one.name for one in found.dropped]
    assert done.held_back_by is None
    assert await world.fetch("SELECT receipt_id FROM receipts") == [kept]
    for table in ("executions", "attempts", "orders", "decisions"):
        assert await count(world, table) == 1
    assert await count(world, "bodies") == 2
    entries = await world.fetch("SELECT subject FROM audit_entries WHERE action = 'retention.dropped'")
    assert sorted(map(str, entries)) == sorted(one.name for one in done.dropped)
    assert await count(world, "audit_entries WHERE action = 'execution.submitted'") == 2


async def test_audit_entries_go_by_an_age_of_their_own(world: PostgresWorld, owner_url: str) -> None:
    await run(world)
    done = await retain(owner_url, older_than=MONTH, audit_older_than=MONTH)
    assert {one.table.name for one in done.dropped} == {one.name for one in DIVIDED}
    assert await count(world, "audit_entries WHERE action <> 'retention.dropped'") == 0


async def test_an_execution_that_has_not_ended_keeps_everything_as_old_as_it(
    world: PostgresWorld, owner_url: str
) -> None:
    (waiting,) = await submit(world, world.build.execution())
    await run(world)

    done = await retain(owner_url, older_than=MONTH)

    assert done.held_back_by == waiting.run.execution_id
    assert (done.dropped, done.executions) == ((), 0)
    assert await count(world, "executions") == 2


async def test_an_old_upload_that_waits_for_its_run_keeps_its_partition(
    world: PostgresWorld, owner_url: str
) -> None:
    uploaded = world.build.execution()
    await submit(world, uploaded)
    await world.fetch_none("UPDATE executions SET state = 'cancelled', claimable_at = NULL")
    world.build.clock = FakeClock(MONTHS_LATER)
    again = world.build.execution(body=replace(uploaded.run.input, content=None))
    await submit(world, again)

    done = await retain(owner_url, older_than=MONTH)

    assert done.held_back_by == again.run.execution_id
    assert await world.fetch("SELECT body_id FROM bodies") == [uploaded.run.input.body_id]


async def test_old_partitions_are_dropped_beside_a_load_that_never_waits_for_a_lock(
    postgres_server: PostgresServer, world: PostgresWorld, owner_url: str, database_name: str
) -> None:
    await run(world)
    await retain(owner_url, ahead=1)
    url = postgres_server.url(database_name, user=SERVICE)
    async with _loaded(url, world.build.sequences) as load:
        await load.finished(3)
        # A long read of every partition: whoever wanted the table for itself would wait behind it, and
        # everybody else behind him.
        reader = await asyncpg.connect(url)
        try:
            async with reader.transaction():
                await reader.fetch("SELECT count(*) FROM receipts, bodies")
                retaining = asyncio.create_task(retain(owner_url, older_than=MONTH, ahead=1))
                await _until_waiting(world, "DETACH PARTITION")
                await load.finished(10)
                assert not retaining.done()
            done = await asyncio.wait_for(retaining, 30)
        finally:
            await reader.close()
        await load.finished(3)
    assert len(done.dropped) == 3 * 5


async def test_a_partition_without_end_that_is_in_use_is_cut_beside_a_load(
    postgres_server: PostgresServer, world: PostgresWorld, owner_url: str, database_name: str
) -> None:
    url = postgres_server.url(database_name, user=SERVICE)
    async with _loaded(url, world.build.sequences) as load:
        await load.finished(3)
        assert (await retain(owner_url)).made
        await load.finished(3)


class _Load:
    """Executions accepted and finished one after another, with ids of months later, until it is closed."""

    def __init__(self, world: PostgresWorld) -> None:
        self._world = world
        self._count = 0
        self._more = asyncio.Condition()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await run(self._world, at=MONTHS_LATER)
            async with self._more:
                self._count += 1
                self._more.notify_all()

    async def finished(self, more: int) -> None:
        """Return after this many more; raise what ended the load."""
        target = self._count + more

        async def reached() -> None:
            async with self._more:
                await self._more.wait_for(lambda: self._count >= target)

        waiting = asyncio.create_task(reached())
        done, _ = await asyncio.wait({waiting, self.task}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task in done:
            self.task.result()
        assert waiting in done, "the load stands still"


class _loaded:  # noqa: N801 - used as a function
    def __init__(self, url: str, sequences: dict[NodeId, int]) -> None:
        self._sequences = sequences
        bounds = PoolBounds(connections=4, lock=timedelta(seconds=1))
        self._engine = create_engine(url, application="test-load", bounds=bounds)

    async def __aenter__(self) -> _Load:
        world = PostgresWorld(engine=self._engine, owner=self._engine)
        world.build = Builder(sequences=dict(self._sequences))
        self._world = world
        self._load = _Load(world)
        return self._load

    async def __aexit__(self, *_: object) -> None:
        self._load.task.cancel()
        await asyncio.wait({self._load.task})
        await self._world.store.close()
        await self._world.leases.close()
        await self._engine.dispose()


async def _until_waiting(world: PostgresWorld, statement: str) -> None:
    async with asyncio.timeout(30):
        while not await world.fetch(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :q",
            q=f"%{statement}%",
        ):
            await asyncio.sleep(0.02)


async def test_a_receipt_that_comes_again_in_a_later_partition_is_the_same_one(
    world: PostgresWorld, owner_url: str
) -> None:
    placement = await run_at_once(world, world.build.execution())
    result = world.build.result(placement)
    await world.leases.finish([result])
    await retain(owner_url)
    later = Builder(clock=FakeClock(MONTHS_LATER)).result(placement)
    repeated = replace(result, receipt_id=later.receipt_id, audit_entry_id=later.audit_entry_id)

    (finished,) = await world.leases.finish([repeated])

    assert finished.disposition is Disposition.DUPLICATE
    assert await count(world, "receipts") == 1


async def test_rule_5_two_receipts_for_one_sequence_in_different_partitions_are_a_conflict(
    world: PostgresWorld, owner_url: str
) -> None:
    await run(world)
    await retain(owner_url)
    world.build.clock = FakeClock(MONTHS_LATER)
    placement = await run_at_once(world, world.build.execution())
    other = world.build.result(placement, Outcome.SUCCEEDED, sequence=1)

    (finished,) = await world.leases.finish([other])

    assert finished.disposition is Disposition.CONFLICT
    assert await count(world, "receipts") == 1


async def test_a_database_with_executions_is_upgraded_and_ends_what_was_under_way(
    postgres_server: PostgresServer, world: PostgresWorld, owner_url: str, database_name: str
) -> None:
    receipt = await run(world)
    placement = await run_at_once(world, world.build.execution())
    await world.store.close()
    await world.leases.close()
    tables = [one.name for one in DIVIDED]
    before = [await count(world, table) for table in tables]

    await downgrade(owner_url, "0005")
    assert [await count(world, table) for table in tables] == before
    await upgrade(owner_url)

    assert [await count(world, table) for table in tables] == before
    (finished,) = await world.leases.finish([world.build.result(placement)])
    assert finished.disposition is Disposition.ACCEPTED
    evidence = await world.audit.get_receipt(TENANT, receipt)
    assert evidence.order_content


async def test_a_run_that_was_interrupted_is_brought_to_its_end_by_the_next(
    world: PostgresWorld, owner_url: str
) -> None:
    await run(world)
    tail = (await partitions(world, "bodies"))[-2]  # sorted by name, the first one last
    await world.fetch_none(f"ALTER TABLE bodies DETACH PARTITION partitions.{tail}")
    await world.fetch_none("COMMENT ON TABLE partitions.orders_first IS 'being dropped by retention'")
    await world.fetch_none("ALTER TABLE orders DETACH PARTITION partitions.orders_first")

    done = await retain(owner_url, at=NOW)

    assert done.made == (tail,)
    assert (await partitions(world, "bodies"))[-2] == tail
    assert await world.fetch("SELECT to_regclass('partitions.orders_first') IS NULL") == [True]


async def test_a_table_that_belongs_to_none_is_named_and_kept(world: PostgresWorld, owner_url: str) -> None:
    await run(world)
    await world.fetch_none("ALTER TABLE bodies DETACH PARTITION partitions.bodies_first")
    with pytest.raises(ConflictError, match=r"partitions\.bodies_first belongs to no partitioned table"):
        await retain(owner_url)
    assert await count(world, "partitions.bodies_first") == 2


def test_nothing_that_may_be_in_use_can_be_dropped() -> None:
    RetentionPlan(older_than=timedelta(hours=24))
    with pytest.raises(InvalidInputError, match="24 hours"):
        RetentionPlan(older_than=timedelta(hours=24) - timedelta(seconds=1))
    with pytest.raises(InvalidInputError, match="at least as long"):
        RetentionPlan(older_than=MONTH, audit_older_than=MONTH - timedelta(days=1))

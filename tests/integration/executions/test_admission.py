"""What waits, counted by Postgres."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from control_plane.database import tables
from control_plane.executions.admission import Admission, AdmissionBounds, TenantQuota
from control_plane.executions.admission_store import COUNT_WAITING, PostgresQueueCount
from shared.clock import SystemClock
from shared.errors import ResourceExhaustedError
from shared.ids import TenantId
from tests.builders.executions import OTHER_TENANT, TENANT
from tests.fakes.clock import FakeClock
from tests.fixtures.execution_worlds import PostgresWorld, claim, submit


async def test_waiting_executions_are_counted_by_tenant_up_to_the_bound(world: PostgresWorld) -> None:
    counts = PostgresQueueCount(world.database, SystemClock())
    assert await counts.waiting(at_most=10) == {}
    await submit(world, *(world.build.execution() for _ in range(5)))
    await submit(world, *(world.build.execution(tenant=OTHER_TENANT) for _ in range(2)))
    assert await counts.waiting(at_most=10) == {TENANT: 5, OTHER_TENANT: 2}
    assert await counts.waiting(at_most=3) == {TENANT: 3, OTHER_TENANT: 2}
    await claim(world, limit=4)
    assert sum((await counts.waiting(at_most=10)).values()) == 3, "what a node holds does not wait"


async def test_two_replicas_that_see_one_queue_refuse_at_the_same_bound(world: PostgresWorld) -> None:
    doors = [
        Admission(
            counts=PostgresQueueCount(world.database, SystemClock()),
            bounds=AdmissionBounds(pending_of_tenant=5),
            clock=SystemClock(),
        )
        for _ in range(2)
    ]
    await submit(world, *(world.build.execution() for _ in range(5)))
    for door in doors:
        await door.count()
        with pytest.raises(ResourceExhaustedError):
            door.enter(TENANT)
        door.enter(OTHER_TENANT)


async def test_the_count_reads_the_index_of_the_queue_alone(world: PostgresWorld) -> None:
    await submit(world, *(world.build.execution() for _ in range(20)))
    async with world.database.driver() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(
            row[0]
            for row in await connection.fetch(f"EXPLAIN (COSTS OFF) {COUNT_WAITING}".replace("$1", "10"))
        )
    assert "Seq Scan" not in plan, plan
    assert plan.count("Index Scan") == plan.count("Index Scan using ix_executions_queue") > 1, plan


async def test_what_was_accepted_within_a_minute_is_counted_and_quotas_are_read(world: PostgresWorld) -> None:
    clock = FakeClock(SystemClock().now())
    counts = PostgresQueueCount(world.database, clock)
    assert await counts.quotas() == {}
    await submit(world, *(world.build.execution() for _ in range(3)))
    await submit(world, world.build.execution(tenant=OTHER_TENANT))
    asked = {TENANT: 2, OTHER_TENANT: 10, TenantId("nobody"): 10}
    assert await counts.accepted(asked) == {TENANT: 2, OTHER_TENANT: 1, "nobody": 0}
    clock.advance(timedelta(minutes=2))
    assert await counts.accepted(asked) == {TENANT: 0, OTHER_TENANT: 0, "nobody": 0}
    async with world.owner.begin() as connection:
        await connection.execute(
            update(tables.tenants).where(tables.tenants.c.tenant_id == TENANT).values(max_pending=5)
        )
    assert await counts.quotas() == {TENANT: TenantQuota(pending=5, per_minute=None)}

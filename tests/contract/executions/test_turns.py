"""Whose turn it is: the same order of claims by the fake and by Postgres."""

from datetime import timedelta

from control_plane.executions.domain import AGING_STEP, Priority
from tests.builders.executions import OTHER_TENANT, TENANT, session
from tests.fixtures.execution_worlds import World, claim, submit

MOMENT = timedelta(seconds=1)


async def taken(world: World, *, limit: int, at=None) -> list[str]:
    return [work.run.execution_id for work in (await claim(world, at, limit=limit)).executions]


def flood(world: World, count: int):
    return [world.build.execution(tenant=TENANT) for _ in range(count)]


async def test_a_newcomer_of_another_tenant_is_next_behind_a_flood(world: World):
    await submit(world, *flood(world, 40))
    await taken(world, limit=4)
    (newcomer,) = await submit(world, world.build.execution(tenant=OTHER_TENANT))
    assert await taken(world, limit=1) == [newcomer.run.execution_id]


async def test_tenants_take_turns_one_slot_at_a_time(world: World):
    await submit(world, *flood(world, 10))
    await submit(world, *(world.build.execution(tenant=OTHER_TENANT) for _ in range(4)))
    tenants = [work.run.tenant_id for _ in range(8) for work in (await claim(world, limit=1)).executions]
    assert (tenants[:2].count(TENANT), tenants.count(TENANT)) == (1, 4)


async def test_many_slots_are_shared_and_what_one_leaves_goes_to_the_other(world: World):
    await submit(world, *flood(world, 10))
    await submit(world, *(world.build.execution(tenant=OTHER_TENANT) for _ in range(6)))
    first = await claim(world, limit=6)
    tenants = [work.run.tenant_id for work in first.executions]
    assert (tenants.count(TENANT), tenants.count(OTHER_TENANT), first.queue_empty) == (3, 3, False)
    second = await claim(world, limit=9)
    tenants = [work.run.tenant_id for work in second.executions]
    assert (tenants.count(TENANT), tenants.count(OTHER_TENANT), second.queue_empty) == (6, 3, False)
    last = await claim(world, limit=9)
    assert (len(last.executions), last.queue_empty) == (1, True)


async def test_a_claim_tells_of_whom_nothing_is_left(world: World):
    await submit(world, *flood(world, 10), world.build.execution(tenant=OTHER_TENANT))
    assert (await claim(world, limit=6)).left == {TENANT}
    assert (await claim(world, limit=9)).left == frozenset()


async def test_a_claim_that_not_every_tenant_had_a_turn_in_hides_nobody(world: World):
    await submit(world, *flood(world, 3), *(world.build.execution(tenant=OTHER_TENANT) for _ in range(3)))
    left = (await claim(world, limit=1)).left
    assert left is None or left == {TENANT, OTHER_TENANT}


async def test_a_tenant_that_had_nothing_waiting_saves_up_no_turns(world: World):
    await submit(world, *flood(world, 30))
    for _ in range(10):
        await taken(world, limit=1)
    await submit(world, *(world.build.execution(tenant=OTHER_TENANT) for _ in range(10)))
    tenants = [work.run.tenant_id for _ in range(6) for work in (await claim(world, limit=1)).executions]
    assert tenants.count(TENANT) == 3


async def test_higher_priority_goes_first_within_a_tenant(world: World):
    low, normal, high = [
        world.build.execution(priority=priority)
        for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH)
    ]
    await submit(world, low, normal, high)
    assert await taken(world, limit=10) == [one.run.execution_id for one in (high, normal, low)]


async def test_high_priority_takes_no_turn_of_another_tenant(world: World):
    await submit(world, *(world.build.execution(priority=Priority.HIGH) for _ in range(4)))
    await submit(
        world, *(world.build.execution(tenant=OTHER_TENANT, priority=Priority.LOW) for _ in range(4))
    )
    tenants = [work.run.tenant_id for work in (await claim(world, limit=4)).executions]
    assert (tenants.count(TENANT), tenants.count(OTHER_TENANT)) == (2, 2)


async def test_low_priority_that_waited_a_step_longer_goes_first(world: World):
    (low,) = await submit(world, world.build.execution(priority=Priority.LOW))
    await world.pass_time(AGING_STEP + MOMENT)
    (normal,) = await submit(world, world.build.execution())
    assert await taken(world, limit=1) == [low.run.execution_id]
    assert await taken(world, limit=1) == [normal.run.execution_id]


async def test_low_priority_that_waited_less_than_a_step_goes_behind(world: World):
    (low,) = await submit(world, world.build.execution(priority=Priority.LOW))
    await world.pass_time(AGING_STEP - MOMENT * 10)
    (normal,) = await submit(world, world.build.execution())
    assert await taken(world, limit=1) == [normal.run.execution_id]
    assert await taken(world, limit=1) == [low.run.execution_id]


async def test_what_must_run_alone_waits_and_the_other_tenant_goes_on(world: World):
    (poison,) = await submit(world, world.build.execution())
    await claim(world)
    await world.pass_time(timedelta(seconds=5))
    await world.leases.expire_leases(limit=10)
    await world.pass_time(timedelta(minutes=1))
    (other,) = await submit(world, world.build.execution(tenant=OTHER_TENANT))
    found = await world.leases.claim(
        session(), limit=5, alone=False, place=lambda works: [world.build.placement(one) for one in works]
    )
    assert [work.run.execution_id for work in found.executions] == [other.run.execution_id]
    assert await taken(world, limit=5) == [poison.run.execution_id]


async def test_a_run_deadline_is_never_passed_by_a_claim(world: World):
    life = timedelta(seconds=60)
    (work,) = await submit(world, world.build.execution(run_deadline=life))
    await world.pass_time(life)
    assert await taken(world, limit=1) == []
    (later,) = await submit(world, world.build.execution(run_deadline=life))
    await world.pass_time(life - MOMENT * 10)
    assert await taken(world, limit=1) == [later.run.execution_id]
    assert work.run.execution_id != later.run.execution_id

"""What operators scale nodes by: how much waits, and how long it has waited."""

from datetime import timedelta

from control_plane.queue_store import QueueGauge
from tests.fixtures.execution_worlds import PostgresWorld, claim, submit

MINUTE = timedelta(minutes=1)


async def test_the_age_is_that_of_the_oldest_claimable_execution(world: PostgresWorld) -> None:
    gauge = QueueGauge(world.database)
    assert (await gauge.depth(), await gauge.ages()) == (0, {})
    await submit(world, world.build.execution())
    await world.pass_time(MINUTE)
    (newer,) = await submit(world, world.build.execution())
    tenant = newer.run.tenant_id
    assert MINUTE <= (await gauge.ages())[tenant] < 2 * MINUTE
    assert await gauge.depth() == 2
    await claim(world, limit=1)
    assert await gauge.depth() == 1
    assert timedelta(0) < (await gauge.ages())[tenant] < MINUTE
    await claim(world)
    assert (await gauge.depth(), await gauge.ages()) == (0, {}), "what a node holds does not wait"

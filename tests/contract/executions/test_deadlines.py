"""An execution whose run deadline has passed is never started: the same by the fake and by Postgres."""

from datetime import timedelta

import pytest

from tests.fixtures.execution_worlds import World, claim, submit

LIFE = timedelta(minutes=1)
MOMENT = timedelta(seconds=10)


@pytest.mark.parametrize(("waited", "started"), [(LIFE - MOMENT, 1), (LIFE + MOMENT, 0)])
async def test_a_claim_passes_over_what_nobody_wants_any_more(
    world: World, waited: timedelta, started: int
) -> None:
    await submit(world, world.build.execution(run_deadline=LIFE))
    await submit(world, world.build.execution(run_deadline=timedelta(hours=1)))
    await world.pass_time(waited)
    claimed = await claim(world)
    assert len(claimed.executions) == 1 + started
    assert claimed.queue_empty, "what is past its deadline keeps nobody waiting"

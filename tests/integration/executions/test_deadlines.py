"""Run deadlines to the microsecond: within one transaction Postgres' time stands still."""

import pytest

from control_plane.executions.claim_sql import LOCK_CLAIMABLE, PAST_DEADLINE, claimable_arguments
from control_plane.executions.turns import Turns
from tests.builders.executions import node
from tests.fixtures.execution_worlds import PostgresWorld, submit


@pytest.mark.parametrize(("left_us", "started"), [(-1, 0), (0, 0), (1, 1)])
async def test_an_execution_whose_deadline_passed_is_not_claimed_and_is_swept(
    world: PostgresWorld, left_us: int, started: int
) -> None:
    (waiting,) = await submit(world, world.build.execution())
    async with world.database.driver() as connection, connection.transaction():
        await connection.execute(
            f"UPDATE executions SET run_deadline_at = now() + interval '{left_us} microseconds'"
        )
        arguments = claimable_arguments(node("one"), 10, Turns(), alone=True)
        claimed = [row["execution_id"] for row in await connection.fetch(LOCK_CLAIMABLE, *arguments)]
        swept = [row["execution_id"] for row in await connection.fetch(PAST_DEADLINE, 10)]
    mine = [waiting.run.execution_id]
    assert (claimed, swept) == ((mine, []) if started else ([], mine))

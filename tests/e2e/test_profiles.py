"""A profile from agent.toml to the receipt: metered, limited by fuel, the same on every node that offers it."""

import pytest

from shared.manifest import Profile
from shared.outcomes import LimitName
from tests.e2e.stack import running_stack

RUNS = 8


@pytest.mark.parametrize("profile", [Profile.DETERMINISTIC, Profile.PORTABLE])
async def test_an_agent_of_a_repeatable_profile_uses_the_same_fuel_on_every_node_that_offers_it(profile):
    async with running_stack(nodes=0) as stack:
        await stack.add_node()
        await stack.add_node()
        await stack.add_node(AF_NODE_PROFILES='["default"]')
        await stack.make_agent("counted", profile=profile)
        await stack.make_agent("bounded", profile=profile, limits="fuel = 1000")

        ended = [await stack.execute("counted", b"output 3") for _ in range(RUNS)]

        assert {output for _, output in ended} == {b"abc"}
        (fuel,) = {execution.resources_used.fuel for execution, _ in ended}
        assert fuel > 0
        last = await stack.get(await stack.submit("bounded", b"output 3"))
        last = await stack.wait_for_end(last.execution_id)
        assert (last.limit, last.resources_used.fuel) == (LimitName.FUEL, 1000)

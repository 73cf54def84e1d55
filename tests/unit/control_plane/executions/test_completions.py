"""Who waits is woken by results, by hints and by the poll, and nobody is forgotten."""

import asyncio

import pytest

from control_plane.executions.completions import Completions
from control_plane.executions.domain import ExecutionState
from shared.errors import ResourceExhaustedError
from shared.ids import ExecutionId
from tests.builders.executions import TENANT

ID = ExecutionId("exe_1")


class States:
    def __init__(self, **states):
        self.states = {ExecutionId(key): value for key, value in states.items()}
        self.asked = []

    async def states_of(self, execution_ids):
        self.asked.append(list(execution_ids))
        return {one: self.states[one] for one in execution_ids if one in self.states}


def is_told(watch):
    return watch._changed.is_set()


async def test_the_number_of_waiting_callers_is_bounded():
    completions = Completions(max_watches=1)
    with completions.watch(ID), pytest.raises(ResourceExhaustedError), completions.watch(ID):
        pass
    with completions.watch(ID):
        assert completions.waiting == 1
    assert completions.waiting == 0


async def test_an_empty_hint_wakes_everybody_and_a_named_one_only_its_own():
    completions = Completions()
    with completions.watch(ID) as one, completions.watch(ExecutionId("exe_2")) as other:
        completions.changed(["exe_2", "exe_unknown"])
        assert (is_told(one), is_told(other)) == (False, True)
        completions.changed([])
        assert is_told(one)


async def test_the_poll_wakes_only_those_whose_state_moved():
    completions = Completions()
    states = States(exe_1=ExecutionState.RUNNING)
    with completions.watch(ID) as watch:
        watch.seen = ExecutionState.RUNNING
        await completions.poll(states)
        assert not is_told(watch)
        states.states[ID] = ExecutionState.FAILED
        await completions.poll(states)
        assert is_told(watch)


async def test_a_result_that_arrives_before_the_caller_waits_is_not_lost(stack):
    item = stack.build.execution()
    placement = stack.build.placement(item)
    await stack.store.accept([item], [placement])
    with stack.completions.watch(item.run.execution_id) as watch:
        finished = await stack.finish(placement)
        async with asyncio.timeout(30):
            assert await watch.changed() == finished.execution
    assert (await stack.store.get(TENANT, item.run.execution_id)).state is ExecutionState.SUCCEEDED

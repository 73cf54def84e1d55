"""Many executions at once: each ends as if it had been alone."""

import asyncio
from contextlib import aclosing

from control_plane.executions.domain import ExecutionState, Outcome
from control_plane.executions.lifecycle import Execution
from shared.errors import (
    DatabaseUnavailableError,
    IdempotencyConflictError,
    NotFoundError,
    ResourceExhaustedError,
)
from tests.unit.control_plane.executions.conftest import BOUND_SECONDS, SUBJECT, ask


async def results_of(stack, requests, *, finish=True):
    """Run them while a node answers; the results by position."""
    results, done = {}, 0

    async def read():
        crowd = stack.crowd.execute(SUBJECT, requests, method="StreamExecutions")
        async with aclosing(crowd):
            async for position, result in crowd:
                assert position not in results
                results[position] = result

    reading = asyncio.ensure_future(read())
    async with asyncio.timeout(BOUND_SECONDS):
        while not reading.done():
            while finish and done < len(stack.placer.committed):
                await stack.finish(stack.placer.committed[done])
                done += 1
            await asyncio.sleep(0)
    reading.result()
    assert stack.completions.waiting == 0
    return results


async def test_all_are_stored_together_and_each_has_its_end(stack):
    results = await results_of(stack, [ask(f"r{number}") for number in range(5)])
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert {result.state for result in results.values()} == {ExecutionState.SUCCEEDED}
    assert len({result.execution_id for result in results.values()}) == 5


async def test_a_repeat_finds_its_execution_and_a_conflict_is_its_own(stack):
    first = (await results_of(stack, [ask("r1")]))[0]
    results = await results_of(stack, [ask("r1"), ask("r1", inline=b"other"), ask("r2")])
    assert results[0].execution_id == first.execution_id
    assert isinstance(results[1], IdempotencyConflictError)
    assert isinstance(results[2], Execution)


async def test_two_requests_of_one_crowd_with_one_id_are_one_execution(stack):
    results = await results_of(stack, [ask("r1"), ask("r1")])
    assert results[0].execution_id == results[1].execution_id


async def test_a_repeat_that_ends_early_does_not_wait_for_the_others(stack):
    await results_of(stack, [ask("done")])
    crowd = stack.crowd.execute(SUBJECT, [ask("runs"), ask("done")], method="StreamExecutions")
    async with aclosing(crowd), asyncio.timeout(BOUND_SECONDS):
        position, result = await anext(crowd)
    assert (position, result.state) == (1, ExecutionState.SUCCEEDED)


async def test_a_refused_one_and_an_agent_that_changed_end_no_other(stack):
    results = await results_of(stack, [ask("r1", agent="nobody"), ask("r2")])
    assert isinstance(results[0], NotFoundError)
    assert results[1].state is ExecutionState.SUCCEEDED


async def test_database_away_is_said_of_each(stack, monkeypatch):
    async def away(*_):
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(stack.store, "accept", away)
    results = await results_of(stack, [ask("r1"), ask("r2")], finish=False)
    assert {type(result) for result in results.values()} == {DatabaseUnavailableError}


async def test_a_hint_without_the_end_is_looked_up(stack):
    async def hint_instead_of_complete():
        await stack.until(lambda: stack.placer.committed)
        placement = stack.placer.committed[0]
        await stack.store.finish([stack.build.result(placement, Outcome.KILLED)])
        stack.completions.changed([placement.execution_id])

    hinting = asyncio.ensure_future(hint_instead_of_complete())
    results = await results_of(stack, [ask("r1")], finish=False)
    await hinting
    assert results[0].state is ExecutionState.KILLED


async def test_a_replica_with_too_many_callers_refuses_each_and_breaks_no_stream(stack):
    stack.completions._max_watches = 1
    results = await results_of(stack, [ask("r1", agent="nobody"), ask("r2"), ask("r3")], finish=False)
    assert [type(results[n]) for n in range(3)] == [
        NotFoundError,
        ResourceExhaustedError,
        ResourceExhaustedError,
    ]


async def test_a_bug_met_while_one_end_is_read_is_masked_and_ends_no_other(stack, monkeypatch):
    real = stack.store.get

    async def breaks(tenant_id, execution_id):
        if execution_id == stack.placer.committed[0].execution_id:
            raise RuntimeError("secret detail")
        return await real(tenant_id, execution_id)

    monkeypatch.setattr(stack.store, "get", breaks)

    async def hint():
        await stack.until(lambda: len(stack.placer.committed) == 2)
        for placement in stack.placer.committed:
            await stack.store.finish([stack.build.result(placement)])
        stack.completions.changed([one.execution_id for one in stack.placer.committed])

    hinting = asyncio.ensure_future(hint())
    results = await results_of(stack, [ask("r1"), ask("r2")], finish=False)
    await hinting
    assert sorted(type(one).__name__ for one in results.values()) == ["Execution", "InternalError"]

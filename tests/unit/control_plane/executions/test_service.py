"""What callers can ask for: run, wait, repeat, cancel, watch."""

import asyncio
from datetime import timedelta

import pytest

from control_plane.executions.domain import ExecutionState, Outcome, UploadQuota
from shared.errors import (
    ConflictError,
    DatabaseUnavailableError,
    IdempotencyConflictError,
    InvalidInputError,
    NotFoundError,
    PolicyDeniedError,
)
from shared.ids import BodyId
from shared.schemas import JsonSchema
from tests.builders.executions import CALLER, TENANT, session
from tests.unit.control_plane.executions.conftest import BOUND_SECONDS, SUBJECT, ask

DEPTH_SCHEMA = JsonSchema.from_object(
    {
        "type": "object",
        "properties": {"depth": {"type": "integer"}},
        "required": ["depth"],
        "additionalProperties": False,
    }
)


async def execute(stack, request=None):
    return await stack.service.execute(SUBJECT, request or ask(), method="Execute")


async def running(stack, request=None):
    """Start an Execute and return it with the placement that its node got."""
    count = len(stack.placer.committed)
    waiting = asyncio.ensure_future(execute(stack, request))
    await stack.until(lambda: len(stack.placer.committed) > count or waiting.done())
    return waiting, stack.placer.committed[-1]


async def answer(waiting):
    async with asyncio.timeout(BOUND_SECONDS):
        return await waiting


async def test_execute_answers_after_the_end_with_the_output(stack):
    waiting, placement = await running(stack)
    assert not waiting.done()

    await stack.finish(placement)

    execution = await answer(waiting)
    assert (execution.state, execution.output, execution.exit_code) == (
        ExecutionState.SUCCEEDED,
        b"output",
        0,
    )
    assert [one.number for one in execution.attempts] == [1]


async def test_guest_faults_are_answers_not_errors(stack):
    waiting, placement = await running(stack)
    await stack.finish(placement, Outcome.KILLED)
    execution = await answer(waiting)
    assert (execution.state, execution.limit) == (ExecutionState.KILLED, "wall_ms")


async def test_the_order_leaves_only_after_the_commit(stack):
    entered, gate = asyncio.Event(), asyncio.Event()
    accept = stack.store.accept

    async def slow(items, placements):
        entered.set()
        await gate.wait()
        return await accept(items, placements)

    stack.store.accept = slow
    waiting = asyncio.ensure_future(execute(stack))
    async with asyncio.timeout(BOUND_SECONDS):
        await entered.wait()
    assert (len(stack.placer.placed), stack.placer.committed) == (1, [])
    gate.set()
    await stack.until(lambda: stack.placer.committed)
    await stack.finish(stack.placer.committed[0])
    await answer(waiting)


async def test_the_caller_who_goes_away_leaves_an_execution_that_goes_on(stack):
    waiting, placement = await running(stack)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert stack.completions.waiting == 0

    await stack.finish(placement)
    again = await answer(execute(stack))

    assert (again.execution_id, again.state) == (placement.execution_id, ExecutionState.SUCCEEDED)


async def test_a_repeat_waits_for_the_same_execution(stack):
    first, placement = await running(stack)
    second = asyncio.ensure_future(execute(stack))
    await stack.until(lambda: stack.completions.waiting == 2)

    await stack.finish(placement)

    one, other = await answer(first), await answer(second)
    assert one.execution_id == other.execution_id == placement.execution_id
    assert len(stack.placer.committed) == 1


@pytest.mark.parametrize("changes", [{"inline": b"other"}, {"run_deadline": timedelta(minutes=1)}])
async def test_another_request_under_a_used_id_is_refused(stack, changes):
    await stack.service.submit(SUBJECT, ask(), method="Execute")
    with pytest.raises(IdempotencyConflictError):
        await execute(stack, ask(**changes))


async def test_submit_returns_at_once_and_a_repeat_finds_it(stack):
    stack.placer.slots = 0

    first = await stack.service.submit(SUBJECT, ask(), method="SubmitExecution")
    again = await stack.service.submit(SUBJECT, ask(), method="SubmitExecution")

    assert (first.state, again.execution_id) == (ExecutionState.PENDING, first.execution_id)
    assert stack.placer.woken == 1


async def test_what_another_replica_finished_is_read_after_its_hint(stack):
    waiting, placement = await running(stack)
    await stack.store.finish([stack.build.result(placement)])
    assert not waiting.done()

    stack.completions.changed([placement.execution_id])

    assert (await answer(waiting)).state is ExecutionState.SUCCEEDED


async def test_a_lost_hint_is_made_up_for_by_the_poll(stack):
    waiting, placement = await running(stack)
    await stack.store.finish([stack.build.result(placement)])

    await stack.completions.poll(stack.store)

    assert (await answer(waiting)).state is ExecutionState.SUCCEEDED


async def test_earlier_attempts_are_read_for_the_answer(stack):
    waiting, _ = await running(stack)
    stack.build.clock.advance(timedelta(seconds=60))
    await stack.store.expire_leases(limit=1)
    stack.build.clock.advance(timedelta(seconds=60))
    claimed = await stack.store.claim(
        session(), limit=1, place=lambda works: [stack.build.placement(works[0])]
    )
    await stack.finish(claimed.placements[0])

    execution = await answer(waiting)

    assert [one.number for one in execution.attempts] == [1, 2]


async def test_a_denial_is_recorded_with_its_reason_before_it_is_raised(stack):
    stack.policy.reason = "CAPABILITY_NOT_ALLOWED"

    with pytest.raises(PolicyDeniedError, match="CAPABILITY_NOT_ALLOWED"):
        await execute(stack)

    assert [one.reason for one in stack.store.denials] == ["CAPABILITY_NOT_ALLOWED"]
    (entry,) = stack.store.entries
    assert (entry.action, entry.result, entry.details["agent"]) == (
        "execution.denied",
        "POLICY_DENIED",
        "redact",
    )


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b'{"depth":"x","more":1}', ["input/depth", "input/more"]),
        (b"{}", ["input/depth"]),
        (b"[1]", ["input"]),
        (b"not json", []),
        (b'{"depth":' * 2000, []),
        (b'{"depth":1,"depth":"x"}', []),
    ],
    ids=["two fields", "nothing", "another kind", "no json", "deep", "twice"],
)
@pytest.mark.parametrize("way", ["inline", "uploaded", "crowd"])
async def test_an_input_that_breaks_its_schema_is_refused_field_by_field_and_changes_nothing(
    stack, content, fields, way
):
    stack.agents.input_schema = DEPTH_SCHEMA
    request = ask(inline=content)
    if way == "uploaded":
        body = stack.build.body(content)
        await stack.store.add_body(
            TENANT, body, quota=UploadQuota(owner=CALLER, max_bodies=9, max_bytes=1 << 20)
        )
        request = ask(inline=None, body_id=body.body_id)
    if way == "crowd":
        [(_, error)] = [one async for one in stack.crowd.execute(SUBJECT, [request], method="Execute")]
        assert isinstance(error, InvalidInputError)
    else:
        with pytest.raises(InvalidInputError) as caught:
            await execute(stack, request)
        error = caught.value
    assert [one.field for one in error.violations] == fields
    assert not stack.placer.placed
    assert not stack.store.entries


async def test_an_input_that_fits_its_schema_runs(stack):
    stack.agents.input_schema = DEPTH_SCHEMA
    waiting, placement = await running(stack, ask(inline=b'{"depth":1}'))
    await stack.finish(placement)
    assert (await answer(waiting)).state is ExecutionState.SUCCEEDED


async def test_policy_is_asked_about_the_caller_and_the_size_of_the_input(stack):
    await stack.service.submit(SUBJECT, ask(inline=b"x" * 10), method="Execute")
    (asked,) = stack.policy.asked
    assert (asked.subject, asked.agent, asked.input_bytes) == (SUBJECT, "redact", 10)


async def test_an_agent_that_changed_is_resolved_once_more(stack):
    stack.agents.remembered, stack.agents.current = 7, 1
    execution = await stack.service.submit(SUBJECT, ask(), method="Execute")
    assert execution.state is ExecutionState.PENDING


async def test_an_agent_that_keeps_changing_is_a_conflict(stack):
    stack.agents.remembered = stack.agents.current = 7
    with pytest.raises(ConflictError):
        await execute(stack)
    assert len(stack.placer.released) == len(stack.placer.placed) == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"agent": "nobody"}, NotFoundError),
        ({"inline": b"x" * 65_537}, InvalidInputError),
        ({"run_deadline": timedelta(days=2)}, InvalidInputError),
        ({"run_deadline": timedelta(seconds=-1)}, InvalidInputError),
        ({"inline": None, "body_id": BodyId("bod_unknown")}, NotFoundError),
    ],
)
async def test_requests_outside_their_bounds_are_refused(stack, changes, error):
    with pytest.raises(error):
        await execute(stack, ask(**changes))
    assert stack.placer.committed == []


async def test_postgres_away_gives_the_slot_back_and_promises_nothing(stack):
    async def away(items, placements):
        raise DatabaseUnavailableError("away")

    stack.store.accept = away
    with pytest.raises(DatabaseUnavailableError):
        await execute(stack)
    assert (stack.placer.slots, stack.placer.committed) == (8, [])


async def test_an_unknown_commit_is_resolved_with_the_placement_of_the_first_try(stack):
    accept, calls = stack.store.accept, []

    async def breaks_after_commit(items, placements):
        calls.append(placements)
        answers = await accept(items, placements)
        if len(calls) == 1:
            raise DatabaseUnavailableError("the connection broke after the commit")
        return answers

    stack.store.accept = breaks_after_commit
    waiting, placement = await running(stack)
    await stack.finish(placement)

    assert (await answer(waiting)).state is ExecutionState.SUCCEEDED
    assert calls[0] == calls[1]
    assert stack.placer.released == []


async def test_a_placement_of_a_superseded_session_is_given_back(stack):
    stack.store.sessions.clear()
    execution = await stack.service.submit(SUBJECT, ask(), method="Execute")
    assert (len(stack.placer.released), stack.placer.committed, stack.placer.woken) == (1, [], 1)
    assert (await stack.service.get(TENANT, execution.execution_id)).claimable_at is not None


async def test_cancelling_what_waits_ends_it_and_answers_who_waits(stack):
    stack.placer.slots = 0
    waiting = asyncio.ensure_future(execute(stack))
    await stack.until(lambda: stack.placer.woken)
    execution_id = stack.store.entries[0].subject

    cancelled = await stack.service.cancel(SUBJECT, execution_id)

    assert cancelled.state is ExecutionState.CANCELLED
    assert (await answer(waiting)).state is ExecutionState.CANCELLED


async def test_cancelling_what_runs_tells_its_node(stack):
    waiting, placement = await running(stack)

    execution = await stack.service.cancel(SUBJECT, placement.execution_id)
    assert (execution.cancel_requested, [one.attempt for one in stack.placer.cancelled]) == (
        True,
        [placement.attempt],
    )
    await stack.finish(placement, Outcome.CANCELLED)

    assert (await answer(waiting)).state is ExecutionState.CANCELLED


async def test_a_watcher_sees_every_state_and_the_end_closes(stack):
    _, placement = await running(stack)
    seen = []

    async def follow():
        async for execution in stack.service.watch(TENANT, placement.execution_id):
            seen.append(execution.state)  # noqa: PERF401 - read by the test while it grows

    following = asyncio.ensure_future(follow())
    await stack.until(lambda: len(seen) == 1)
    await stack.store.start([placement.attempt])
    stack.completions.changed([])
    await stack.until(lambda: len(seen) == 2)
    await stack.finish(placement)
    await answer(following)

    assert seen == [ExecutionState.PENDING, ExecutionState.RUNNING, ExecutionState.SUCCEEDED]


async def test_a_page_above_the_bound_is_refused(stack):
    with pytest.raises(InvalidInputError):
        await stack.service.list(TENANT, agent_name="", states=[], page_size=501, page_token="")
    with pytest.raises(InvalidInputError):
        await stack.service.list(TENANT, agent_name="", states=[], page_size=1, page_token="nonsense")

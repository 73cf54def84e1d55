"""Questions of host calls: numbered, bounded, asked again after a session, answered in any order."""

import asyncio
from datetime import timedelta

import pytest
from agentfactory.v1 import nodes_pb2

from data_plane.orders.domain import AttemptRef
from data_plane.session.host_calls import MAX_OPEN_QUESTIONS, MAX_QUESTIONS_AT_ONCE, HostCallRelay
from shared.errors import HostCallRefusedError, MalformedError, UnavailableError
from shared.ids import ExecutionId

ATTEMPT = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=2, fencing_token=3)


class Line:
    """A relay and the session that is open, in the hands of a test."""

    def __init__(self, **options) -> None:
        self.woken = 0
        self.relay = HostCallRelay(wake=self._wake, **options)

    def _wake(self) -> None:
        self.woken += 1

    async def ask(self, *works) -> list[asyncio.Task]:
        tasks = [asyncio.ensure_future(work) for work in works]
        await asyncio.sleep(0)
        return tasks

    def sent(self) -> list[nodes_pb2.HostCall]:
        return [one.host_call for one in self.relay.next_questions()]

    def value(self, number: int, value: bytes | None) -> None:
        answer = nodes_pb2.KvValue(found=value is not None, value=value or b"")
        self.relay.answered(nodes_pb2.HostReply(number=number, kv_value=answer))

    def deny(self, number: int, reason: str) -> None:
        denied = nodes_pb2.HostCallDenied(reason=reason)
        self.relay.answered(nodes_pb2.HostReply(number=number, denied=denied))


@pytest.fixture
def line() -> Line:
    return Line()


async def test_questions_name_attempt_and_key_and_are_numbered(line):
    await line.ask(line.relay.get(ATTEMPT, "a"), line.relay.declare(ATTEMPT))
    first, second = line.sent()
    assert (first.number, first.kv_get.key, second.number) == (1, "a", 2)
    assert second.WhichOneof("call") == "unsafe_intent"
    for call in (first, second):
        named = call.attempt
        assert (named.execution_id, named.attempt_number, named.fencing_token) == ("exe_1", 2, 3)
    assert (line.woken, line.sent()) == (2, [])


async def test_answers_come_in_any_order(line):
    tasks = await line.ask(*(line.relay.get(ATTEMPT, key) for key in "abc"))
    line.value(3, b"c")
    line.value(1, None)
    line.value(2, b"")
    assert await asyncio.gather(*tasks) == [None, b"", b"c"]


async def test_an_intent_is_on_record_only_when_its_own_answer_says_so(line):
    (task,) = await line.ask(line.relay.declare(ATTEMPT))
    line.relay.answered(
        nodes_pb2.HostReply(number=1, unsafe_intent_recorded=nodes_pb2.UnsafeIntentRecorded())
    )
    assert await task is None


async def test_the_answer_to_another_question_lets_no_call_leave(line):
    (task,) = await line.ask(line.relay.declare(ATTEMPT))
    line.value(1, b"x")
    with pytest.raises(UnavailableError):
        await task


async def test_a_refusal_names_its_reason(line):
    (task,) = await line.ask(line.relay.declare(ATTEMPT))
    line.deny(1, "LEASE_NOT_HELD")
    with pytest.raises(HostCallRefusedError) as refused:
        await task
    assert refused.value.refusal == "LEASE_NOT_HELD"


async def test_a_control_plane_without_its_database_is_unavailable(line):
    (task,) = await line.ask(line.relay.get(ATTEMPT, "a"))
    line.deny(1, "UNAVAILABLE")
    with pytest.raises(UnavailableError):
        await task


async def test_open_questions_are_asked_again_on_the_next_session_and_answered_ones_are_not(line):
    tasks = await line.ask(*(line.relay.get(ATTEMPT, key) for key in "ab"))
    assert [one.number for one in line.sent()] == [1, 2]
    line.value(1, b"x")
    await tasks[0]

    line.relay.restart()

    assert [(one.number, one.kv_get.key) for one in line.sent()] == [(2, "b")]
    line.value(2, b"y")
    assert await tasks[1] == b"y"


async def test_a_second_answer_is_dropped(line):
    (task,) = await line.ask(line.relay.get(ATTEMPT, "a"))
    line.value(1, b"x")
    line.value(1, b"y")
    assert await task == b"x"
    line.value(1, b"z")


async def test_a_run_that_is_stopped_takes_its_question_back(line):
    (task,) = await line.ask(line.relay.get(ATTEMPT, "a"))
    task.cancel()
    await asyncio.wait({task})
    line.relay.restart()
    assert line.sent() == []


async def test_no_more_questions_are_open_than_the_bound(line):
    tasks = await line.ask(*(line.relay.get(ATTEMPT, "a") for _ in range(MAX_OPEN_QUESTIONS)))
    with pytest.raises(HostCallRefusedError) as refused:
        await line.relay.get(ATTEMPT, "a")
    assert refused.value.refusal == "TOO_MANY_HOST_CALLS"
    line.value(1, b"x")
    await tasks[0]
    (one_more,) = await line.ask(line.relay.get(ATTEMPT, "a"))
    assert not one_more.done()
    for task in (*tasks, one_more):
        task.cancel()


async def test_questions_leave_the_stream_free_for_others_now_and_then(line):
    tasks = await line.ask(*(line.relay.get(ATTEMPT, "a") for _ in range(MAX_QUESTIONS_AT_ONCE + 1)))
    assert [len(line.sent()), len(line.sent()), len(line.sent())] == [MAX_QUESTIONS_AT_ONCE, 1, 0]
    for task in tasks:
        task.cancel()


async def test_an_answer_that_never_comes_ends_the_question():
    line = Line(answer_within=timedelta(milliseconds=10))
    with pytest.raises(UnavailableError):
        await line.relay.get(ATTEMPT, "a")
    line.relay.restart()
    assert line.sent() == []


@pytest.mark.parametrize(
    "reply",
    [
        nodes_pb2.HostReply(number=1),
        nodes_pb2.HostReply(number=1, kv_value=nodes_pb2.KvValue(found=True, value=b"x" * 65_537)),
        *(
            nodes_pb2.HostReply(number=1, denied=nodes_pb2.HostCallDenied(reason=reason))
            for reason in ("", "lease not held", "LEASE\n", "É", "A" * 65)
        ),
    ],
)
async def test_what_is_no_answer_ends_the_session(line, reply):
    with pytest.raises(MalformedError):
        line.relay.answered(reply)

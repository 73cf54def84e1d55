"""Asks the control plane what host calls need: one question, one answer, over all sessions of the node.

A question that has no answer when a session ends is asked again on the next one; repeats are harmless there.
Judges no host call.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from agentfactory.v1 import nodes_pb2

from data_plane.orders.domain import AttemptRef
from data_plane.session.convert import attempt_to_proto
from shared.errors import HostCallRefusedError, MalformedError, UnavailableError

MAX_OPEN_QUESTIONS: Final = 256
"""Of all guests of the node together; one more is refused. A control plane takes as many of one session."""

ANSWER_DEADLINE: Final = timedelta(seconds=30)
"""For an answer, over as many sessions as it takes. A run's own limits end it sooner nearly always."""

MAX_QUESTIONS_AT_ONCE: Final = 32
"""Written before heartbeats, renewals and receipts get their turn again."""

MAX_VALUE_BYTES: Final = 64 * 1024
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
"""It goes into a receipt, which nobody could read with anything else in it."""
_UNAVAILABLE: Final = "UNAVAILABLE"


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    request: nodes_pb2.SessionRequest
    answer: "asyncio.Future[nodes_pb2.HostReply]"


class HostCallRelay:
    """A `KvStore` and an `UnsafeIntents`. Used from one event loop.

    `wake` tells the session that is open that there is something to write.
    """

    def __init__(self, *, wake: Callable[[], None], answer_within: timedelta = ANSWER_DEADLINE) -> None:
        self._wake = wake
        self._answer_within = answer_within
        self._asked = 0
        self._open: OrderedDict[int, _Question] = OrderedDict()
        self._unsent: OrderedDict[int, None] = OrderedDict()

    async def get(self, attempt: AttemptRef, key: str) -> bytes | None:
        """See `KvStore.get`."""
        call = nodes_pb2.HostCall(attempt=attempt_to_proto(attempt), kv_get=nodes_pb2.KvGet(key=key))
        reply = await self._ask(call, answer="kv_value")
        return reply.kv_value.value if reply.kv_value.found else None

    async def declare(self, attempt: AttemptRef) -> None:
        """See `UnsafeIntents.declare`."""
        call = nodes_pb2.HostCall(attempt=attempt_to_proto(attempt), unsafe_intent=nodes_pb2.UnsafeIntent())
        await self._ask(call, answer="unsafe_intent_recorded")

    # --- for the session

    def restart(self) -> None:
        """A new stream has begun: every open question is asked again, the oldest first."""
        self._unsent = OrderedDict.fromkeys(self._open)
        if self._unsent:
            self._wake()

    def next_questions(self) -> list[nodes_pb2.SessionRequest]:
        """Return the questions to write now, possibly none, and count them as sent."""
        numbers = [
            self._unsent.popitem(last=False)[0] for _ in range(min(len(self._unsent), MAX_QUESTIONS_AT_ONCE))
        ]
        return [self._open[number].request for number in numbers]

    def answered(self, reply: nodes_pb2.HostReply) -> None:
        """Pass an answer on; one that nobody waits for any more is dropped.

        Raises:
            MalformedError: It is no answer that a node can read.
        """
        if reply.WhichOneof("reply") is None:
            raise MalformedError(f"answer {reply.number} to a host call is of an unknown kind")
        if len(reply.kv_value.value) > MAX_VALUE_BYTES:
            raise MalformedError(f"answer {reply.number} holds a value of {len(reply.kv_value.value)} bytes")
        if reply.WhichOneof("reply") == "denied" and not _REASON.fullmatch(reply.denied.reason):
            raise MalformedError(f"answer {reply.number} denies a host call without a plain reason")
        question = self._open.get(reply.number)
        if question is not None and not question.answer.done():
            question.answer.set_result(reply)

    # --- inside

    async def _ask(self, call: nodes_pb2.HostCall, *, answer: str) -> nodes_pb2.HostReply:
        if len(self._open) >= MAX_OPEN_QUESTIONS:
            raise HostCallRefusedError(
                f"{MAX_OPEN_QUESTIONS} host calls of this node wait for the control plane already",
                refusal="TOO_MANY_HOST_CALLS",
            )
        self._asked += 1
        number = call.number = self._asked
        question = _Question(
            nodes_pb2.SessionRequest(host_call=call), asyncio.get_running_loop().create_future()
        )
        self._open[number] = question
        self._unsent[number] = None
        self._wake()
        try:
            async with asyncio.timeout(self._answer_within.total_seconds()):
                reply = await question.answer
        except TimeoutError as error:
            raise UnavailableError(
                f"the control plane did not answer a host call in {self._answer_within.total_seconds():g} s"
            ) from error
        finally:
            del self._open[number]
            self._unsent.pop(number, None)
        return _expected(reply, answer)


def _expected(reply: nodes_pb2.HostReply, answer: str) -> nodes_pb2.HostReply:
    kind = reply.WhichOneof("reply")
    if kind == answer:
        return reply
    reason = reply.denied.reason
    if kind != "denied" or reason == _UNAVAILABLE:
        raise UnavailableError("the control plane has no answer to a host call now")
    raise HostCallRefusedError(f"the control plane refuses a host call: {reason}", refusal=reason)

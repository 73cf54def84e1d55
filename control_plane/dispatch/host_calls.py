"""Answers what running guests ask through their nodes: a committed value, or that an unsafe call is noted.

Postgres says whether the node holds the attempt's live lease (rule 6). Questions of one moment share a
statement; nothing here keeps the stream from being read, or waits for a node.
"""

from typing import Final, NoReturn

from agentfactory.v1 import nodes_pb2

from control_plane.database.group_commit import GroupCommit
from control_plane.dispatch.background import Background
from control_plane.dispatch.leases import ref_of
from control_plane.dispatch.retry import retrying
from control_plane.dispatch.session import LiveSession
from control_plane.executions.domain import AttemptRef, UnsafeCall
from control_plane.executions.ports import LeaseStore
from control_plane.kv.domain import KvAnswer, KvDenial, KvRead
from control_plane.kv.ports import KvReader
from shared.errors import UnavailableError

MAX_OPEN_HOST_CALLS: Final = 256
"""Questions of one session that are not answered yet; one more is denied at once."""
MAX_READS_AT_ONCE: Final = 64
"""Values of one query: 4 MiB at most."""
MAX_WAITING: Final = 4096
"""Questions of all sessions that wait for Postgres; nodes take turns beyond it."""
MAX_ATTEMPT_NUMBER: Final = 2**31 - 1
MAX_FENCING_TOKEN: Final = 2**63 - 1

_TOO_MANY: Final = "TOO_MANY_HOST_CALLS"
_UNAVAILABLE: Final = "UNAVAILABLE"
_INVALID: Final = "INVALID_KEY"


class HostCallDesk:
    """The part of dispatch that answers host calls."""

    def __init__(self, *, kv: KvReader, leases: LeaseStore, background: Background) -> None:
        self._background = background
        self._reads = GroupCommit[KvRead, KvAnswer](
            kv.read,
            size_of=lambda read: len(read.key),
            lane_of=lambda read: read.node_id,
            max_items=MAX_READS_AT_ONCE,
            max_waiting=MAX_WAITING,
        )
        self._intents = GroupCommit[UnsafeCall, bool](
            leases.declare_unsafe,
            size_of=lambda _: 1,
            lane_of=lambda call: call.node_id,
            max_waiting=MAX_WAITING,
        )

    async def read_loop(self) -> NoReturn:
        """Answer questions for values. Never returns."""
        await self._reads.run()

    async def intent_loop(self) -> NoReturn:
        """Put unsafe calls on record. Never returns."""
        await self._intents.run()

    def take(self, session: LiveSession, call: nodes_pb2.HostCall) -> None:
        """Have a question answered; the answer names its number, and may come after later ones."""
        if session.open_host_calls >= MAX_OPEN_HOST_CALLS:
            session.answer(_denied(call, _TOO_MANY))
            return
        session.open_host_calls += 1
        self._background.spawn(self._answer(session, call), name="answer a host call")

    async def _answer(self, session: LiveSession, call: nodes_pb2.HostCall) -> None:
        try:
            reply = await self._reply_to(session, call)
        except UnavailableError:
            reply = _denied(call, _UNAVAILABLE)
        finally:
            session.open_host_calls -= 1
        session.answer(reply)

    async def _reply_to(self, session: LiveSession, call: nodes_pb2.HostCall) -> nodes_pb2.SessionResponse:
        attempt = ref_of(call.attempt)
        if not _can_be(attempt):
            return _denied(call, KvDenial.LEASE_NOT_HELD)
        if call.WhichOneof("call") == "unsafe_intent":
            intent = UnsafeCall(node_id=session.node_id, attempt=attempt)
            if not await retrying(lambda: self._intents.submit(intent), what="record an unsafe call"):
                return _denied(call, KvDenial.LEASE_NOT_HELD)
            return _reply(call.number, unsafe_intent_recorded=nodes_pb2.UnsafeIntentRecorded())
        if "\0" in call.kv_get.key:  # which no text of Postgres can hold
            return _denied(call, _INVALID)
        read = KvRead(
            node_id=session.node_id,
            execution_id=attempt.execution_id,
            attempt_number=attempt.attempt_number,
            fencing_token=attempt.fencing_token,
            key=call.kv_get.key,
        )
        answer = await retrying(lambda: self._reads.submit(read), what="read a value")
        if answer.denial is not None:
            return _denied(call, answer.denial)
        value = nodes_pb2.KvValue(found=answer.value is not None, value=answer.value or b"")
        return _reply(call.number, kv_value=value)


def _can_be(attempt: AttemptRef) -> bool:
    """Whether Postgres could name it: one that it cannot would fail the questions beside it."""
    return (
        "\0" not in attempt.execution_id
        and attempt.attempt_number <= MAX_ATTEMPT_NUMBER
        and attempt.fencing_token <= MAX_FENCING_TOKEN
    )


def _denied(call: nodes_pb2.HostCall, reason: str) -> nodes_pb2.SessionResponse:
    return _reply(call.number, denied=nodes_pb2.HostCallDenied(reason=reason))


def _reply(
    number: int,
    *,
    kv_value: nodes_pb2.KvValue | None = None,
    unsafe_intent_recorded: nodes_pb2.UnsafeIntentRecorded | None = None,
    denied: nodes_pb2.HostCallDenied | None = None,
) -> nodes_pb2.SessionResponse:
    reply = nodes_pb2.HostReply(
        number=number, kv_value=kv_value, unsafe_intent_recorded=unsafe_intent_recorded, denied=denied
    )
    return nodes_pb2.SessionResponse(host_reply=reply)

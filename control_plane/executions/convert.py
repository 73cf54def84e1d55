"""Proto to domain and back."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from agentfactory.v1 import executions_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.executions.domain import AttemptState, BodyKind, ExecutionState, Priority
from control_plane.executions.lifecycle import Attempt, Execution
from control_plane.executions.service import RunRequest
from shared.errors import AgentFactoryError, InvalidInputError
from shared.ids import BODY, EXECUTION, ExecutionId, parse_id
from shared.resources import resources_to_proto
from shared.rpc.status import status_of

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_STATES: Final = {
    state: executions_pb2.ExecutionState.Value(f"EXECUTION_STATE_{state.name}") for state in ExecutionState
}
_STATES_BACK: Final[dict[int, ExecutionState]] = {number: state for state, number in _STATES.items()}
_ATTEMPT_STATES: Final = {
    state: executions_pb2.AttemptState.Value(f"ATTEMPT_STATE_{state.name}") for state in AttemptState
}
_PRIORITIES: Final[dict[int, Priority]] = {
    executions_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    executions_pb2.PRIORITY_LOW: Priority.LOW,
    executions_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    executions_pb2.PRIORITY_HIGH: Priority.HIGH,
}
_BODY_KINDS: Final[dict[int, BodyKind]] = {
    executions_pb2.BodyKind.Value(f"BODY_KIND_{kind.name}"): kind for kind in BodyKind
}


def execution_id_from_proto(text: str) -> ExecutionId:
    """Return a request's execution id.

    Raises:
        InvalidInputError: It is not one.
    """
    return parse_id(EXECUTION, text)


def states_from_proto(numbers: Sequence[int]) -> list[ExecutionState]:
    """Return the states of a filter.

    Raises:
        InvalidInputError: One of them is unknown or unspecified.
    """
    try:
        return [_STATES_BACK[number] for number in numbers]
    except KeyError as error:
        raise InvalidInputError(f"{error.args[0]} is not a state of an execution") from error


def body_kind_from_proto(number: int) -> BodyKind:
    """Return which body is meant.

    Raises:
        InvalidInputError: It is unknown or unspecified.
    """
    if number not in _BODY_KINDS:
        raise InvalidInputError(f"{number} is not a kind of body")
    return _BODY_KINDS[number]


def request_from_proto(message: executions_pb2.ExecutionRequest, *, traceparent: str = "") -> RunRequest:
    """Return what a caller asks for; `traceparent` is the call's own, for a request that names none.

    Raises:
        InvalidInputError: The body id is not one, or the priority is unknown.
    """
    if message.priority not in _PRIORITIES:
        raise InvalidInputError(f"{message.priority} is not a priority")
    uploaded = message.WhichOneof("input") == "body_id"
    return RunRequest(
        agent=message.agent,
        request_id=message.request_id,
        inline=None if uploaded else message.inline,
        body_id=parse_id(BODY, message.body_id) if uploaded else None,
        run_deadline=message.run_deadline.ToTimedelta() if message.HasField("run_deadline") else None,
        traceparent=message.traceparent or traceparent,
        priority=_PRIORITIES[message.priority],
    )


def execution_to_proto(execution: Execution) -> executions_pb2.Execution:
    """Return an execution as callers see it."""
    message = executions_pb2.Execution(
        execution_id=execution.execution_id,
        agent_id=execution.agent_id,
        agent_name=execution.agent_name,
        template_digest=execution.template_digest,
        caller=execution.caller,
        state=_STATES[execution.state],
        cancel_requested=execution.cancel_requested,
        exit_code=execution.exit_code or 0,
        limit=execution.limit or "",
        trap=execution.trap or "",
        reason=execution.reason or "",
        receipt_id=execution.receipt_id or "",
        decision_id=execution.decision_id,
        attempts=[_attempt_to_proto(attempt) for attempt in execution.attempts],
        input_commitment=execution.input_commitment,
        input_bytes=execution.input_bytes,
        output_commitment=execution.output_commitment or "",
        output_bytes=execution.output_bytes,
        log_bytes=execution.log_bytes,
        recording_bytes=execution.recording_bytes,
        media_type=execution.media_type,
        output=execution.output or b"",
        pending_reason=execution.pending_reason,
        created_at=_timestamp(execution.created_at),
        started_at=_timestamp(execution.started_at),
        ended_at=_timestamp(execution.ended_at),
    )
    if execution.resources_used is not None:
        message.resources_used.CopyFrom(resources_to_proto(execution.resources_used))
    return message


def error_to_proto(error: AgentFactoryError) -> executions_pb2.ExecutionError:
    """Return a refusal of one request on a stream, with what a failed RPC would carry."""
    message = executions_pb2.ExecutionError(
        code=status_of(error).value[0], reason=error.reason, message=str(error), hint=error.hint or ""
    )
    if error.retry_after is not None:
        message.retry_after.FromTimedelta(error.retry_after)
    return message


def _attempt_to_proto(attempt: Attempt) -> executions_pb2.Attempt:
    return executions_pb2.Attempt(
        number=attempt.number,
        node_id=attempt.node_id,
        fencing_token=attempt.fencing_token,
        state=_ATTEMPT_STATES[attempt.state],
        order_id=attempt.order_id,
        receipt_id=attempt.receipt_id or "",
        leased_at=_timestamp(attempt.leased_at),
        started_at=_timestamp(attempt.started_at),
        ended_at=_timestamp(attempt.ended_at),
        reason=attempt.reason or "",
    )


def _timestamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    # By hand: `Timestamp.FromDatetime` costs three times as much, and an execution has six of them.
    since = at - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)

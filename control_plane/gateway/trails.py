"""Requests as spans. What comes from outside as trace context is read here, and nowhere behind."""

from typing import Any, Final

from agentfactory.v1 import executions_pb2
from google.protobuf.message import Message
from starlette.types import Scope

from shared.telemetry import HEADER, MAX_HEADER_CHARS, read_traceparent
from shared.tracing import UNTRACED, SpanKind, Tracer, Trail

SERVER_ERRORS: Final = 500
NO_ROUTE: Final = "none"

_HEADER: Final = HEADER.encode()
_TRAIL: Final = "af_trail"
_GOOD_OR_OPEN: Final = frozenset(
    {
        executions_pb2.EXECUTION_STATE_UNSPECIFIED,
        executions_pb2.EXECUTION_STATE_PENDING,
        executions_pb2.EXECUTION_STATE_RUNNING,
        executions_pb2.EXECUTION_STATE_SUCCEEDED,
    }
)


def begin_trail(tracer: Tracer, scope: Scope) -> Trail:
    """Begin the trail of a request, and have its handler pass on where it belongs.

    A `traceparent` that is wrong, too long or there twice is taken away: it is never an error.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    found = [value for name, value in headers if name == _HEADER]
    incoming = ""
    if len(found) == 1 and len(found[0]) <= MAX_HEADER_CHARS:
        read = read_traceparent(found[0].decode("latin-1"))
        incoming = "" if read is None else str(read)
    trail = tracer.begin("", incoming, kind=SpanKind.SERVER)
    passed_on = trail.traceparent or incoming
    if found or passed_on:
        kept = [header for header in headers if header[0] != _HEADER]
        scope["headers"] = [*kept, (_HEADER, passed_on.encode())] if passed_on else kept
    scope[_TRAIL] = trail
    return trail


def note_outcome(scope: Scope, answer: Message) -> None:
    """Look whether the answer is an execution that did not succeed: its request is kept too."""
    trail: Trail = scope.get(_TRAIL, UNTRACED)
    execution: Any = getattr(answer, "execution", None)
    if trail is UNTRACED or not isinstance(execution, executions_pb2.Execution):
        return
    trail.note(execution_id=execution.execution_id)
    if execution.state not in _GOOD_OR_OPEN:
        scope["af_failed"] = executions_pb2.ExecutionState.Name(execution.state)


def end_trail(trail: Trail, scope: Scope, *, name: str, status: int) -> None:
    """The answer is out, or its reader has gone."""
    if trail is UNTRACED:
        return
    trail.name = f"{scope['method'][:16]} {name or NO_ROUTE}"
    failed = scope.get("af_failed") or (str(status) if status >= SERVER_ERRORS else "")
    trail.end(failed=failed, status=status)

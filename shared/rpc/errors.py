"""Errors on the wire, both ways: a typed error to a gRPC status with reason and hint, and back.

The status carries a `google.rpc.ErrorInfo` (domain ``agentfactory``, the class's reason, the hint as
metadata) and, where the error knows it, a `google.rpc.RetryInfo` (when to come again) and a
`google.rpc.BadRequest` (what is wrong field by field); packed as `google.rpc.Status` in the trailing metadata
that every gRPC library knows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # it ships no stubs
    code_pb2,
    error_details_pb2,
    status_pb2,
)

from shared import errors
from shared.errors import AgentFactoryError, FieldViolation
from shared.rpc.status import status_of

ERROR_DOMAIN: Final = "agentfactory"
DETAILS_KEY: Final = "grpc-status-details-bin"
HINT_KEY: Final = "hint"

MAX_MESSAGE_CHARS: Final = 1024
"""A message on the wire is cut here: headers have a bound, and a message never carries a body."""

MAX_VIOLATIONS_BYTES: Final = 3 * 1024
"""Of what is wrong field by field, for the same reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireError:
    """What a failed RPC sends."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def wire_error(error: AgentFactoryError) -> WireError:
    """Return the status, message and trailing metadata for a typed error."""
    code = status_of(error)
    message = str(error)[:MAX_MESSAGE_CHARS]
    info = error_details_pb2.ErrorInfo(domain=ERROR_DOMAIN, reason=error.reason)
    if error.hint:
        info.metadata[HINT_KEY] = error.hint
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        status.details.add().Pack(retry)
    if error.violations:
        status.details.add().Pack(_bad_request(error.violations))
    return WireError(
        code=code, message=message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),)
    )


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    """Return as many as headers carry; the message says how many there are."""
    answer, left = error_details_pb2.BadRequest(), MAX_VIOLATIONS_BYTES
    for violation in violations:
        left -= len(violation.field.encode()) + len(violation.description.encode())
        if left < 0:
            break
        answer.field_violations.add(field=violation.field, description=violation.description)
    return answer


class RemoteError(AgentFactoryError):
    """The peer failed with a reason that this build does not know, or with a bare gRPC status."""

    reason = "REMOTE"

    def __init__(
        self, message: str, *, code: grpc.StatusCode, remote_reason: str, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.remote_reason = remote_reason


def error_of(error: grpc.RpcError) -> AgentFactoryError:
    """Return the typed error a failed RPC stands for, with the peer's reason, message and hint.

    A status without our details becomes `UnavailableError` (UNAVAILABLE), `DeadlineExceededError`,
    `UnauthenticatedError`, or else `RemoteError`. Never raises.
    """
    code = error.code()
    message = error.details() or f"the call failed with {code.name}"
    details = _details_of(error)
    if details is None:
        return _bare_error(code, message)
    info, retry_after = details.info, details.retry_after
    hint = info.metadata.get(HINT_KEY)
    kind = _by_reason().get(info.reason)
    if kind is None:
        unknown = RemoteError(message, code=code, remote_reason=info.reason, hint=hint)
        unknown.retry_after, unknown.violations = retry_after, details.violations
        return unknown
    # Without the class's own __init__, which may want more: the message has its number already.
    typed = kind.__new__(kind)
    AgentFactoryError.__init__(typed, message, hint=hint, retry_after=retry_after)
    typed.violations = details.violations
    return typed


def typed_error(error: BaseException) -> AgentFactoryError | None:
    """Return the typed error that an exception is, or the first in the groups that task groups raise."""
    if isinstance(error, AgentFactoryError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for one in error.exceptions if (found := typed_error(one)) is not None), None)
    return None


def reason_of(error: AgentFactoryError) -> str:
    """Return the machine-readable reason, the peer's own for a `RemoteError`."""
    return error.remote_reason if isinstance(error, RemoteError) else error.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Details:
    info: Any
    retry_after: timedelta | None
    violations: tuple[FieldViolation, ...]


def _details_of(error: grpc.RpcError) -> _Details | None:
    """Return what a peer of ours says beside status and message; None: it is none of ours."""
    metadata: Any = error.trailing_metadata()
    packed = [value for key, value in metadata or () if key == DETAILS_KEY and isinstance(value, bytes)]
    found: error_details_pb2.ErrorInfo | None = None
    retry_after: timedelta | None = None
    violations: tuple[FieldViolation, ...] = ()
    try:
        for detail in (one for value in packed for one in status_pb2.Status.FromString(value).details):
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            wrong = error_details_pb2.BadRequest()
            if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
                found = info
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta()
            elif detail.Unpack(wrong):
                violations = tuple(
                    FieldViolation(field=one.field, description=one.description)
                    for one in wrong.field_violations
                )
    except DecodeError:
        return None
    return found and _Details(info=found, retry_after=retry_after, violations=violations)


def _bare_error(code: grpc.StatusCode, message: str) -> AgentFactoryError:
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.UnavailableError(message)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceededError(message)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return errors.UnauthenticatedError(message)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.ResourceExhaustedError(message)
    name = code_pb2.Code.Name(code.value[0]) if code.value[0] in code_pb2.Code.values() else code.name
    return RemoteError(message, code=code, remote_reason=name)


_reasons: dict[str, type[AgentFactoryError]] = {}


def _by_reason() -> dict[str, type[AgentFactoryError]]:
    if not _reasons:
        _reasons.update({kind.reason: kind for kind in all_errors(AgentFactoryError)})
    return _reasons


def all_errors(base: type[AgentFactoryError]) -> Iterator[type[AgentFactoryError]]:
    """Yield every subclass of `base`, itself left out."""
    for kind in base.__subclasses__():
        yield kind
        yield from all_errors(kind)

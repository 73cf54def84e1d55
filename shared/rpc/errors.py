"""Errors on the wire, both ways: a typed error to a gRPC status with reason and hint, and back.

The status carries a `google.rpc.ErrorInfo` (domain ``agentfactory``, the class's reason, the hint as
metadata) and, where the error knows when to come again, a `google.rpc.RetryInfo`; packed as
`google.rpc.Status` in the trailing metadata that every gRPC library knows.
"""

from collections.abc import Iterator
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
from shared.errors import AgentFactoryError
from shared.rpc.status import status_of

ERROR_DOMAIN: Final = "agentfactory"
DETAILS_KEY: Final = "grpc-status-details-bin"
HINT_KEY: Final = "hint"

MAX_MESSAGE_CHARS: Final = 1024
"""A message on the wire is cut here: headers have a bound, and a message never carries a body."""


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
    return WireError(
        code=code, message=message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),)
    )


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
    info, retry_after = _details_of(error)
    if info is None:
        return _bare_error(code, message)
    hint = info.metadata.get(HINT_KEY)
    kind = _by_reason().get(info.reason)
    if kind is None:
        unknown = RemoteError(message, code=code, remote_reason=info.reason, hint=hint)
        unknown.retry_after = retry_after
        return unknown
    # Without the class's own __init__, which may want more: the message has its number already.
    typed = kind.__new__(kind)
    AgentFactoryError.__init__(typed, message, hint=hint, retry_after=retry_after)
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


def _details_of(
    error: grpc.RpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, timedelta | None]:
    found: error_details_pb2.ErrorInfo | None = None
    retry_after: timedelta | None = None
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
                    found = info
                elif detail.Unpack(retry):
                    retry_after = retry.retry_delay.ToTimedelta()
        except DecodeError:
            return None, None
    return found, retry_after


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

"""The trace context of the RPC that runs now: W3C's header, which gRPC carries as metadata.

The interceptor in `shared/rpc/server.py` notes it, whoever begins a trail reads it. Nothing else of a caller's
context is looked at: neither `tracestate` nor `baggage`.
"""

from contextvars import ContextVar
from typing import Any, Final

from shared.telemetry import HEADER, MAX_HEADER_CHARS

_NONE: Final = ""
_traceparent: ContextVar[str] = ContextVar("traceparent", default=_NONE)


def note_traceparent(context: Any) -> None:
    """Note what a call came with; nothing if there is none, more than one, or one that is too long."""
    found = [value for name, value in context.invocation_metadata() or () if name == HEADER]
    if len(found) == 1 and len(found[0]) <= MAX_HEADER_CHARS and isinstance(found[0], str):
        _traceparent.set(found[0])


def called_traceparent() -> str:
    """Return the `traceparent` that the current RPC came with, unread; empty where there is none."""
    return _traceparent.get()

"""The trace context of the RPC that runs now: W3C's header, which gRPC carries as metadata.

The interceptor in `shared/rpc/server.py` notes it, whoever begins a trail reads it. Nothing else of the
caller's context is looked at: neither `tracestate` nor `baggage`.
"""

from contextvars import ContextVar
from typing import Any

from shared.telemetry import HEADER, read_traceparent

_traceparent: ContextVar[str] = ContextVar("traceparent", default="")


def note_traceparent(context: Any) -> None:
    """Note what a call came with; nothing if there is none, more than one, or one that says nothing."""
    found = [value for name, value in context.invocation_metadata() or () if name == HEADER]
    if len(found) == 1 and isinstance(found[0], str):
        read = read_traceparent(found[0])
        if read is not None:
            _traceparent.set(str(read))


def called_traceparent() -> str:
    """Return the `traceparent` that the current RPC came with; empty where there is none."""
    return _traceparent.get()

"""Trails as the messages of OTLP (opentelemetry/proto/trace/v1). Pure; `otlp.py` has them sent.

Written into the request in place: messages that are made first and then copied in, as the SDK does, cost
eight times as much.
"""

from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status

from shared.telemetry import TraceParent
from shared.tracing import Attributes, Part, Trail

MAX_VALUE_CHARS: Final = 256

PREFIX: Final = "agentfactory."
"""Before the name of every attribute."""

_MIN_INT: Final = -(1 << 63)
_MAX_INT: Final = (1 << 63) - 1
_LOCAL: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE: Final = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def add_spans(spans: Any, trail: Trail, parts: Sequence[Part], wall_offset: float) -> None:
    """Append the spans of a trail that has ended to `spans`, a repeated field of them.

    `wall_offset` makes seconds since 1970 of monotonic ones.
    """
    assert trail.ended is not None
    trace_id, root_id = bytes.fromhex(trail.trace_id), bytes.fromhex(trail.span_id)
    parent = trail.parent
    span: Span = spans.add(
        trace_id=trace_id,
        span_id=root_id,
        parent_span_id=b"" if parent is None else bytes.fromhex(parent.span_id),
        flags=_LOCAL if parent is None else _REMOTE,
        name=_text(trail.name),
        kind=int(trail.kind),
        start_time_unix_nano=_nanoseconds(trail.started, wall_offset),
        end_time_unix_nano=_nanoseconds(trail.ended, wall_offset),
    )
    _say(span, trail.attributes, trail.failed)
    if trail.dropped:
        _say(span, {"dropped_parts": trail.dropped}, "")
    for link in trail.links:
        _link(span, link)
    for part in parts:
        above = "" if part.parent is None else part.parent.span_id
        span = spans.add(
            trace_id=trace_id,
            span_id=bytes.fromhex(part.span_id),
            # A part whose own parent found no room stands below the trail.
            parent_span_id=bytes.fromhex(above) if above else root_id,
            flags=_LOCAL,
            name=_text(part.name),
            kind=int(part.kind),
            start_time_unix_nano=_nanoseconds(part.started, wall_offset),
            # What was broken off ends with the whole.
            end_time_unix_nano=_nanoseconds(trail.ended if part.ended is None else part.ended, wall_offset),
        )
        _say(span, part.attributes, part.failed)


def _say(span: Span, attributes: Attributes, failed: str) -> None:
    for name, value in attributes.items():
        said = span.attributes.add(key=PREFIX + name).value
        if isinstance(value, str):
            said.string_value = _text(value)
        elif isinstance(value, bool):
            said.bool_value = value
        elif isinstance(value, int):
            said.int_value = max(_MIN_INT, min(value, _MAX_INT))
        else:
            said.double_value = value
    if failed:
        span.status.code = Status.STATUS_CODE_ERROR
        span.status.message = _text(failed)


def _text(value: str) -> str:
    # One that cannot be encoded would take everything with it that leaves in the same request.
    short = value[:MAX_VALUE_CHARS]
    return short if short.isascii() else short.encode(errors="replace").decode()


def _link(span: Span, to: TraceParent) -> None:
    span.links.add(trace_id=bytes.fromhex(to.trace_id), span_id=bytes.fromhex(to.span_id), flags=_REMOTE)


def _nanoseconds(monotonic: float, wall_offset: float) -> int:
    return int((monotonic + wall_offset) * 1e9)

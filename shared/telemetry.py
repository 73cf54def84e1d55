"""Trace context and the tracing set-up. Spans are made where the work is; nothing is exported unless told.

A bidi stream would be one span for its whole life, so the context travels as a `traceparent` inside each
order.
"""

import re
from dataclasses import dataclass
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from shared.clock import Random
from shared.errors import InvalidInputError

MAX_QUEUED_SPANS: Final = 2048
"""Beyond it spans are dropped: tracing never holds work up."""

EXPORT_TIMEOUT_MS: Final = 5_000

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceParent:
    """Where a piece of work belongs in a trace (W3C Trace Context, version 00)."""

    trace_id: int
    span_id: int
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{'01' if self.sampled else '00'}"

    def to_context(self) -> Context:
        """Return an OpenTelemetry context whose spans become children of this one."""
        remote = SpanContext(
            trace_id=self.trace_id,
            span_id=self.span_id,
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED if self.sampled else TraceFlags.DEFAULT),
        )
        return trace.set_span_in_context(NonRecordingSpan(remote))


def new_traceparent(random: Random, *, sampled: bool = False) -> TraceParent:
    """Return the root of a new trace."""
    # The all-zero ids are invalid: one bit is set rather than drawn again.
    return TraceParent(
        trace_id=int.from_bytes(random.token_bytes(16), "big") | 1,
        span_id=int.from_bytes(random.token_bytes(8), "big") | 1,
        sampled=sampled,
    )


def child_of(parent: TraceParent, random: Random) -> TraceParent:
    """Return the context of a new span below `parent`."""
    return TraceParent(
        trace_id=parent.trace_id,
        span_id=int.from_bytes(random.token_bytes(8), "big") | 1,
        sampled=parent.sampled,
    )


def parse_traceparent(text: str) -> TraceParent:
    """Return what a `traceparent` header or order field says.

    Raises:
        InvalidInputError: It is not version 00 of W3C Trace Context, or an id is all zero.
    """
    match = _TRACEPARENT.fullmatch(text)
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        raise InvalidInputError(f"{text[:64]!r} is not a traceparent of version 00")
    return TraceParent(
        trace_id=int(match[1], 16), span_id=int(match[2], 16), sampled=bool(int(match[3], 16) & 1)
    )


def current_traceparent(random: Random) -> TraceParent:
    """Return the context of the active span, or the root of a new trace where there is none."""
    active = trace.get_current_span().get_span_context()
    if not active.is_valid:
        return new_traceparent(random)
    return TraceParent(trace_id=active.trace_id, span_id=active.span_id, sampled=active.trace_flags.sampled)


def make_tracer_provider(service: str, instance: str, otlp_endpoint: str | None) -> TracerProvider:
    """Return the provider of a process; its `shutdown` flushes and must be called at the end.

    Without an endpoint spans are made and thrown away, and no thread is started.
    """
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.instance.id": instance}),
        shutdown_on_exit=False,
    )
    if otlp_endpoint is not None:
        exporter = OTLPSpanExporter(endpoint=otlp_endpoint, timeout=EXPORT_TIMEOUT_MS / 1000)
        provider.add_span_processor(
            BatchSpanProcessor(
                exporter, max_queue_size=MAX_QUEUED_SPANS, export_timeout_millis=EXPORT_TIMEOUT_MS
            )
        )
    return provider

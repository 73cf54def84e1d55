"""Sends spans to an OpenTelemetry collector: OTLP over gRPC, in the background, within bounds.

Imported only where an endpoint is set. A trail becomes messages of OTLP itself, not spans of an SDK: its ids
are older than the decision to keep it, and an SDK's span costs ten times as much (docs/adr/0025).
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NoReturn

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client import CollectorRegistry, Counter

from shared.logs import get_logger
from shared.telemetry import TraceParent
from shared.tracing import Part, Trail, Value

logger = get_logger(__name__)

MAX_QUEUED_SPANS: Final = 4096
"""Beyond it whole trails are dropped and counted: tracing never holds work up."""
MAX_SPANS_PER_REQUEST: Final = 512
FLUSH_EVERY: Final = timedelta(milliseconds=500)
EXPORT_TIMEOUT: Final = timedelta(seconds=5)
LAST_FLUSH_TIMEOUT: Final = timedelta(seconds=2)
"""For what is left when the process stops."""
MAX_VALUE_CHARS: Final = 256

PREFIX: Final = "agentfactory."
"""Before the name of every attribute."""

_SCOPE: Final = "agentfactory"
_SAMPLED: Final = trace_pb2.SPAN_FLAGS_TRACE_FLAGS_MASK & 1
_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_OK: Final = trace_pb2.Status()


class OtlpExporter:
    """A `SpanSink`. `run` sends; `close` sends the rest within a bound."""

    def __init__(
        self,
        endpoint: str,
        *,
        authority: bytes | None,
        resource: Mapping[str, str],
        registry: CollectorRegistry,
    ) -> None:
        self._channel = _channel(endpoint, authority)
        self._stub: Any = trace_service_pb2_grpc.TraceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._resource = resource_pb2.Resource(
            attributes=[_attribute(name, value) for name, value in resource.items()]
        )
        self._queue: deque[trace_pb2.Span] = deque()  # bounded by `put`
        self._enough = asyncio.Event()
        self._is_away = False
        spans = Counter("af_trace_spans", "Spans, by what became of them.", ["result"], registry=registry)
        self._exported, self._failed, self._dropped = (
            spans.labels(result) for result in ("exported", "failed", "dropped")
        )
        capped = Counter(
            "af_trace_capped", "Traces that the cap left out, by why they would be kept.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._capped = {reason: capped.labels(reason) for reason in ("sampled", "failed")}

    def put(self, trail: Trail, *, wall_offset: float) -> None:
        """See `SpanSink.put`."""
        count = 1 + len(trail.parts)
        if len(self._queue) + count > MAX_QUEUED_SPANS:
            self._dropped.inc(count)
            return
        self._queue.extend(spans_of(trail, wall_offset))
        if len(self._queue) >= MAX_SPANS_PER_REQUEST:
            self._enough.set()

    def capped(self, reason: str) -> None:
        """See `SpanSink.capped`."""
        self._capped[reason].inc()

    async def run(self) -> NoReturn:
        """Send what is there, in groups, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_EVERY.total_seconds()):
                    await self._enough.wait()
            self._enough.clear()
            while self._queue:
                await self._send(EXPORT_TIMEOUT)

    async def close(self) -> None:
        """Send the rest within `LAST_FLUSH_TIMEOUT`, count what did not leave, and hang up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH_TIMEOUT.total_seconds()):
                while self._queue:
                    await self._send(LAST_FLUSH_TIMEOUT)
        self._dropped.inc(len(self._queue))
        self._queue.clear()
        await self._channel.close()

    async def _send(self, within: timedelta) -> None:
        """Send one group; one that the collector does not take is counted and not tried again."""
        group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_SPANS_PER_REQUEST))]
        request = trace_service_pb2.ExportTraceServiceRequest(
            resource_spans=[
                trace_pb2.ResourceSpans(
                    resource=self._resource,
                    scope_spans=[
                        trace_pb2.ScopeSpans(scope=common_pb2.InstrumentationScope(name=_SCOPE), spans=group)
                    ],
                )
            ]
        )
        try:
            answer = await self._stub.Export(request, timeout=within.total_seconds())
        except grpc.aio.AioRpcError as error:
            self._failed.inc(len(group))
            if not self._is_away:
                logger.warning("spans cannot be sent", code=error.code().name, spans=len(group))
            self._is_away = True
            return
        except asyncio.CancelledError:
            self._dropped.inc(len(group))  # nobody knows whether it arrived
            raise
        self._is_away = False
        refused = min(answer.partial_success.rejected_spans, len(group))
        self._failed.inc(refused)
        self._exported.inc(len(group) - refused)


def spans_of(trail: Trail, wall_offset: float) -> list[trace_pb2.Span]:
    """Return the spans of a trail, each whole, as OTLP has them."""
    assert trail.ended is not None
    trace_id = trail.context.trace_id.to_bytes(16, "big")
    attributes = dict(trail.attributes)
    if trail.dropped:
        attributes["dropped_parts"] = trail.dropped
    root = trace_pb2.Span(
        trace_id=trace_id,
        span_id=trail.context.span_id.to_bytes(8, "big"),
        parent_span_id=b"" if trail.parent is None else trail.parent.span_id.to_bytes(8, "big"),
        flags=_flags(trail.context) | _REMOTE | (_IS_REMOTE if trail.parent is not None else 0),
        name=trail.name,
        kind=int(trail.kind),  # type: ignore[arg-type]
        start_time_unix_nano=_nanoseconds(trail.started, wall_offset),
        end_time_unix_nano=_nanoseconds(trail.ended, wall_offset),
        attributes=[_attribute(PREFIX + name, value) for name, value in attributes.items()],
        links=[_link(link) for link in trail.links],
        status=_status(trail.failed),
    )
    return [root, *(_part(part, trail, trace_id, wall_offset) for part in trail.parts)]


def _part(part: Part, trail: Trail, trace_id: bytes, wall_offset: float) -> trace_pb2.Span:
    parent = trail.context.span_id if part.parent is None else part.parent.span_id
    assert trail.ended is not None
    return trace_pb2.Span(
        trace_id=trace_id,
        span_id=part.span_id.to_bytes(8, "big"),
        # A part whose own parent found no room stands below the trail.
        parent_span_id=(parent or trail.context.span_id).to_bytes(8, "big"),
        flags=_flags(trail.context) | _REMOTE,
        name=part.name,
        kind=int(part.kind),  # type: ignore[arg-type]
        start_time_unix_nano=_nanoseconds(part.started, wall_offset),
        # What was broken off ends with the whole.
        end_time_unix_nano=_nanoseconds(trail.ended if part.ended is None else part.ended, wall_offset),
        attributes=[_attribute(PREFIX + name, value) for name, value in part.attributes.items()],
        status=_status(part.failed),
    )


def _flags(context: TraceParent) -> int:
    return _SAMPLED if context.sampled else 0


def _status(failed: str) -> trace_pb2.Status:
    if not failed:
        return _OK
    return trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=failed[:MAX_VALUE_CHARS])


def _link(link: TraceParent) -> trace_pb2.Span.Link:
    return trace_pb2.Span.Link(
        trace_id=link.trace_id.to_bytes(16, "big"),
        span_id=link.span_id.to_bytes(8, "big"),
        flags=_flags(link),
    )


def _attribute(name: str, value: Value) -> common_pb2.KeyValue:
    if isinstance(value, bool):
        held = common_pb2.AnyValue(bool_value=value)
    elif isinstance(value, int):
        held = common_pb2.AnyValue(int_value=value)
    elif isinstance(value, float):
        held = common_pb2.AnyValue(double_value=value)
    else:
        held = common_pb2.AnyValue(string_value=value[:MAX_VALUE_CHARS])
    return common_pb2.KeyValue(key=name, value=held)


def _nanoseconds(monotonic: float, wall_offset: float) -> int:
    return int((monotonic + wall_offset) * 1e9)


def _channel(endpoint: str, authority: bytes | None) -> grpc.aio.Channel:
    scheme, _, target = endpoint.partition("://")
    target = target.rstrip("/")
    if scheme == "https":
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(authority))
    return grpc.aio.insecure_channel(target)

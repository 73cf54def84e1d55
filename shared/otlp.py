"""Hands what is kept to OpenTelemetry's SDK, which sends it: OTLP over gRPC, from a thread of its own.

Imported only where an endpoint is set. The spans are made when their trail has ended, because its ids are
older than the decision to keep it (docs/adr/0025). The event loop never waits for it.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import grpc
from opentelemetry.exporter.otlp.proto.grpc import exporter as sdk_client
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk import _shared_internal as sdk_queue
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace import SpanKind as SdkKind
from opentelemetry.util import re as sdk_headers
from prometheus_client import CollectorRegistry, Counter

from shared.errors import SettingsError
from shared.logs import get_logger
from shared.telemetry import TraceParent
from shared.tracing import Part, SpanKind, Trail, Value

logger = get_logger(__name__)

MAX_QUEUED_SPANS: Final = 4096
"""Beyond it whole trails are dropped and counted: tracing never holds work up."""
MAX_SPANS_PER_REQUEST: Final = 128
"""Encoding holds the interpreter: so many take about 3 ms."""
FLUSH_EVERY: Final = timedelta(milliseconds=500)
LAST_FLUSH: Final = timedelta(seconds=2)
"""For what is left when the process stops; then calls under way are broken off."""
HANG_UP: Final = timedelta(seconds=1)
MAX_VALUE_CHARS: Final = 256

PREFIX: Final = "agentfactory."
"""Before the name of every attribute."""

_SCOPE: Final = InstrumentationScope("agentfactory")
_KEPT: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)
_KINDS: Final = {kind: SdkKind[kind.name] for kind in SpanKind}


class OtlpSink:
    """A `SpanSink` over the SDK's processor and exporter.

    Standard variables (``OTEL_EXPORTER_OTLP_HEADERS`` …) count where nothing is passed here.

    Raises:
        SettingsError: One of them has a value that the SDK cannot use.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        authority: bytes | None,
        resource: Mapping[str, str],
        registry: CollectorRegistry,
    ) -> None:
        spans = Counter("af_trace_spans", "Spans, by what became of them.", ["result"], registry=registry)
        self._dropped = spans.labels("dropped")
        capped = Counter(
            "af_trace_capped", "Traces that the cap left out, by why they would be kept.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._capped = {reason: capped.labels(reason) for reason in ("sampled", "failed")}
        self._voice = _Voice()
        self._voice.replace()
        self._exporter = _Counting(_client(endpoint, authority), spans, self._voice)
        self._resource = Resource.create(dict(resource))
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_QUEUED_SPANS,
            schedule_delay_millis=FLUSH_EVERY / timedelta(milliseconds=1),
            max_export_batch_size=MAX_SPANS_PER_REQUEST,
        )
        self._handed = 0
        self._is_closed = False

    def put(self, trail: Trail, *, wall_offset: float) -> None:
        """See `SpanSink.put`."""
        count = 1 + len(trail.parts)
        # The processor would drop the oldest spans, one here and one there, and tell nobody which.
        if self._is_closed or self._handed - self._exporter.taken + count > MAX_QUEUED_SPANS:
            self._dropped.inc(count)
            return
        self._handed += count
        for span in spans_of(trail, wall_offset, self._resource):
            self._processor.on_end(span)

    def capped(self, reason: str) -> None:
        """See `SpanSink.capped`."""
        self._capped[reason].inc()

    async def close(self) -> None:
        """Send the rest within `LAST_FLUSH`, count what did not leave, and hang up."""
        self._is_closed = True
        # A daemon, so that a process never waits for it: the SDK's own bound is 30 s.
        stopping = threading.Thread(target=self._processor.shutdown, name="stop sending spans", daemon=True)
        stopping.start()
        for bound in (LAST_FLUSH, HANG_UP):
            await asyncio.to_thread(stopping.join, bound.total_seconds())
            self._exporter.shutdown()
        self._dropped.inc(self._handed - self._exporter.taken)
        self._voice.give_back()


class _Voice(logging.Filter):
    """Speaks for the SDK, which logs each failed attempt, and headers with their secrets."""

    _OF: Final = tuple(logging.getLogger(one.__name__) for one in (sdk_client, sdk_queue, sdk_headers))

    def __init__(self) -> None:
        super().__init__()
        self._code = ""
        self._is_away = False

    def replace(self) -> None:
        """Take the word."""
        for one in self._OF:
            one.addFilter(self)

    def give_back(self) -> None:
        """Leave the word to the SDK again."""
        for one in self._OF:
            one.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let nothing through; remember what a call ended with."""
        if record.name == sdk_headers.__name__:
            logger.warning("an entry of OTEL_EXPORTER_OTLP_HEADERS is left out: it is not name=value")
        for value in record.args if isinstance(record.args, tuple) else ():
            if isinstance(value, grpc.StatusCode):
                self._code = value.name
        return False

    def say(self, result: SpanExportResult, spans: int) -> None:
        """Say when the collector goes away, and when it is back."""
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            logger.warning("spans cannot be sent", code=self._code, spans=spans)
        elif self._is_away and not is_away:
            logger.info("spans are sent again")
        self._is_away = is_away


class _Counting(SpanExporter):
    """Counts what becomes of the spans that the processor's thread takes out of its queue."""

    def __init__(self, client: OTLPSpanExporter, spans: Counter, voice: _Voice) -> None:
        self._client = client
        self._exported, self._failed = (spans.labels(result) for result in ("exported", "failed"))
        self._voice = voice
        self.taken = 0
        """Written by that thread alone."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one group; one that the collector does not take in time is counted and gone."""
        self.taken += len(spans)
        try:
            result = self._client.export(spans)
        except ValueError:  # grpc's, for a channel that `shutdown` has just closed
            result = SpanExportResult.FAILURE
        (self._exported if result is SpanExportResult.SUCCESS else self._failed).inc(len(spans))
        self._voice.say(result, len(spans))
        return result

    def shutdown(self, timeout_millis: float = 0) -> None:
        """Break off what is under way; repeats have no effect."""
        self._client.shutdown(timeout_millis)


def _client(endpoint: str, authority: bytes | None) -> OTLPSpanExporter:
    is_secure = endpoint.startswith("https://")
    credentials = None if authority is None else grpc.ssl_channel_credentials(authority)
    try:
        return OTLPSpanExporter(endpoint=endpoint, insecure=not is_secure, credentials=credentials)
    except (ValueError, RuntimeError, sdk_client.InvalidCompressionValueException) as error:
        raise SettingsError(f"a variable OTEL_EXPORTER_OTLP_… cannot be used: {error}") from error


def spans_of(trail: Trail, wall_offset: float, resource: Resource) -> list[ReadableSpan]:
    """Return the spans of a trail that has ended, as the SDK has them."""
    assert trail.ended is not None
    attributes = trail.attributes
    if trail.dropped:
        attributes = attributes | {"dropped_parts": trail.dropped}
    context = trail.context
    return [
        ReadableSpan(
            trail.name,
            context=_context(context.trace_id, context.span_id),
            parent=None if trail.parent is None else _remote(trail.parent),
            resource=resource,
            attributes=_attributes(attributes),
            links=[Link(_remote(link)) for link in trail.links],
            kind=_KINDS[trail.kind],
            status=_status(trail.failed),
            start_time=_nanoseconds(trail.started, wall_offset),
            end_time=_nanoseconds(trail.ended, wall_offset),
            instrumentation_scope=_SCOPE,
        ),
        *(_part(part, trail, trail.ended, wall_offset, resource) for part in trail.parts),
    ]


def _part(part: Part, trail: Trail, ended: float, wall_offset: float, resource: Resource) -> ReadableSpan:
    context = trail.context
    above = 0 if part.parent is None else part.parent.span_id
    return ReadableSpan(
        part.name,
        context=_context(context.trace_id, part.span_id),
        # A part whose own parent found no room stands below the trail.
        parent=_context(context.trace_id, above or context.span_id),
        resource=resource,
        attributes=_attributes(part.attributes),
        kind=_KINDS[part.kind],
        status=_status(part.failed),
        start_time=_nanoseconds(part.started, wall_offset),
        # What was broken off ends with the whole.
        end_time=_nanoseconds(ended if part.ended is None else part.ended, wall_offset),
        instrumentation_scope=_SCOPE,
    )


def _context(trace_id: int, span_id: int) -> SpanContext:
    # Whoever comes here is kept, also what failed and nobody had chosen: the processor asks for the flag.
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_KEPT)


def _remote(of: TraceParent) -> SpanContext:
    flags = _KEPT if of.sampled else TraceFlags.get_default()
    return SpanContext(of.trace_id, of.span_id, is_remote=True, trace_flags=flags)


def _status(failed: str) -> Status:
    return Status(StatusCode.ERROR, failed[:MAX_VALUE_CHARS]) if failed else _UNSET


def _attributes(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {
        PREFIX + name: value[:MAX_VALUE_CHARS] if isinstance(value, str) else value
        for name, value in attributes.items()
    }


def _nanoseconds(monotonic: float, wall_offset: float) -> int:
    return int((monotonic + wall_offset) * 1e9)

"""Hands what is kept to OpenTelemetry's SDK, which sends it: OTLP over gRPC, from a thread of its own.

Imported only where an endpoint is set. The SDK's queue holds whole trails; that thread makes messages
of them just before they leave (docs/adr/0025). The event loop never waits for it.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc import exporter as sdk_client
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk import _shared_internal as sdk_queue
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.util import re as sdk_headers
from prometheus_client import CollectorRegistry, Counter

from shared.errors import SettingsError
from shared.logs import get_logger
from shared.otlp_messages import add_spans
from shared.tracing import Trail

logger = get_logger(__name__)

MAX_QUEUED_SPANS: Final = 4096
"""Beyond it whole trails are dropped and counted: tracing never holds work up."""
MAX_TRAILS_PER_REQUEST: Final = 128
"""Making messages holds the interpreter: so many take about 3 ms, and 30 if all have `MAX_PARTS`."""
FLUSH_EVERY: Final = timedelta(seconds=5)
LAST_FLUSH: Final = timedelta(seconds=2)
"""For what is left when the process stops; then calls under way are broken off."""
HANG_UP: Final = timedelta(seconds=1)

_SCOPE: Final = "agentfactory"
_KEPT: Final = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
"""The processor asks whatever it is given for the flag, and for nothing else."""
_NOTHING: Final = Resource({})
"""Without one each entry of the queue would look for its own in the environment."""


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
        client = _client(endpoint, authority, Resource.create(dict(resource)))
        self._exporter = _Counting(client, spans, self._voice)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_QUEUED_SPANS,
            schedule_delay_millis=FLUSH_EVERY / timedelta(milliseconds=1),
            max_export_batch_size=MAX_TRAILS_PER_REQUEST,
        )
        self._handed = 0
        self._is_closed = False

    def put(self, trail: Trail, *, wall_offset: float) -> None:
        """See `SpanSink.put`."""
        kept = _Kept(trail, wall_offset)
        count = kept.count
        # The processor would drop the oldest, and count it where nobody looks.
        if self._is_closed or self._handed - self._exporter.taken + count > MAX_QUEUED_SPANS:
            self._dropped.inc(count)
            return
        self._handed += count
        self._processor.on_end(kept)

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


class _Kept(ReadableSpan):
    """A trail in the SDK's queue, which takes spans: one entry for all of its own."""

    def __init__(self, trail: Trail, wall_offset: float) -> None:
        super().__init__(trail.name, context=_KEPT, resource=_NOTHING)
        self.trail = trail
        self.parts = trail.take_parts()
        self.count = 1 + len(self.parts)
        self.wall_offset = wall_offset


class _Client(OTLPSpanExporter):
    """The SDK's client, with its retries, headers and TLS; only the messages are ours."""

    def __init__(
        self, endpoint: str, *, credentials: grpc.ChannelCredentials | None, resource: Resource
    ) -> None:
        super().__init__(
            endpoint=endpoint, insecure=not endpoint.startswith("https://"), credentials=credentials
        )
        # As the SDK encodes it, once: variables of the environment may have put anything there.
        self._empty = encode_spans([ReadableSpan("", context=_KEPT, resource=resource)])
        del self._empty.resource_spans[0].scope_spans[:]

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        request = ExportTraceServiceRequest()
        request.CopyFrom(self._empty)
        of_scope = request.resource_spans[0].scope_spans.add()
        of_scope.scope.name = _SCOPE
        for kept in data:
            assert isinstance(kept, _Kept)
            add_spans(of_scope.spans, kept.trail, kept.parts, kept.wall_offset)
        return request


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
        count = sum(kept.count for kept in spans if isinstance(kept, _Kept))
        self.taken += count
        try:
            result = self._client.export(spans)
        except ValueError:  # grpc's, for a channel that `shutdown` has just closed
            result = SpanExportResult.FAILURE
        (self._exported if result is SpanExportResult.SUCCESS else self._failed).inc(count)
        self._voice.say(result, count)
        return result

    def shutdown(self, timeout_millis: float = 0) -> None:
        """Break off what is under way; repeats have no effect."""
        self._client.shutdown(timeout_millis)


def _client(endpoint: str, authority: bytes | None, resource: Resource) -> _Client:
    credentials = None if authority is None else grpc.ssl_channel_credentials(authority)
    try:
        return _Client(endpoint, credentials=credentials, resource=resource)
    except (ValueError, RuntimeError, sdk_client.InvalidCompressionValueException) as error:
        raise SettingsError(f"a variable OTEL_EXPORTER_OTLP_… cannot be used: {error}") from error

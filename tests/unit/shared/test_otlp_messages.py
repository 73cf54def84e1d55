"""What trails say as messages of OTLP, whatever somebody put into them."""

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from shared.otlp import MAX_TRAILS_PER_REQUEST
from shared.otlp_messages import MAX_VALUE_CHARS, add_spans
from shared.telemetry import NewIds
from shared.tracing import MAX_LINKS, MAX_PARTS, SpanKind, Tracer
from tests.fakes.clock import FakeClock, FakeRandom

COLLECTORS_LIMIT_BYTES = 4 << 20
"""What gRPC takes as one message unless it is told otherwise."""


class Kept:
    def __init__(self):
        self.trails = []

    def put(self, trail, *, wall_offset):
        self.trails.append((trail, trail.take_parts()))

    def capped(self, reason):
        raise AssertionError(reason)


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def tracer(kept):
    return Tracer(sink=kept, ratio=1, max_per_second=10_000, clock=FakeClock(), random=FakeRandom())


def spans_of(kept, *, wall_offset=1000.0):
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for trail, parts in kept.trails:
        add_spans(spans, trail, parts, wall_offset)
    return list(spans)


def values(span):
    return {
        one.key.removeprefix("agentfactory."): getattr(one.value, one.value.WhichOneof("value"))
        for one in span.attributes
    }


def test_a_trail_is_a_span_with_its_parts_below_it(kept, tracer):
    trail = tracer.begin(
        "order", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", kind=SpanKind.CONSUMER, since=1.5
    )
    run = trail.part("run", since=2.0)
    trail.part("guest", since=2.25, parent=run).end(at=2.5, failed="killed", cpu_us=7)
    run.end(at=3.0)
    trail.note(order_id="ord_1")
    trail.end(failed="killed", is_last=True, share=0.5)
    order, below, guest = spans_of(kept)

    assert (order.trace_id.hex(), order.parent_span_id.hex()) == ("a" * 32, "b" * 16)
    assert (order.kind, order.start_time_unix_nano) == (SpanKind.CONSUMER, 1_001_500_000_000)
    assert (order.status.code, order.status.message) == (2, "killed")
    assert values(order) == {"order_id": "ord_1", "is_last": True, "share": 0.5}
    assert below.parent_span_id == order.span_id
    assert below.status.code == 0
    assert (guest.parent_span_id, guest.trace_id) == (below.span_id, order.trace_id)
    assert (guest.end_time_unix_nano, values(guest)) == (1_002_500_000_000, {"cpu_us": 7})
    assert len({order.span_id, below.span_id, guest.span_id}) == 3
    # Whether the span above is of another process (SpanFlags).
    assert [span.flags for span in (order, below, guest)] == [0x300, 0x100, 0x100]


def test_what_found_no_room_is_counted_and_its_parts_stand_below_the_trail(kept, tracer):
    trail = tracer.begin("work")
    parts = [trail.part("part") for _ in range(MAX_PARTS + 1)]
    parts[0].parent = parts[-1]
    trail.end()
    work, first, *_ = spans_of(kept)
    assert values(work) == {"dropped_parts": 1}
    assert first.parent_span_id == work.span_id
    assert first.end_time_unix_nano == work.end_time_unix_nano, "broken off"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1 << 64, (1 << 63) - 1),
        (-(1 << 64), -(1 << 63)),
        ("\ud800", "?"),
        ("é" * 1000, "é" * MAX_VALUE_CHARS),
        ("", ""),
    ],
)
def test_no_value_keeps_others_from_leaving(kept, tracer, value, shown):
    trail = tracer.begin("\ud800")
    trail.end(failed="\ud800", value=value)
    (span,) = spans_of(kept)
    assert values(span) == {"value": shown}
    assert (span.name, span.status.message) == ("?", "?")


def test_the_largest_request_is_taken_by_every_collector(kept, tracer):
    ids = NewIds(FakeRandom())
    for _ in range(MAX_TRAILS_PER_REQUEST):
        trail = tracer.begin("order", kind=SpanKind.CONSUMER)
        for _ in range(MAX_LINKS):
            trail.link(trail.context)
        for _ in range(MAX_PARTS):
            trail.part("http.fetch").end(
                failed="x" * 32, result="x" * 32, request_bytes=1 << 40, response_bytes=1 << 40
            )
        trail.end(**{name: ids.trace_id() for name in ("order_id", "execution_id", "node_id", "rejection")})
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for trail, parts in kept.trails:
        add_spans(spans, trail, parts, 1.8e9)
    assert len(spans) == MAX_TRAILS_PER_REQUEST * (1 + MAX_PARTS)
    assert request.ByteSize() < COLLECTORS_LIMIT_BYTES

import pytest
from opentelemetry import trace

from shared.errors import InvalidInputError
from shared.telemetry import (
    child_of,
    current_traceparent,
    make_tracer_provider,
    new_traceparent,
    parse_traceparent,
)
from tests.fakes.clock import FakeRandom

EXAMPLE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_example_of_the_specification_survives():
    parsed = parse_traceparent(EXAMPLE)
    assert str(parsed) == EXAMPLE
    assert parsed.sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        EXAMPLE.upper(),
        EXAMPLE.replace("00-", "01-", 1),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        EXAMPLE + "-extra",
        EXAMPLE + "\n",
    ],
)
def test_other_text_is_no_traceparent(text):
    with pytest.raises(InvalidInputError):
        parse_traceparent(text)


def test_child_stays_in_its_trace():
    random = FakeRandom()
    root = new_traceparent(random, sampled=True)
    child = child_of(root, random)
    assert (child.trace_id, child.sampled) == (root.trace_id, True)
    assert child.span_id != root.span_id


def test_exporter_is_set_up_only_with_an_endpoint_and_stops_at_once_when_idle():
    provider = make_tracer_provider("test", "1", "http://127.0.0.1:9")
    assert provider.resource.attributes["service.instance.id"] == "1"
    provider.shutdown()


def test_span_below_an_order_continues_the_trace_of_its_order():
    provider = make_tracer_provider("test", "1", None)
    parent = parse_traceparent(EXAMPLE)
    span = provider.get_tracer("test").start_span("run", context=parent.to_context())
    assert span.get_span_context().trace_id == parent.trace_id
    with trace.use_span(span, end_on_exit=True):
        assert current_traceparent(FakeRandom()).trace_id == parent.trace_id
    assert current_traceparent(FakeRandom()).trace_id != parent.trace_id
    provider.shutdown()

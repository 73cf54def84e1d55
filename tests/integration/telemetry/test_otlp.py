"""The exporter against a real OTLP server: what arrives, and what happens when nothing can."""

import asyncio
import socket
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from data_plane.settings import NodeSettings
from shared.clock import SystemClock, SystemRandom
from shared.otlp import MAX_QUEUED_SPANS, MAX_VALUE_CHARS, OtlpExporter
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import NO_TRACER, Tracer
from tests.fixtures.otlp import collecting

BOUND_SECONDS = 20


def options(endpoint):
    return TraceOptions(endpoint=endpoint, authority=None, ratio=1.0, max_per_second=100_000)


def traced(endpoint, registry):
    return tracing(
        options(endpoint),
        service="a-test",
        instance="1",
        registry=registry,
        clock=SystemClock(),
        random=SystemRandom(),
    )


async def test_what_is_left_at_the_end_arrives_before_the_process_goes():
    registry = CollectorRegistry()
    async with collecting() as collector:
        async with traced(collector.endpoint, registry) as tracer:
            trail = tracer.begin("work")
            part = trail.part("outer")
            trail.part("inner", parent=part).end(size=3, share=0.5, good=True, text="x" * 1000)
            trail.end(failed="killed")
        spans = {one.name: one for one in collector.spans}

    assert spans.keys() == {"work", "outer", "inner"}
    assert spans["inner"].span.parent_span_id == spans["outer"].span.span_id
    assert spans["inner"].attributes == {
        "size": 3, "share": 0.5, "good": True, "text": "x" * MAX_VALUE_CHARS,
    }  # fmt: skip
    assert spans["outer"].span.end_time_unix_nano == spans["work"].span.end_time_unix_nano, "broken off"
    assert spans["work"].failed == "killed"
    assert registry.get_sample_value("af_trace_spans_total", {"result": "exported"}) == 3


async def test_a_collector_that_never_answers_holds_nobody_up_and_fills_no_memory():
    registry = CollectorRegistry()
    with socket.create_server(("127.0.0.1", 0)) as hole:  # takes the connection and says nothing
        endpoint = f"http://127.0.0.1:{hole.getsockname()[1]}"
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(BOUND_SECONDS), traced(endpoint, registry) as tracer:
            for _ in range(2 * MAX_QUEUED_SPANS):
                tracer.begin("work").end()
            assert loop.time() - started < BOUND_SECONDS / 2, "nothing was waited for"
    counts = {
        result: registry.get_sample_value("af_trace_spans_total", {"result": result})
        for result in ("exported", "failed", "dropped")
    }
    assert counts["exported"] == 0
    assert sum(counts.values()) == 2 * MAX_QUEUED_SPANS
    assert counts["dropped"] >= MAX_QUEUED_SPANS


async def test_a_collector_that_is_away_is_counted():
    registry = CollectorRegistry()
    async with collecting() as collector:
        pass  # its port is free again, and nobody listens
    exporter = OtlpExporter(collector.endpoint, authority=None, resource={}, registry=registry)
    tracer = Tracer(sink=exporter, ratio=1, max_per_second=100, clock=SystemClock(), random=SystemRandom())
    tracer.begin("lost").end()
    await exporter.close()
    assert registry.get_sample_value("af_trace_spans_total", {"result": "failed"}) == 1


async def test_without_an_endpoint_nothing_of_it_is_loaded():
    async with traced(None, CollectorRegistry()) as tracer:
        assert tracer is NO_TRACER
    code = (
        "import sys, control_plane.main, control_plane.gateway.main, data_plane.main;"
        "print([one for one in sys.modules if one.startswith(('opentelemetry.proto', 'opentelemetry.sdk'))])"
    )
    loaded = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("endpoint", ["collector:4317", "ftp://collector", "http://", "http://a b"])
def test_other_endpoints_stop_the_start(endpoint):
    with pytest.raises(ValueError, match="otlp_endpoint"):
        NodeSettings(otlp_endpoint=endpoint)

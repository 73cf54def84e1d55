"""The exporter against a real OTLP server: what arrives, and what happens when nothing can."""

import asyncio
import json
import socket
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from cli.stack.probe import free_ports
from data_plane.settings import NodeSettings
from shared.clock import SystemClock, SystemRandom
from shared.errors import SettingsError
from shared.logs import LogStyle, configure_logging
from shared.otlp import HANG_UP, LAST_FLUSH, MAX_QUEUED_SPANS, MAX_TRAILS_PER_REQUEST
from shared.otlp_messages import MAX_VALUE_CHARS
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import NO_TRACER
from tests.fixtures.otlp import collecting

BOUND_SECONDS = 30
LOAD_SECONDS = 100


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


def spans_by_result(registry):
    return {
        result: registry.get_sample_value("af_trace_spans_total", {"result": result})
        for result in ("exported", "failed", "dropped")
    }


async def until(wanted):
    async with asyncio.timeout(BOUND_SECONDS):
        while not wanted():
            await asyncio.sleep(0.02)


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
    assert spans_by_result(registry) == {"exported": 3, "failed": 0, "dropped": 0}


async def test_a_collector_that_never_answers_holds_nobody_up_and_fills_no_memory():
    registry = CollectorRegistry()
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as hole:  # takes the connection and says nothing
        endpoint = f"http://127.0.0.1:{hole.getsockname()[1]}"
        async with asyncio.timeout(BOUND_SECONDS), traced(endpoint, registry) as tracer:
            started = loop.time()
            for _ in range(2 * MAX_QUEUED_SPANS):
                tracer.begin("work").end()
            assert loop.time() - started < BOUND_SECONDS / 4, "nothing was waited for"
            ending = loop.time()
        assert loop.time() - ending < (LAST_FLUSH + 2 * HANG_UP).total_seconds()
    counts = spans_by_result(registry)
    assert counts["exported"] == 0
    assert sum(counts.values()) == 2 * MAX_QUEUED_SPANS
    assert counts["dropped"] >= MAX_QUEUED_SPANS - MAX_TRAILS_PER_REQUEST


async def test_a_collector_that_goes_away_and_comes_back_is_one_line_each(capsys, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    configure_logging("info", LogStyle.JSON)
    registry = CollectorRegistry()
    (port,) = free_ports(1)
    async with traced(f"http://127.0.0.1:{port}", registry) as tracer:
        for expected in (1, 2):
            tracer.begin("lost").end()
            await until(lambda: spans_by_result(registry)["failed"] == expected)  # noqa: B023
        async with collecting(port=port):
            tracer.begin("found").end()
            await until(lambda: spans_by_result(registry)["exported"])
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one["event"], one.get("code")) for one in said] == [
        ("spans cannot be sent", "UNAVAILABLE"),
        ("spans are sent again", None),
    ]


async def test_standard_variables_count_and_a_secret_among_them_is_never_printed(capsys, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-mine,nothing-but-a-secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=of-a-test")
    configure_logging("debug", LogStyle.JSON)
    async with collecting() as collector:
        async with traced(collector.endpoint, CollectorRegistry()) as tracer:
            tracer.begin("work").end()
        assert collector.metadata["authorization"] == "Bearer of-mine"
        assert collector.resource["deployment.environment.name"] == "of-a-test"
        assert collector.resource["service.name"] == "a-test"
    said = capsys.readouterr().err
    assert "OTEL_EXPORTER_OTLP_HEADERS" in said
    assert "secret" not in said
    assert "of-mine" not in said


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"), ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd")],
)
async def test_standard_variables_that_cannot_be_used_stop_the_start(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"OTEL_EXPORTER_OTLP_.*{value}"):
        async with traced("http://127.0.0.1:1", CollectorRegistry()):
            pass


async def test_what_failed_is_sent_though_its_trace_was_not_chosen():
    async with collecting() as collector:
        async with traced(collector.endpoint, CollectorRegistry()) as tracer:
            told = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
            trail = tracer.begin("work", told)
            trail.part("before").end()
            trail.end(failed="trapped")
            tracer.begin("other", told).end()
        assert {one.name for one in collector.spans} == {"work", "before"}


async def test_without_an_endpoint_nothing_of_it_is_loaded():
    async with traced(None, CollectorRegistry()) as tracer:
        assert tracer is NO_TRACER
    code = (
        "import sys, control_plane.main, control_plane.gateway.main, data_plane.main;"
        "of = tuple('opentelemetry.' + one for one in ('proto', 'sdk', 'exporter'));"
        "print([one for one in sys.modules if one.startswith(of)])"
    )
    loaded = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LOAD_SECONDS,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("endpoint", ["collector:4317", "ftp://collector", "http://", "http://a b"])
def test_other_endpoints_stop_the_start(endpoint):
    with pytest.raises(ValueError, match="otlp_endpoint"):
        NodeSettings(otlp_endpoint=endpoint)

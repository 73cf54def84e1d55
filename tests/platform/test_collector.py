"""A real OpenTelemetry Collector between the processes and a receiver: what it takes in, and passes on."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from cli.stack.probe import free_ports
from shared.clock import SystemClock, SystemRandom
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import SpanKind
from tests.e2e.traces import COUNTER, new_parent, trace_of_a_call, trace_of_a_failure, traced_stack
from tests.fixtures.otlp import Collector, collecting

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("AF_CACHE_DIR") or Path.home() / ".cache" / "agentfactory")
BUILD_SECONDS = 1200
READY_SECONDS = 60
TEST_SECONDS = 600


@pytest.fixture(scope="session")
def otelcol() -> Path:
    """The collector's program, built once for its parts."""
    built = subprocess.run(
        [HERE / "install_collector.sh", CACHE],
        check=True,
        timeout=BUILD_SECONDS,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(built.stdout.strip())


def configuration(port: int, receiver: str) -> str:
    return yaml.safe_dump(
        {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{port}"}}}},
            "processors": {
                "memory_limiter": {"check_interval": "1s", "limit_mib": 256},
                "batch": {"timeout": "100ms"},
            },
            "exporters": {
                "otlp_grpc": {"endpoint": receiver.removeprefix("http://"), "tls": {"insecure": True}},
                "debug": {"verbosity": "normal"},
            },
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {
                    "traces": {
                        "receivers": ["otlp"],
                        "processors": ["memory_limiter", "batch"],
                        "exporters": ["otlp_grpc", "debug"],
                    }
                },
            },
        }
    )


@asynccontextmanager
async def real_collector(program: Path, folder: Path, receiver: Collector) -> AsyncIterator[str]:
    """Run it for the time of the context; yield where it takes spans."""
    (port,) = free_ports(1)
    settings = folder / "collector.yaml"
    settings.write_text(configuration(port, receiver.endpoint), encoding="utf-8")
    with (folder / "collector.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(program, "--config", settings, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not await _listens(port):
                assert child.returncode is None, (folder / "collector.log").read_text()
                await asyncio.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        if child.returncode is None:
            child.terminate()
        await asyncio.wait_for(child.wait(), READY_SECONDS)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.timeout(BUILD_SECONDS + TEST_SECONDS)
async def test_a_real_collector_takes_in_what_a_process_keeps(otelcol: Path, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    async with collecting() as receiver, real_collector(otelcol, tmp_path, receiver) as endpoint:
        async with tracing(
            TraceOptions(endpoint=endpoint, authority=None, ratio=0, max_per_second=100),
            service="a-process",
            instance="1",
            registry=registry,
            clock=SystemClock(),
            random=SystemRandom(),
        ) as tracer:
            trace_id, traceparent = new_parent()
            chosen = tracer.begin("chosen", traceparent, kind=SpanKind.SERVER)
            chosen.part("below", parent=chosen.part("part")).end(size=3)
            chosen.end()
            failed = tracer.begin("failed")
            failed.end(failed="killed")
            tracer.begin("neither").end()
        assert registry.get_sample_value("af_trace_spans_total", {"result": "exported"}) == 4
        await receiver.until(lambda: len(receiver.spans) == 4, "four spans")
    by_name = {one.name: one for one in receiver.of_trace(trace_id)}
    names = {one.span.span_id: one.name for one in by_name.values()}
    names[bytes.fromhex(traceparent.split("-")[2])] = "the caller"
    assert {name: names[one.span.parent_span_id] for name, one in by_name.items()} == {
        "chosen": "the caller",
        "part": "chosen",
        "below": "part",
    }
    (other,) = (one for one in receiver.spans if one.name == "failed")
    assert (other.service, other.failed) == ("a-process", "killed")
    assert other.span.trace_id == bytes.fromhex(failed.trace_id)


@pytest.mark.timeout(BUILD_SECONDS + TEST_SECONDS)
async def test_a_real_collector_takes_in_a_whole_trace_and_what_failed(otelcol: Path, tmp_path: Path) -> None:
    async with (
        collecting() as receiver,
        real_collector(otelcol, tmp_path, receiver) as endpoint,
        traced_stack(endpoint) as stack,
    ):
        await stack.make_agent("counter", COUNTER, capabilities="kv = true")
        await stack.make_agent("actor")
        spans, _ = await trace_of_a_call(stack, endpoint, receiver)
        failed = await trace_of_a_failure(stack, receiver)
        assert {one.span.trace_id for one in spans}.isdisjoint({one.span.trace_id for one in failed})
    said = (tmp_path / "collector.log").read_text()
    for one in (*spans, *failed):
        shown = f"{one.name} {one.span.trace_id.hex()} {one.span.span_id.hex()}"
        assert shown in said, "it was the collector that took them in"

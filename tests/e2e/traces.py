"""One execution as a trace: what its spans are, and stacks that send them somewhere."""

import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.e2e.gateway import TestGateway, running_gateway
from tests.e2e.stack import ROOT, TestStack, running_stack
from tests.fixtures.otlp import Collector, Received

COUNTER = ROOT / "tests" / "guests" / "counter.wasm"
GATEWAY, CONTROL, NODE = "agentfactory-gateway", "agentfactory-control-plane", "agentfactory-node"
EXECUTE = "agentfactory.v1.ExecutionService/Execute"
PATH = "/v1/executions:execute"

WHOLE = {
    # span: (process, the span that it stands below)
    "POST Execute": (GATEWAY, "the caller"),
    EXECUTE: (CONTROL, "POST Execute"),
    "decide": (CONTROL, EXECUTE),
    "commit": (CONTROL, EXECUTE),
    "dispatch": (CONTROL, EXECUTE),
    "claim": (CONTROL, "dispatch"),
    "sign": (CONTROL, "dispatch"),
    "send": (CONTROL, "dispatch"),
    "node": (CONTROL, "dispatch"),
    "record": (CONTROL, "dispatch"),
    "order": (NODE, "dispatch"),
    "verify": (NODE, "order"),
    "queue": (NODE, "order"),
    "artifact": (NODE, "order"),
    "input": (NODE, "order"),
    "run": (NODE, "order"),
    "guest": (NODE, "run"),
    "kv.get": (NODE, "run"),
    "kv.put": (NODE, "run"),
    "receipt": (NODE, "order"),
}


@asynccontextmanager
async def traced_stack(endpoint: str) -> AsyncIterator[TestStack]:
    """Run a stack that keeps what a caller asks for and what fails, and nothing else."""
    control = {"AF_CONTROL_OTLP_ENDPOINT": endpoint, "AF_CONTROL_TRACE_RATIO": "0"}
    async with running_stack(control=control, AF_NODE_SLOTS="1", AF_NODE_OTLP_ENDPOINT=endpoint) as stack:
        yield stack


@asynccontextmanager
async def traced_gateway(stack: TestStack, endpoint: str) -> AsyncIterator[TestGateway]:
    """Run a gateway that traces likewise."""
    async with running_gateway(
        stack, AF_GATEWAY_OTLP_ENDPOINT=endpoint, AF_GATEWAY_TRACE_RATIO="0"
    ) as gateway:
        yield gateway


def run_of(agent: str, body: bytes) -> dict[str, dict[str, str]]:
    """Return what the gateway is asked for."""
    return {"execution": {"agent": agent, "inline": base64.b64encode(body).decode()}}


def new_parent(flags: str = "01") -> tuple[bytes, str]:
    """Return the id of a new trace of a caller, and its header."""
    trace_id, span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    return trace_id, f"00-{trace_id.hex()}-{span_id.hex()}-{flags}"


def assert_whole(spans: list[Received], *, parent: bytes) -> None:
    """The spans of one trace are all there, each of its process and below its own."""
    # The guest reads twice and writes once.
    assert sorted(one.name for one in spans) == sorted([*WHOLE, "kv.get"])
    by_id = {one.span.span_id: one.name for one in spans} | {parent: "the caller"}
    assert len(by_id) == len(spans) + 1
    found = {one.name: (one.service, by_id[one.span.parent_span_id]) for one in spans}
    assert found == WHOLE
    assert not any(one.failed for one in spans)
    assert all(one.span.start_time_unix_nano <= one.span.end_time_unix_nano for one in spans)


async def trace_of_a_call(
    stack: TestStack, endpoint: str, collector: Collector
) -> tuple[list[Received], dict[str, Any]]:
    """Call the agent `counter` by a traced gateway; return the whole trace and the execution."""
    async with traced_gateway(stack, endpoint) as gateway, gateway.client() as client:
        trace_id, traceparent = new_parent()
        answer = await client.post(
            PATH,
            json=run_of("counter", b"count"),
            headers={"Idempotency-Key": trace_id.hex(), "traceparent": traceparent},
        )
        assert answer.status_code == httpx.codes.OK, answer.text
        await collector.until(
            lambda: {one.name for one in collector.of_trace(trace_id)} >= WHOLE.keys(), "the whole trace"
        )
        spans = collector.of_trace(trace_id)
        assert_whole(spans, parent=bytes.fromhex(traceparent.split("-")[2]))
        return spans, answer.json()["execution"]


async def trace_of_a_failure(stack: TestStack, collector: Collector) -> list[Received]:
    """Call the agent `actor`, which fails and whose trace nobody chose; return what is kept of it."""
    bad, _ = await stack.execute("actor", b"exit 3")

    def of_bad() -> list[Received]:
        told = {"execution_id": bad.execution_id}
        ids = {one.span.trace_id for one in collector.spans if told.items() <= one.attributes.items()}
        return [one for one in collector.spans if one.span.trace_id in ids]

    def ends() -> set[tuple[str, str, str]]:
        return {(one.service, one.name, one.failed) for one in of_bad()}

    roots = {(CONTROL, EXECUTE, "failed"), (CONTROL, "dispatch", "failed"), (NODE, "order", "failed")}
    await collector.until(lambda: roots <= ends(), "the spans of the failed execution")
    spans = of_bad()
    assert {"guest", "record", "commit", "receipt"} <= {one.name for one in spans}
    assert len({one.span.trace_id for one in spans}) == 1, "they are of one trace"
    return spans

"""One trace for an execution over gateway, control plane, node and worker, received by a real OTLP server."""

import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from agentfactory.v1 import executions_pb2

from cli.run import to_message
from tests.e2e.gateway import running_gateway
from tests.e2e.stack import ROOT, TestStack, new_request, running_stack
from tests.fixtures.otlp import Collector, Received, collecting

COUNTER = ROOT / "tests" / "guests" / "counter.wasm"
LOOK = ROOT / "tests" / "guests" / "look.wasm"
GATEWAY, CONTROL, NODE = "agentfactory-gateway", "agentfactory-control-plane", "agentfactory-node"
EXECUTE = "agentfactory.v1.ExecutionService/Execute"
PATH = "/v1/executions:execute"
SECRET = "of-the-callers-baggage"

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
async def traced_stack(ratio: str = "0") -> AsyncIterator[tuple[TestStack, Collector]]:
    async with collecting() as collector:
        control = {"AF_CONTROL_OTLP_ENDPOINT": collector.endpoint, "AF_CONTROL_TRACE_RATIO": ratio}
        async with running_stack(
            control=control, AF_NODE_SLOTS="1", AF_NODE_OTLP_ENDPOINT=collector.endpoint
        ) as stack:
            yield stack, collector


def run_of(agent: str, body: bytes) -> dict[str, dict[str, str]]:
    return {"execution": {"agent": agent, "inline": base64.b64encode(body).decode()}}


def new_parent(flags: str = "01") -> tuple[bytes, str]:
    trace_id, span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    return trace_id, f"00-{trace_id.hex()}-{span_id.hex()}-{flags}"


async def test_a_callers_trace_is_whole_from_the_gateway_to_the_guest_and_back():
    async with traced_stack() as (stack, collector):
        await stack.make_agent("counter", COUNTER, capabilities="kv = true")
        endpoint = {"AF_GATEWAY_OTLP_ENDPOINT": collector.endpoint, "AF_GATEWAY_TRACE_RATIO": "0"}
        async with running_gateway(stack, **endpoint) as gateway, gateway.client() as client:
            trace_id, traceparent = new_parent()
            answer = await client.post(
                PATH,
                json=run_of("counter", b"count"),
                headers={"Idempotency-Key": "one", "traceparent": traceparent},
            )
            assert answer.status_code == httpx.codes.OK, answer.text
            await collector.until(
                lambda: {one.name for one in collector.of_trace(trace_id)} >= WHOLE.keys(), "the whole trace"
            )
            spans = collector.of_trace(trace_id)
            _is_whole(spans, parent=bytes.fromhex(traceparent.split("-")[2]))
            _says_what_ran(spans, answer.json()["execution"])
            await _is_linked_to_its_batches(collector, spans)
            await _is_shown_by_exemplars(stack, trace_id)
            await _malformed_context_is_no_error(client)


def _is_whole(spans: list[Received], *, parent: bytes) -> None:
    # The guest reads twice and writes once.
    assert sorted(one.name for one in spans) == sorted([*WHOLE, "kv.get"])
    by_id = {one.span.span_id: one.name for one in spans} | {parent: "the caller"}
    assert len(by_id) == len(spans) + 1
    found = {one.name: (one.service, by_id[one.span.parent_span_id]) for one in spans}
    assert found == WHOLE
    assert not any(one.failed for one in spans)
    assert all(one.span.start_time_unix_nano <= one.span.end_time_unix_nano for one in spans)


def _says_what_ran(spans: list[Received], execution: dict) -> None:
    by_name = {one.name: one.attributes for one in spans}
    for name in ("POST Execute", EXECUTE, "dispatch", "order"):
        assert by_name[name]["execution_id"] == execution["executionId"]
    assert by_name["dispatch"]["order_id"] == by_name["order"]["order_id"]
    assert by_name["order"]["outcome"] == by_name["dispatch"]["outcome"] == "succeeded"
    assert by_name["record"]["disposition"] == "accepted"
    assert by_name["guest"]["host_calls"] == 3
    assert by_name["kv.put"]["result"] == "ok"


async def _is_linked_to_its_batches(collector: Collector, spans: list[Received]) -> None:
    dispatch = next(one for one in spans if one.name == "dispatch")
    links = {link.span_id for link in dispatch.span.links}

    def shared() -> list[Received]:
        return [one for one in collector.spans if one.span.span_id in links]

    await collector.until(lambda: len(shared()) == len(links), "the spans of work done together")
    assert {one.name for one in shared()} == {"sign orders", "record receipts"}
    for one in shared():
        assert dispatch.span.span_id in {link.span_id for link in one.span.links}
        assert one.span.trace_id != dispatch.span.trace_id, (
            "it belongs to many traces, and so to none of them"
        )


async def _is_shown_by_exemplars(stack: TestStack, trace_id: bytes) -> None:
    for port, metric in (
        (stack.ports.control_admin, 'af_stage_seconds_bucket{le="0.1",stage="node"}'),
        (stack.nodes[0].admin_port, "agentfactory_node_stage_seconds_bucket"),
    ):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as admin:
            plain = (await admin.get("/metrics")).text
            assert trace_id.hex() not in plain
            asked = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
            shown = (await admin.get("/metrics", headers=asked)).text
            assert shown.endswith("# EOF\n")
            assert metric.split("{")[0] in plain
            assert f'trace_id="{trace_id.hex()}"' in shown, metric


async def _malformed_context_is_no_error(client: httpx.AsyncClient) -> None:
    for number, wrong in enumerate(("junk", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "x" * 4000)):
        answer = await client.post(
            PATH,
            json=run_of("counter", b"peek"),
            headers={"Idempotency-Key": f"wrong-{number}", "traceparent": wrong},
        )
        assert answer.status_code == httpx.codes.OK, answer.text


async def test_what_fails_is_kept_at_ratio_0_and_what_succeeds_is_not():
    async with traced_stack() as (stack, collector):
        await stack.make_agent("actor")
        good, _ = await stack.execute("actor", b"exit 0")
        bad, _ = await stack.execute("actor", b"exit 3")

        def of(execution: executions_pb2.Execution) -> set[tuple[str, str, str]]:
            ids = {
                one.span.trace_id
                for one in collector.spans
                if one.attributes.get("execution_id") == execution.execution_id
            }
            return {
                (one.service, one.name, one.failed) for one in collector.spans if one.span.trace_id in ids
            }

        roots = {(CONTROL, EXECUTE, "failed"), (CONTROL, "dispatch", "failed"), (NODE, "order", "failed")}
        await collector.until(lambda: roots <= of(bad), "the spans of the failed execution")
        assert {"guest", "record", "commit", "receipt"} <= {name for _, name, _ in of(bad)}
        spans = [one for one in collector.spans if one.name in {EXECUTE, "dispatch", "order"}]
        assert len({one.span.trace_id for one in spans}) == 1, "they are of one trace"
        assert not of(good)


async def test_traces_begin_by_grpc_metadata_and_each_execution_of_a_stream_has_its_own():
    async with traced_stack() as (stack, collector):
        await stack.make_agent("actor")
        trace_id, traceparent = new_parent()
        async with stack.client() as client:
            requests = [await to_message(client, new_request("actor", b"exit 0", 30)) for _ in range(3)]
            message = executions_pb2.StreamExecutionsRequest(executions=requests)
            stream = client.executions.StreamExecutions(
                iter([message]), timeout=30, metadata=(("traceparent", traceparent), ("baggage", SECRET))
            )
            results = [result async for answer in stream for result in answer.results]
        assert len(results) == len(requests)

        def roots() -> list[Received]:
            return [
                one
                for one in collector.of_trace(trace_id)
                if one.name == "agentfactory.v1.ExecutionService/StreamExecutions"
            ]

        await collector.until(lambda: len(roots()) == len(requests), "a span for each execution")
        assert {one.span.parent_span_id.hex() for one in roots()} == {traceparent.split("-")[2]}
        told = {one.attributes["execution_id"] for one in roots()}
        assert told == {result.execution.execution_id for result in results}


async def test_nothing_of_a_trace_reaches_the_guest():
    async with traced_stack() as (stack, collector):
        await stack.make_agent("look", LOOK)
        async with running_gateway(stack) as gateway, gateway.client() as client:
            trace_id, traceparent = new_parent()
            answer = await client.post(
                PATH,
                json=run_of("look", b"input"),
                headers={
                    "Idempotency-Key": "look",
                    "traceparent": traceparent,
                    "tracestate": f"vendor={SECRET}",
                    "baggage": f"user={SECRET}",
                },
            )
        execution = answer.json()["execution"]
        assert execution["state"] == "EXECUTION_STATE_SUCCEEDED", execution
        seen = base64.b64decode(execution["output"]).decode()
        assert "environment AGENTFACTORY_PARAMETERS" in seen
        for hidden in (SECRET, trace_id.hex(), "traceparent", "baggage", "tracestate"):
            assert hidden not in seen.lower()
        await collector.until(
            lambda: any(one.name == "order" for one in collector.of_trace(trace_id)), "the node's span"
        )
        assert not any(SECRET in str(one.span) for one in collector.spans)

"""One trace for an execution over gateway, control plane, node and worker, received by a real OTLP server."""

import asyncio
import base64

import httpx
from agentfactory.v1 import executions_pb2

from cli.client import Client, connect
from cli.run import to_message
from tests.bench.peers import postgres_server
from tests.e2e.gateway import running_gateway
from tests.e2e.stack import ROOT, TestStack, new_request
from tests.e2e.tenants import add_tenant
from tests.e2e.traces import (
    COUNTER,
    EXECUTE,
    PATH,
    new_parent,
    run_of,
    trace_of_a_call,
    trace_of_a_failure,
    traced_stack,
)
from tests.fixtures.otlp import Collector, Received, collecting

LOOK = ROOT / "tests" / "guests" / "look.wasm"
SECRET = "of-the-callers-baggage"


async def test_a_callers_trace_is_whole_from_the_gateway_to_the_guest_and_back():
    async with collecting() as collector, traced_stack(collector.endpoint) as stack:
        await stack.make_agent("counter", COUNTER, capabilities="kv = true")
        spans, execution = await trace_of_a_call(stack, collector.endpoint, collector)
        _says_what_ran(spans, execution)
        await _is_linked_to_its_batches(collector, spans)
        await _is_shown_by_exemplars(stack, spans[0].span.trace_id)
        async with running_gateway(stack) as gateway, gateway.client() as client:
            await _malformed_context_is_no_error(client)


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
        (stack.ports.control_admin, "af_stage_seconds_bucket"),
        (stack.ports.control_admin, "af_execution_seconds_bucket"),
        (stack.nodes[0].admin_port, "agentfactory_node_stage_seconds_bucket"),
    ):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as admin:
            plain = (await admin.get("/metrics")).text
            assert trace_id.hex() not in plain
            asked = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
            shown = (await admin.get("/metrics", headers=asked)).text
            assert shown.endswith("# EOF\n")
            of_metric = [line for line in shown.splitlines() if line.startswith(metric)]
            assert any(f'# {{trace_id="{trace_id.hex()}"}}' in line for line in of_metric), metric


async def _malformed_context_is_no_error(client: httpx.AsyncClient) -> None:
    for number, wrong in enumerate(("junk", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "x" * 4000)):
        answer = await client.post(
            PATH,
            json=run_of("counter", b"peek"),
            headers={"Idempotency-Key": f"wrong-{number}", "traceparent": wrong},
        )
        assert answer.status_code == httpx.codes.OK, answer.text


async def test_what_fails_is_kept_at_ratio_0_and_what_succeeds_is_not():
    async with collecting() as collector, traced_stack(collector.endpoint) as stack:
        await stack.make_agent("actor")
        good, _ = await stack.execute("actor", b"exit 0")
        await trace_of_a_failure(stack, collector)
        assert good.execution_id not in {one.attributes.get("execution_id") for one in collector.spans}


async def test_each_tenant_has_traces_of_its_own_also_of_work_done_together():
    async with collecting() as collector, traced_stack(collector.endpoint) as stack:
        await stack.make_agent("actor")
        sql = await postgres_server.connect(stack.database.url())
        try:
            settings = await add_tenant(stack, sql, "wild", agent="actor")
        finally:
            await sql.close()
        traces: dict[str, bytes] = {}
        async with stack.client() as mine, connect(settings) as wild, asyncio.TaskGroup() as group:
            for tenant, client in (("default", mine), ("wild", wild)):
                traces[tenant], traceparent = new_parent()
                request = await to_message(client, new_request("actor", b"exit 0", 30))
                request.traceparent = traceparent
                message = executions_pb2.ExecuteRequest(execution=request)
                group.create_task(_succeeds(client, message))
        for tenant, trace_id in traces.items():
            names = {EXECUTE, "dispatch", "order", "guest", "record"}
            await collector.until(
                lambda: names <= {one.name for one in collector.of_trace(trace_id)},  # noqa: B023
                f"the trace of {tenant}",
            )
            told = {
                one.attributes["tenant_id"] for one in collector.of_trace(trace_id) if one.name == EXECUTE
            }
            assert told == {tenant}
            ids = {one.attributes.get("execution_id") for one in collector.of_trace(trace_id)} - {None}
            assert len(ids) == 1, "nothing of the other's execution stands in it"


async def _succeeds(client: Client, message: executions_pb2.ExecuteRequest) -> None:
    answer = await client.executions.Execute(message, timeout=30)
    assert answer.execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED, answer.execution


async def test_traces_begin_by_metadata_or_command_line_and_each_execution_of_a_stream_has_its_own():
    async with collecting() as collector, traced_stack(collector.endpoint) as stack:
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

        trace_id, traceparent = new_parent()
        await stack.cli("run", "actor", "--input", "-", "--traceparent", traceparent, stdin=b"exit 0")
        await collector.until(
            lambda: EXECUTE in {one.name for one in collector.of_trace(trace_id)},
            "what the command line began",
        )


async def test_nothing_of_a_trace_reaches_the_guest():
    async with collecting() as collector, traced_stack(collector.endpoint) as stack:
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

"""End-to-end latency and throughput of Execute, everything on, beside a plain grpc.aio echo in the same minutes.

Also prints where the time of one execution goes, from the histograms that operators see.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import grpc
import wasmtime
from agentfactory.v1 import executions_pb2
from prometheus_client.parser import text_string_to_metric_families

from cli.client import Client
from cli.stack import probe
from tests.bench import echo
from tests.bench.engine import NOOP
from tests.bench.report import Figure, measured, median, publish, quantile
from tests.e2e.stack import TestStack, running_stack

REPEATS = 3
ALONE = 400
"""Calls of one repeat, one in flight."""
LOADED = 1500
"""Calls of one repeat, 64 in flight."""
REPEATED = 256
"""Different requests that are sent again and again."""
IN_FLIGHT = 64
STREAM_GROUP = 16
WARM_UP = 50
BODY = b'{"text": "' + b"x" * 1000 + b'"}'
CALL_TIMEOUT = 30.0

Call = Callable[[], Awaitable[None]]


async def latencies_ms(call: Call, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1e3)
    return times


async def rate(call: Call, count: int, in_flight: int) -> float:
    """Return calls per second with `in_flight` callers, each of which waits for its answer."""
    share = count // in_flight

    async def caller() -> None:
        for _ in range(share):
            await call()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    return share * in_flight / (time.perf_counter() - started)


def request() -> executions_pb2.ExecutionRequest:
    return executions_pb2.ExecutionRequest(agent="noop", request_id=str(uuid.uuid4()), inline=BODY)


def executor(client: Client, requests: Iterable[executions_pb2.ExecutionRequest] | None = None) -> Call:
    """Return what executes once: a new request each time, unless `requests` are given."""
    stub = client.executions
    asked = iter(requests) if requests is not None else iter(request, None)

    async def call() -> None:
        answer = await stub.Execute(
            executions_pb2.ExecuteRequest(execution=next(asked)), timeout=CALL_TIMEOUT
        )
        if answer.execution.state != executions_pb2.EXECUTION_STATE_SUCCEEDED:
            raise AssertionError(f"the execution did not succeed: {answer.execution}")

    return call


async def reader(client: Client) -> Call:
    """Return what reads one execution, as somebody who polls for its end does."""
    answer = await client.executions.Execute(
        executions_pb2.ExecuteRequest(execution=request()), timeout=CALL_TIMEOUT
    )
    wanted = executions_pb2.GetExecutionRequest(execution_id=answer.execution.execution_id)

    async def call() -> None:
        await client.executions.GetExecution(wanted, timeout=CALL_TIMEOUT)

    return call


async def stream_rate(client: Client, count: int, in_flight: int) -> float:
    """Return executions per second over one StreamExecutions call with a bounded number in flight."""
    free = asyncio.Semaphore(in_flight)

    async def requests() -> AsyncIterator[executions_pb2.StreamExecutionsRequest]:
        for _ in range(count // STREAM_GROUP):
            for _ in range(STREAM_GROUP):
                await free.acquire()
            yield executions_pb2.StreamExecutionsRequest(executions=[request() for _ in range(STREAM_GROUP)])

    started = time.perf_counter()
    done = 0
    async for answer in client.executions.StreamExecutions(requests(), timeout=120):
        for result in answer.results:
            if result.execution.state != executions_pb2.EXECUTION_STATE_SUCCEEDED:
                raise AssertionError(f"an execution did not succeed: {result}")
            free.release()
            done += 1
    return done / (time.perf_counter() - started)


@asynccontextmanager
async def echo_call() -> AsyncIterator[Call]:
    """Run the echo in a process of its own and give a call of it."""
    (port,) = probe.free_ports(1)
    server = subprocess.Popen([sys.executable, "-m", "tests.bench.echo", str(port)])
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            unary = channel.unary_unary(echo.METHOD)
            await unary(BODY, wait_for_ready=True, timeout=CALL_TIMEOUT)

            async def call() -> None:
                await unary(BODY, timeout=CALL_TIMEOUT)

            yield call
    finally:
        server.kill()
        server.wait()


def stage_means_ms(admin_port: int, family: str) -> dict[str, float]:
    """Return the mean of each stage of a histogram with the label `stage`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            if sample.name == f"{family}_sum":
                sums[sample.labels["stage"]] = sample.value
            elif sample.name == f"{family}_count":
                counts[sample.labels["stage"]] = sample.value
    return {stage: total / counts[stage] * 1e3 for stage, total in sums.items() if counts[stage]}


async def stage_figures(stack: TestStack) -> list[Figure]:
    """Return where the executions of this run spent their time, by plane and stage."""
    planes = (
        ("control plane", stack.ports.control_admin, "af_stage_seconds"),
        ("node", stack.nodes[0].admin_port, "agentfactory_node_stage_seconds"),
    )
    figures = []
    for plane, port, family in planes:
        means = await asyncio.to_thread(stage_means_ms, port, family)
        figures += [
            Figure(figure=f"stage: {plane}: {stage}, mean", value=mean, unit="ms")
            for stage, mean in means.items()
        ]
    return figures


async def measure(stack: TestStack, client: Client, plain: Call) -> list[Figure]:
    execute = executor(client)
    await latencies_ms(execute, WARM_UP)
    echo_p50, p50, p99 = [], [], []
    for _ in range(REPEATS):
        echo_p50.append(quantile(await latencies_ms(plain, ALONE), 0.5))
        times = await latencies_ms(execute, ALONE)
        p50.append(quantile(times, 0.5))
        p99.append(quantile(times, 0.99))
    stages = await stage_figures(stack)
    repeat = executor(client, cycle([request() for _ in range(REPEATED)]))
    await rate(repeat, REPEATED, IN_FLIGHT)
    read = await reader(client)
    echo_rate, unary_rate, streamed_rate, repeat_rate, read_rate = [], [], [], [], []
    for _ in range(REPEATS):
        echo_rate.append(await rate(plain, LOADED, IN_FLIGHT))
        unary_rate.append(await rate(execute, LOADED, IN_FLIGHT))
        repeat_rate.append(await rate(repeat, LOADED, IN_FLIGHT))
        read_rate.append(await rate(read, LOADED, IN_FLIGHT))
        streamed_rate.append(await stream_rate(client, LOADED, IN_FLIGHT))
    return [
        measured(
            "Execute, 1 in flight, no-op agent: p50",
            p50,
            "ms",
            beside=("echo p50", echo_p50),
            bar="≤ 10 times the echo's p50, under 50 ms",
            bar_ok=median(p50) <= min(10 * median(echo_p50), 50),
        ),
        measured(
            "Execute, 1 in flight, no-op agent: p99",
            p99,
            "ms",
            beside=("echo p50", echo_p50),
            bar="≤ 40 times the echo's p50, under 50 ms",
            bar_ok=median(p99) <= min(40 * median(echo_p50), 50),
        ),
        measured(f"Execute, {IN_FLIGHT} in flight", unary_rate, "/s", beside=("echo", echo_rate)),
        measured(f"StreamExecutions, {IN_FLIGHT} in flight", streamed_rate, "/s", beside=("echo", echo_rate)),
        *(
            measured(
                f"{what}, {IN_FLIGHT} in flight",
                values,
                "/s",
                beside=("Execute", unary_rate),
                bar="≥ 0.7 times: what ended must not cost more than what runs",
                bar_ok=median(values) >= 0.7 * median(unary_rate),
            )
            for what, values in (
                ("Execute, repeated by its request id", repeat_rate),
                ("GetExecution", read_rate),
            )
        ),
        *stages,
    ]


async def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "noop.wasm"
        module.write_bytes(bytes(wasmtime.wat2wasm(NOOP)))
        async with running_stack(nodes=1) as stack, stack.client() as client, echo_call() as plain:
            await stack.make_agent("noop", module)
            return await measure(stack, client, plain)


def main() -> int:
    return publish("execute", asyncio.run(run()))


if __name__ == "__main__":
    sys.exit(main())

"""Two tenants on one node: a flood of one is bounded, and what one of them brings forth is its own."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest
from agentfactory.v1 import executions_pb2

from cli.client import Client, connect
from cli.run import execute_with, to_message
from shared.errors import ResourceExhaustedError
from shared.rpc.errors import error_of
from tests.bench.peers import postgres_server
from tests.e2e.stack import new_request, running_stack
from tests.e2e.tenants import add_tenant

AGENT = "busy"
RUN = b"sleep 100"
BOUND = 40
LARGE = b"output 200000"
"""More than travels in a message."""
LONG = 300.0
"""Seconds that the flood may wait: nothing of it expires."""


async def submit(client: Client) -> None:
    execution = await to_message(client, new_request(AGENT, RUN, LONG))
    await client.executions.SubmitExecution(
        executions_pb2.SubmitExecutionRequest(execution=execution), timeout=10
    )


async def flood(client: Client) -> ResourceExhaustedError:
    """Submit until refused; return the refusal."""
    for _ in range(3 * BOUND):
        try:
            await submit(client)
        except grpc.aio.AioRpcError as error:
            typed = error_of(error)
            assert isinstance(typed, ResourceExhaustedError), typed
            return typed
    raise AssertionError("nothing was refused")


async def refused_on_stream(client: Client) -> executions_pb2.ExecutionResult:
    """Ask for more than may wait in one message of a stream; return the first that is refused."""
    asked = [await to_message(client, new_request(AGENT, RUN, LONG)) for _ in range(2 * BOUND)]

    async def requests() -> AsyncIterator[executions_pb2.StreamExecutionsRequest]:
        yield executions_pb2.StreamExecutionsRequest(executions=asked)

    async for answer in client.executions.StreamExecutions(requests(), timeout=60):
        for result in answer.results:
            if result.HasField("error"):
                return result
    raise AssertionError("nothing was refused")


async def test_a_flood_is_bounded_and_delays_another_tenant_by_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AF_CONTROL_MAX_PENDING_PER_TENANT", str(BOUND))
    async with running_stack(nodes=1, AF_NODE_SLOTS="1") as stack:
        sql = await postgres_server.connect(stack.database.url())
        try:
            await stack.make_agent(AGENT)
            wild_settings = await add_tenant(stack, sql, "wild", agent=AGENT)
            await stack.execute(AGENT, RUN)  # compiled and warm
            async with connect(wild_settings) as wild:
                refused = await flood(wild)
                assert refused.retry_after is not None
                assert timedelta(0) < refused.retry_after <= timedelta(seconds=30)
                waiting = (
                    "SELECT count(*) FROM executions WHERE tenant_id = 'wild' AND claimable_at IS NOT NULL"
                )
                assert BOUND / 2 < await sql.fetchval(waiting) <= BOUND
                result = await refused_on_stream(wild)
                assert result.error.reason == ResourceExhaustedError.reason
                assert result.error.retry_after.ToTimedelta() > timedelta(0)
                execution, _ = await asyncio.wait_for(stack.execute(AGENT, RUN), 30)
            assert execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED
            overtook = await sql.fetchval(
                "SELECT count(*) FROM executions w, executions m WHERE m.execution_id = $1"
                " AND w.tenant_id = 'wild' AND w.ended_at BETWEEN m.created_at AND m.ended_at",
                execution.execution_id,
            )
            assert overtook <= BOUND / 4, "its turn came before the flood's"
        finally:
            await sql.close(timeout=5)


async def test_a_large_output_of_one_tenant_comes_from_a_node_that_another_enrolled() -> None:
    async with running_stack(nodes=1) as stack:
        sql = await postgres_server.connect(stack.database.url())
        try:
            await stack.make_agent(AGENT)
            settings = await add_tenant(stack, sql, "guest", agent=AGENT)
            async with connect(settings) as client:
                execution, output = await execute_with(client, new_request(AGENT, LARGE, 60))
            assert execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED
            assert len(output) == 200_000
        finally:
            await sql.close(timeout=5)

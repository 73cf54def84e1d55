"""Chaos: nodes and the control plane are killed under load; nothing accepted is lost and everything ends once."""

import asyncio
import random
import uuid
from collections import Counter
from datetime import timedelta

import grpc
import pytest
from agentfactory.v1 import common_pb2, executions_pb2

from tests.e2e.stack import ENDED, TestStack, eventually, kill, running_stack

SEED = 20261124
ROUNDS = 4
PAUSE_SECONDS = 3.0
CALLERS = 4
RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


async def submit_until(stack: TestStack, stop: asyncio.Event, accepted: dict[str, str]) -> None:
    """Submit one execution after the other; repeat each with its request id until it is accepted."""
    async with stack.client() as client:
        while not stop.is_set():
            request_id = str(uuid.uuid4())
            message = executions_pb2.SubmitExecutionRequest(
                execution=executions_pb2.ExecutionRequest(
                    agent="actor", request_id=request_id, inline=b"output 10"
                )
            )
            while request_id not in accepted:
                try:
                    answer = await client.executions.SubmitExecution(message, timeout=5)
                    accepted[request_id] = answer.execution.execution_id
                except grpc.aio.AioRpcError as error:
                    if error.code() not in RETRYABLE:
                        raise
                    await asyncio.sleep(0.05)  # a caller's backoff, not a wait for anything of ours


async def wreak_havoc(stack: TestStack, dice: random.Random) -> None:
    """Kill a node, and every other time the control plane as well; start them again."""
    for number in range(ROUNDS):
        await asyncio.sleep(PAUSE_SECONDS)
        node = dice.choice(stack.nodes)
        await kill(node.running)
        if number % 2:
            await stack.kill_control_plane()
            await stack.start_control_plane()
        await stack.start_node(node)


@pytest.mark.timeout(300)
async def test_chaos_nothing_accepted_is_lost_and_everything_ends_once() -> None:
    accepted: dict[str, str] = {}
    stop = asyncio.Event()
    async with running_stack(nodes=2) as stack:
        await stack.make_agent("actor")
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(submit_until(stack, stop, accepted)) for _ in range(CALLERS)]
            await wreak_havoc(stack, random.Random(SEED))
            stop.set()
            await asyncio.wait(callers)
        assert len(accepted) > ROUNDS * CALLERS
        assert len(set(accepted.values())) == len(accepted)
        await everything_ends_well(stack, accepted)


async def everything_ends_well(stack: TestStack, accepted: dict[str, str]) -> None:
    """See each execution succeed, with one receipt that decided it."""
    open_states = [executions_pb2.EXECUTION_STATE_PENDING, executions_pb2.EXECUTION_STATE_RUNNING]
    async with stack.client() as client:

        async def waiting() -> int:
            request = executions_pb2.ListExecutionsRequest(
                page=common_pb2.PageRequest(page_size=1), states=open_states
            )
            return len((await client.executions.ListExecutions(request, timeout=10)).executions)

        await eventually(waiting, lambda count: count == 0, "the end of all", timedelta(seconds=120))
        ends: Counter[int] = Counter()
        for execution_id in accepted.values():
            request = executions_pb2.GetExecutionRequest(execution_id=execution_id)
            execution = (await client.executions.GetExecution(request, timeout=10)).execution
            assert execution.state in ENDED
            finished = [attempt for attempt in execution.attempts if attempt.receipt_id]
            if execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED:
                assert execution.receipt_id == finished[-1].receipt_id
            ends[execution.state] += 1
    # A poison-input run may be lost after three kills in a row; with four kills of one node nothing can be.
    assert ends == {executions_pb2.EXECUTION_STATE_SUCCEEDED: len(accepted)}

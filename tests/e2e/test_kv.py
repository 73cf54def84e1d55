"""An agent that counts its runs, through the whole system: what kv promises and what it does not."""

import asyncio
import json

from agentfactory.v1 import executions_pb2

from cli.run import execute_with
from tests.e2e.stack import ROOT, TestStack, kill, new_request, running_stack

COUNTER = ROOT / "tests" / "guests" / "counter.wasm"
RUNS = 100


async def ask(stack: TestStack, word: bytes) -> tuple[executions_pb2.Execution, int]:
    """Run the agent, which has to succeed; returns the number that it printed."""
    execution, body = await stack.execute("counter", body=word)
    if execution.state != executions_pb2.EXECUTION_STATE_SUCCEEDED:
        logs = await stack.cli("execution", "logs", execution.execution_id, expect=None)
        raise AssertionError(f"{execution} {logs.out}")
    return execution, int(body)


async def peek(stack: TestStack) -> int:
    return (await ask(stack, b"peek"))[1]


async def test_an_agent_counts_its_runs() -> None:
    async with running_stack(AF_NODE_SLOTS="2") as stack:
        await stack.make_agent("counter", COUNTER, capabilities="kv = true")

        outputs = [await ask(stack, b"count") for _ in range(RUNS)]
        assert [number for _, number in outputs] == list(range(1, RUNS + 1))

        failed, _ = await stack.execute("counter", b"fail")
        assert (failed.state, failed.exit_code) == (executions_pb2.EXECUTION_STATE_FAILED, 1)
        assert await peek(stack) == RUNS, "a run that fails takes back what it wrote"

        await _side_by_side(stack)
        await _recorded(stack, outputs[0][0].execution_id)
        await _outlives_processes(stack)
        await _forgotten_with_the_agent(stack)


async def _side_by_side(stack: TestStack) -> None:
    """The last accepted writer wins: runs at the same time may count the same number."""
    before = await peek(stack)
    async with stack.client() as client:
        requests = [new_request("counter", b"count", 60) for _ in range(20)]
        together = await asyncio.gather(*(execute_with(client, one) for one in requests))
    assert {one.state for one, _ in together} == {executions_pb2.EXECUTION_STATE_SUCCEEDED}
    numbers = {int(output) for _, output in together}
    after = await peek(stack)
    assert numbers <= set(range(before + 1, before + 21))
    assert after in numbers


async def _recorded(stack: TestStack, execution_id: str) -> None:
    shown = await stack.cli("execution", "recording", execution_id)
    calls = [json.loads(line) for line in shown.out.splitlines()]
    assert [one["method"] for one in calls] == ["kv.get", "kv.put", "kv.get"]


async def _outlives_processes(stack: TestStack) -> None:
    before = await peek(stack)
    (node,) = stack.nodes
    assert stack.control_plane is not None
    await kill(stack.control_plane)
    await kill(node.running)
    await stack.start_control_plane()
    await stack.start_node(node)
    assert await peek(stack) == before


async def _forgotten_with_the_agent(stack: TestStack) -> None:
    await stack.cli("agent", "delete", "counter")
    await stack.cli("agent", "create", "counter", "--template", "counter@1.0.0")
    assert await peek(stack) == 0


async def test_without_the_capability_a_guest_is_denied() -> None:
    async with running_stack() as stack:
        await stack.make_agent("counter", COUNTER)
        denied, _ = await stack.execute("counter", b"count")
        assert (denied.state, denied.exit_code) == (executions_pb2.EXECUTION_STATE_FAILED, 3)
        shown = await stack.cli("execution", "logs", denied.execution_id)
        assert "NOT_GRANTED" in shown.out

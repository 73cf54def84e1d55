"""Machine code that another machine made: compiled once, taken by the nodes that believe a compiler key."""

import asyncio
import re
from datetime import timedelta
from urllib.request import urlopen

import pytest
from agentfactory.v1 import executions_pb2

from shared.key_files import read_public_key
from tests.e2e.stack import EVENTUALLY, TestNode, TestStack, eventually, running_stack

pytestmark = pytest.mark.timeout(240)

SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED


async def metric(node: TestNode, name: str) -> float:
    def read() -> str:
        with urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=5) as answer:
            return answer.read().decode()

    found = re.search(rf"^{re.escape(name)} (\S+)$", await asyncio.to_thread(read), re.MULTILINE)
    return float(found[1]) if found else 0.0


async def here(node: TestNode) -> float:
    return await metric(node, 'agentfactory_node_new_modules_total{compiled="here"}')


async def elsewhere(node: TestNode) -> float:
    return await metric(node, 'agentfactory_node_new_modules_total{compiled="elsewhere"}')


async def compiled(node: TestNode, count: int, within: timedelta = EVENTUALLY) -> None:
    await eventually(
        lambda: metric(node, "agentfactory_compiler_modules_total"),
        lambda value: value >= count,
        f"{count} compiled modules",
        within,
    )


async def run(stack: TestStack, agent: str = "actor") -> None:
    execution, _ = await stack.execute(agent, b"exit 0")
    assert execution.state == SUCCEEDED, execution


async def test_a_node_that_accepts_it_runs_what_another_machine_compiled_and_forgets_it_with_the_key():
    async with running_stack(nodes=1, AF_NODE_ACCEPT_COMPILED_ARTIFACTS="true") as stack:
        (node,) = stack.nodes
        compiler = await stack.add_compiler()
        await stack.make_agent("actor")
        await compiled(compiler, 1)

        await run(stack)

        assert (await here(node), await elsewhere(node)) == (0, 1)

        key = read_public_key(compiler.paths.data_dir / "compiler.pub").key_id
        await stack.cli("keys", "revoke", key)
        await eventually(
            lambda: metric(node, 'agentfactory_node_workers{state="warm"}'),
            lambda value: value == 0,
            "the end of the worker that was loaded on the word of the revoked key",
        )
        await run(stack)

        assert (await here(node), await elsewhere(node)) == (1, 1)


async def test_a_node_that_does_not_accept_it_compiles_itself():
    async with running_stack(nodes=1) as stack:
        (node,) = stack.nodes
        compiler = await stack.add_compiler()
        await stack.make_agent("actor")
        await compiled(compiler, 1)

        await run(stack)

        assert (await here(node), await elsewhere(node)) == (1, 0)

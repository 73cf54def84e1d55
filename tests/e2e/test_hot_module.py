"""A module that everybody wants: it reaches every node of a fleet, and each of them once."""

import asyncio
import urllib.request

from cli.run import execute_with
from cli.settings import CliSettings
from shared.trust import read_trust
from tests.bench.scale.fleet import SimulatedFleet, enroll_many
from tests.bench.scale.node import CALL_SECONDS
from tests.e2e.stack import TestStack, new_request, running_stack

NODES = 20
AGENT = "hot"


async def execute_many(stack: TestStack, count: int) -> None:
    async with stack.client() as client, asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(execute_with(client, new_request(AGENT, b"{}", CALL_SECONDS)))


def fetches_served(admin_port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counted = 'af_rpc_seconds_count{code="OK",method="NodeService/FetchArtifact"} '
    return sum(float(line.removeprefix(counted)) for line in lines if line.startswith(counted))


async def test_a_hot_module_reaches_every_node_once() -> None:
    async with running_stack(nodes=0) as stack:
        await stack.make_agent(AGENT)
        trust = read_trust(stack.paths.node.trust)
        target = f"localhost:{stack.ports.grpc}"
        settings = CliSettings(data_dir=stack.paths.data_dir, target=target)
        # One slot, held for a while: more executions at once than slots, so that no node can be left out.
        fleet = SimulatedFleet(trust, [target], slots=1, run_seconds=1.0)
        for identity in await enroll_many(settings, f"localhost:{stack.ports.enroll}", trust, NODES):
            fleet.add(identity)
        try:
            await fleet.connect(NODES)
            await execute_many(stack, 2 * NODES)
            await execute_many(stack, NODES)
        finally:
            await fleet.close()
        assert [list(node.fetches.values()) for node in fleet.nodes] == [[1]] * NODES
        assert await asyncio.to_thread(fetches_served, stack.ports.control_admin) == NODES
        assert fleet.counts.answered == 3 * NODES
        assert fleet.broken == 0

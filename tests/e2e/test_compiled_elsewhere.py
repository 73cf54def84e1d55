"""Machine code that another machine made: compiled once, taken by the nodes that believe a compiler key."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from agentfactory.v1 import executions_pb2, executions_pb2_grpc, nodes_pb2, nodes_pb2_grpc, orders_pb2

from data_plane.__main__ import REFUSED
from data_plane.identity import read_identity
from shared.key_files import read_public_key
from shared.rpc.channel import connect
from shared.trust import read_trust
from tests.e2e.stack import EVENTUALLY, TestNode, TestStack, eventually, running_stack
from tests.fixtures.runtimes import weighed, weighing_module

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


async def pieces(node: TestNode) -> tuple[float, float]:
    """Return how many were fetched and how many were here already."""
    name = "agentfactory_node_artifact_pieces_total"
    return await metric(node, f'{name}{{piece="fetched"}}'), await metric(node, f'{name}{{piece="reused"}}')


async def compiled(node: TestNode, count: int, within: timedelta = EVENTUALLY) -> None:
    await eventually(
        lambda: metric(node, "agentfactory_compiler_modules_total"),
        lambda value: value >= count,
        f"{count} compiled modules",
        within,
    )


async def ready(node: TestNode, wanted: int) -> None:
    await eventually(
        lambda: metric(node, "agentfactory_compiler_ready"),
        lambda value: value == wanted,
        "what the alert CompilerIdle looks at",
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
        await ready(compiler, 1)

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
        await ready(compiler, 0)


async def test_a_node_that_does_not_accept_it_compiles_itself_and_each_duty_keeps_to_its_own_calls():
    async with running_stack(nodes=1) as stack:
        (node,) = stack.nodes
        compiler = await stack.add_compiler()
        await stack.make_agent("actor")
        await compiled(compiler, 1)

        await run(stack)

        assert (await here(node), await elsewhere(node)) == (1, 0)
        async with channel_of(stack, compiler) as channel:
            assert await refused(calls_of_a_node(channel)) == {grpc.StatusCode.PERMISSION_DENIED}
        async with channel_of(stack, node) as channel:
            assert await refused(calls_of_a_compiler(channel)) == {grpc.StatusCode.PERMISSION_DENIED}
        async with channel_of(stack, compiler) as channel:
            desk = nodes_pb2_grpc.CompileServiceStub(channel)
            listed = await desk.ListCompilations(
                nodes_pb2.ListCompilationsRequest(targets=[TARGET]), timeout=10
            )
            assert listed.keyset

        await stack.cli("node", "evict", compiler.node_id, "--reason", "stolen")
        assert await compiler.running.process.wait() == REFUSED
        async with channel_of(stack, compiler) as channel:
            assert await refused(calls_of_a_compiler(channel)) == {grpc.StatusCode.UNAUTHENTICATED}


async def test_of_a_second_python_agent_only_the_pieces_travel_that_are_its_own(tmp_path):
    async with running_stack(nodes=1, AF_NODE_ACCEPT_COMPILED_ARTIFACTS="true") as stack:
        (node,) = stack.nodes
        compiler = await stack.add_compiler()
        for number in (1, 2):
            path = tmp_path / f"{number}.wasm"
            path.write_bytes(weighing_module(tmp_path, number))
            await stack.make_agent(f"weighs-{number}", path)
        await compiled(compiler, 2, within=timedelta(minutes=2))

        assert await says(stack, "weighs-1") == weighed(1)
        everything, nothing = await pieces(node)
        await eventually(
            lambda: asyncio.to_thread(lambda: len(list(node.paths.artifacts.glob("*.artifact")))),
            lambda count: count == 1,
            "the first agent's machine code on the disk",
        )
        assert await says(stack, "weighs-2") == weighed(2)

        fetched, reused = await pieces(node)
        assert nothing == 0
        assert fetched - everything < everything / 2
        assert reused > everything / 2
        assert (await here(node), await elsewhere(node)) == (0, 2)


async def says(stack: TestStack, agent: str) -> Any:
    execution, output = await stack.execute(agent, b'{"text": "to be or not to be"}')
    assert execution.state == SUCCEEDED, execution
    return json.loads(output)


TARGET = nodes_pb2.CompilationTarget(
    profile=orders_pb2.PROFILE_DEFAULT,
    engine_name="wasmer",
    engine_version="0",
    config_digest="sha256:" + "0" * 64,
    cpu_features="none",
)
ATTEMPT = nodes_pb2.AttemptRef(
    execution_id="exe_0190f0a0-0000-7000-8000-000000000000", attempt_number=1, fencing_token=1
)
DIGEST = "sha256:" + "0" * 64


@asynccontextmanager
async def channel_of(stack: TestStack, node: TestNode) -> AsyncIterator[grpc.aio.Channel]:
    """Connect as this node does, with its own certificate."""
    identity = read_identity(node.paths)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_trust(node.paths.trust).ca_certificate_pem,
        private_key=identity.tls_key_pem,
        certificate_chain=identity.certificate.chain_pem,
    )
    async with connect(f"localhost:{stack.ports.grpc}", credentials) as channel:
        yield channel


def calls_of_a_node(channel: grpc.aio.Channel) -> list[Any]:
    node, people = nodes_pb2_grpc.NodeServiceStub(channel), executions_pb2_grpc.ExecutionServiceStub(channel)
    fetch = nodes_pb2.FetchCompiledArtifactRequest(attempt=ATTEMPT, template_digest=DIGEST, target=TARGET)
    return [
        node.Session(iter(())),
        node.FetchArtifact(nodes_pb2.FetchArtifactRequest(attempt=ATTEMPT, template_digest=DIGEST)),
        node.FetchBody(nodes_pb2.FetchBodyRequest(attempt=ATTEMPT)),
        node.FetchCompiledArtifact(fetch),
        node.UploadOutput(iter(())),
        people.ListExecutions(executions_pb2.ListExecutionsRequest()),
    ]


def calls_of_a_compiler(channel: grpc.aio.Channel) -> list[Any]:
    desk = nodes_pb2_grpc.CompileServiceStub(channel)
    statement = nodes_pb2.UploadCompiledArtifactRequest(statement=b"statement")
    return [
        desk.ListCompilations(nodes_pb2.ListCompilationsRequest(targets=[TARGET])),
        desk.FetchModule(nodes_pb2.FetchModuleRequest(template_digest=DIGEST)),
        desk.UploadCompiledArtifact(iter([statement])),
    ]


async def refused(calls: list[Any]) -> set[grpc.StatusCode]:
    """Return how the calls ended."""
    async with asyncio.timeout(20):
        return {await call.code() for call in calls}

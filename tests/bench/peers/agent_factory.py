"""Agent Factory with everything on: Postgres, control plane and a node with two slots, each a process of its own."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import grpc
from agentfactory.v1 import executions_pb2
from agentfactory.v1.executions_pb2 import (
    ExecuteRequest,
    Execution,
    ExecutionRequest,
    StreamExecutionsRequest,
    StreamExecutionsResponse,
)

from cli.client import Client
from cli.stack import local
from cli.stack.children import Child, ChildSpec, spawn, stop
from tests.bench.peers.bare import SAID, bare_spec
from tests.bench.peers.job import module_bytes
from tests.bench.peers.load import Submit
from tests.bench.peers.peer import SLOTS, Peer, System
from tests.bench.peers.postgres_server import require_durable
from tests.e2e.stack import TestStack, running_stack

AGENT = "bench"
CALL_SECONDS = 60.0
STREAM_SECONDS = 600.0
MAX_MESSAGE_EXECUTIONS = 64


class AgentFactory(Peer):
    _stack: TestStack

    async def prepare(self, kept: AsyncExitStack) -> None:
        """Make installation, node and agent, then stop the processes: the cold start starts them again."""
        module = self.folder / "bench.wasm"
        module.write_bytes(module_bytes())
        os.environ["AF_NODE_SLOTS"] = str(SLOTS)
        self._stack = await kept.enter_async_context(running_stack(nodes=1))
        await require_durable(self._stack.database.url())
        await self._stack.make_agent(AGENT, module)
        await self._stop()

    async def start(self, running: AsyncExitStack) -> System:
        stack = self._stack
        await stack.start_postgres()
        running.push_async_callback(self._stop)
        await stack.start_control_plane()
        await stack.start_node(stack.nodes[0])
        client = await running.enter_async_context(stack.client())
        assert stack.control_plane is not None
        return System(
            submit=unary(client),
            streamed=await streamed(client, running),
            roots={
                "postgres": stack.postgres.pid,
                "control plane": stack.control_plane.pid,
                "node": stack.nodes[0].running.pid,
            },
        )

    async def _stop(self) -> None:
        stack = self._stack
        assert stack.control_plane is not None
        for child in (stack.nodes[0].running, stack.control_plane, stack.postgres):
            await stop(child)


class AgentFactoryBare(AgentFactory):
    """The same without policy and receipts: what everything on is divided by. See `bare`."""

    async def start(self, running: AsyncExitStack) -> System:
        setattr(local, "spawn", _spawn_bare)  # noqa: B010 - it is imported there, not exported
        running.callback(setattr, local, "spawn", spawn)
        system = await super().start(running)
        for child in (self._stack.control_plane, self._stack.nodes[0].child):
            assert child is not None
            log = child.spec.log.read_bytes()[child.log_start :]
            assert SAID.encode() in log, f"{child.spec.name} runs with everything on"
        return system


async def _spawn_bare(spec: ChildSpec) -> Child:
    return await spawn(bare_spec(spec))


def request(body: bytes) -> ExecutionRequest:
    return ExecutionRequest(agent=AGENT, request_id=str(uuid4()), inline=body)


def output_of(execution: Execution) -> bytes:
    if execution.state != executions_pb2.EXECUTION_STATE_SUCCEEDED:
        raise AssertionError(f"the execution did not succeed: {execution}")
    output: bytes = execution.output
    return output


def unary(client: Client) -> Submit:
    """Return Execute: one call for each job."""
    execute = client.executions.Execute

    async def submit(body: bytes) -> bytes:
        answer = await execute(ExecuteRequest(execution=request(body)), timeout=CALL_SECONDS)
        return output_of(answer.execution)

    return submit


async def streamed(client: Client, running: AsyncExitStack) -> Submit:
    """Return StreamExecutions: one stream for all jobs; those that wait together travel in one message.

    The stream is opened by the first job and ends with `running`.
    """
    stream = _Stream(client)
    running.push_async_callback(stream.close)
    return stream.submit


class _Stream:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: list[ExecutionRequest] = []
        self._more = asyncio.Event()
        self._expected: dict[str, asyncio.Future[bytes]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def submit(self, body: bytes) -> bytes:
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        message = request(body)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._expected[message.request_id] = future
        self._waiting.append(message)
        self._more.set()
        return await future

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _messages(self) -> AsyncIterator[StreamExecutionsRequest]:
        while True:
            await self._more.wait()
            self._more.clear()
            taken, self._waiting = self._waiting, []
            for first in range(0, len(taken), MAX_MESSAGE_EXECUTIONS):
                yield StreamExecutionsRequest(executions=taken[first : first + MAX_MESSAGE_EXECUTIONS])

    async def _read(self) -> None:
        stream = self._client.executions.StreamExecutions(self._messages(), timeout=STREAM_SECONDS)
        ended: BaseException = AssertionError("the stream ended by itself")
        try:
            answer: StreamExecutionsResponse
            async for answer in stream:
                for result in answer.results:
                    future = self._expected.pop(result.request_id)
                    future.set_result(output_of(result.execution))
        except grpc.aio.AioRpcError as error:
            ended = error
        finally:
            stream.cancel()
            for future in self._expected.values():
                future.set_exception(ended)

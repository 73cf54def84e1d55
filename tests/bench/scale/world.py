"""The system under measurement: one Postgres, one or two control planes, simulated nodes in processes of their own."""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from agentfactory.v1 import executions_pb2

from cli.client import Client, connect
from cli.settings import CliSettings
from cli.stack import local, probe
from cli.stack.children import Child, stop
from tests.bench.execute import Call, executor
from tests.bench.execute import rate as rate_of
from tests.bench.peers import postgres_server
from tests.bench.peers.load import schedule
from tests.bench.report import quantile
from tests.bench.scale.costs import Cost, Reading, Window
from tests.e2e.stack import READY, ROOT, TestStack, running_stack

AGENT = "echo"
BODY = b'{"text": "' + b"x" * 1000 + b'"}'
CALL_SECONDS = 30.0
IN_FLIGHT = 64
SETTLE_SECONDS = 2.0
CLOSING_SECONDS = 5.0
"""Until the ends of a thousand sessions are on record: they would count as statements of the idle system."""
ANSWER_SECONDS = 180.0


def say(line: str) -> None:
    """Tell whoever waits what is going on."""
    sys.stdout.write(f"· {line}\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One window of load and the idle one before it, with the same nodes."""

    nodes: int
    idle: Window
    loaded: Window
    cost: Cost
    p50_ms: float
    p95_ms: float


@dataclass(slots=True)
class Fleet:
    """One process of simulated nodes."""

    process: asyncio.subprocess.Process

    async def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and return its answer.

        Raises:
            AssertionError: The process has ended.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(ANSWER_SECONDS):
            line = await self.process.stdout.readline()
        if not line:
            raise AssertionError("the simulated nodes have ended; why was printed")
        return dict(json.loads(line))


@dataclass(slots=True, kw_only=True)
class World:
    """Everything that runs, and a client of each replica."""

    stack: TestStack
    sql: Any
    clients: list[Client]
    replicas: list[Child]
    fleets: list[Fleet] = field(default_factory=list)

    async def reading(self) -> Reading:
        return await Reading.now(
            self.sql,
            postgres=self.stack.postgres.pid,
            control_planes=[replica.pid for replica in self.replicas],
            ours=[fleet.process.pid for fleet in self.fleets],
        )

    async def connect(self, nodes: int) -> None:
        """Have exactly so many nodes connected."""
        share = _shares(nodes, len(self.fleets))
        await asyncio.gather(
            *(fleet.ask(connect=each) for fleet, each in zip(self.fleets, share, strict=True))
        )

    async def load(self, rate: float, seconds: float) -> list[float]:
        """Send executions at a rate, whatever is under way, and return the seconds from due to answered."""
        took: list[float] = []
        call = self._executor()

        async def one(due: float) -> None:
            await call()
            took.append(time.perf_counter() - due)

        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for offset in schedule(rate, seconds):
                if (delay := start + offset - time.perf_counter()) > 0:
                    await asyncio.sleep(delay)
                group.create_task(one(start + offset))
        return took

    async def fill(self, count: int) -> float:
        """Return executions per second with 64 callers, each of which waits for its answer, on all replicas."""
        return await rate_of(self._executor(), count, IN_FLIGHT)

    def _executor(self) -> Call:
        """Return what executes once, at the replicas in turn."""
        calls = cycle([executor(client, iter(_request, None)) for client in self.clients])

        async def call() -> None:
            await next(calls)()

        return call

    async def measure(self, nodes: int, *, rate: float, idle_seconds: float, seconds: float) -> Measured:
        """Connect so many nodes, then measure the idle system and the loaded one."""
        await self.connect(nodes)
        await self.load(rate, SETTLE_SECONDS)  # every path is warm, every counter has moved
        # The first write to a page after a checkpoint is logged whole: every window begins behind one.
        await self.sql.execute("CHECKPOINT")
        await asyncio.sleep(SETTLE_SECONDS)
        before = await self.reading()
        await asyncio.sleep(idle_seconds)
        between = await self.reading()
        took = await self.load(rate, seconds)
        after = await self.reading()
        idle, loaded = between.since(before), after.since(between)
        return Measured(
            nodes=nodes,
            idle=idle,
            loaded=loaded,
            cost=Cost.of(loaded, idle, len(took)),
            p50_ms=quantile(took, 0.5) * 1e3,
            p95_ms=quantile(took, 0.95) * 1e3,
        )

    async def statements(self, rate: float, seconds: float) -> float:
        """Return the statements of one execution, idle ones taken off, as Postgres itself logs them."""
        await self.sql.execute("ALTER SYSTEM SET log_statement = 'all'")
        await self.sql.execute("SELECT pg_reload_conf()")
        try:
            await self.load(rate, SETTLE_SECONDS)
            await asyncio.sleep(CLOSING_SECONDS)
            counts = [self._logged()]
            await asyncio.sleep(seconds)
            counts.append(self._logged())
            started = time.perf_counter()
            took = await self.load(rate, seconds)
            ran = time.perf_counter() - started
            counts.append(self._logged())
        finally:
            await self.sql.execute("ALTER SYSTEM RESET log_statement")
            await self.sql.execute("SELECT pg_reload_conf()")
        idle = (counts[1] - counts[0]) / seconds
        return (counts[2] - counts[1] - idle * ran) / len(took)

    def _logged(self) -> int:
        text = self.stack.database.log.read_bytes()
        return text.count(b"LOG:  execute ") + text.count(b"LOG:  statement: ")

    async def doubles(self) -> tuple[int, int]:
        """Return how many executions have more than one accepted receipt, and how many did not succeed."""
        twice = await self.sql.fetchval(
            "SELECT count(*) FROM (SELECT execution_id FROM receipts WHERE accepted"
            " GROUP BY execution_id HAVING count(*) > 1) AS twice"
        )
        other = await self.sql.fetchval("SELECT count(*) FROM executions WHERE state <> 'succeeded'")
        return int(twice), int(other)


@asynccontextmanager
async def running_world(*, nodes: int, replicas: int = 1, processes: int = 1) -> AsyncIterator[World]:
    """Run control planes and enrolled simulated nodes, none of them connected yet."""
    async with running_stack(nodes=0) as stack, AsyncExitStack() as kept:
        await stack.make_agent(AGENT)
        assert stack.control_plane is not None
        children, ports = [stack.control_plane], [stack.ports]
        for _ in range(replicas - 1):
            ports.append(local.Ports.free())
            children.append(await _start_replica(stack, ports[-1]))
            kept.push_async_callback(stop, children[-1])
        targets = [f"localhost:{one.grpc}" for one in ports]
        clients = [
            await kept.enter_async_context(connect(CliSettings(data_dir=stack.paths.data_dir, target=target)))
            for target in targets
        ]
        sql = await postgres_server.connect(stack.database.url())
        kept.push_async_callback(sql.close, timeout=5)
        fleets = [
            await kept.enter_async_context(_fleet(stack, targets, share))
            for share in _shares(nodes, processes)
        ]
        for fleet in fleets:
            await fleet.answer()
        yield World(stack=stack, sql=sql, clients=clients, replicas=children, fleets=fleets)


async def _start_replica(stack: TestStack, ports: local.Ports) -> Child:
    """Start a further control plane of the same installation and wait until it serves."""
    child = await local.start_control_plane(stack.paths.data_dir, ports, stack.database)
    await probe.wait_until_ready(child, ports.control_admin, within=READY)
    return child


@asynccontextmanager
async def _fleet(stack: TestStack, targets: Sequence[str], nodes: int) -> AsyncIterator[Fleet]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.scale.fleet"),
        *("--data-dir", str(stack.paths.data_dir), "--nodes", str(nodes)),
        *("--enroll-target", f"localhost:{stack.ports.enroll}", *targets),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Fleet(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _request() -> executions_pb2.ExecutionRequest:
    return executions_pb2.ExecutionRequest(agent=AGENT, request_id=str(uuid.uuid4()), inline=BODY)


def _shares(nodes: int, processes: int) -> list[int]:
    """Split nodes among processes as evenly as it goes."""
    return [nodes // processes + (number < nodes % processes) for number in range(processes)]

"""The system under pressure: one control plane, one node, two tenants with a caller each in processes of their own."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.peers import postgres_server
from tests.bench.peers.memory import tree_bytes
from tests.bench.report import quantile
from tests.e2e.stack import ACTOR, ROOT, TestStack, running_stack
from tests.e2e.tenants import add_tenant

AGENT: Final = "pressed"
MIB: Final = 1024 * 1024
POLL_SECONDS: Final = 0.2
QUIET_SECONDS: Final = 300.0
ANSWER_SECONDS: Final = 600.0
SLOTS: Final = 8
MAX_PENDING_PER_TENANT: Final = 12_000
"""A flood of 10,000 fits; four times the capacity reaches it."""


@dataclass(slots=True)
class Process:
    """A caller's process."""

    process: asyncio.subprocess.Process

    async def do(self, task: str, **how: Any) -> dict[str, Any]:
        """Give it a task and return its answer.

        Raises:
            AssertionError: The process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": task, **how}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            line = await self.process.stdout.readline()
        if not line:
            raise AssertionError("the caller has ended; why was printed")
        return dict(json.loads(line))

    async def p95_ms(self, *, rate: float, seconds: float) -> tuple[float, int]:
        """Execute at a rate; return the 95th percentile of milliseconds from due to answered, and how many."""
        took = (await self.do("steady", rate=rate, seconds=seconds))["took"]
        return quantile(took, 0.95) * 1e3, len(took)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that runs."""

    stack: TestStack
    sql: Any
    folder: Path

    def roots(self, caller: Process) -> dict[str, int]:
        """Return the first process of each part, a caller's too."""
        assert self.stack.control_plane is not None
        return {
            "control plane": self.stack.control_plane.pid,
            "node": self.stack.nodes[0].running.pid,
            "postgres": self.stack.postgres.pid,
            "caller": caller.process.pid,
        }

    def control_plane_mib(self) -> float:
        """Return the PSS of the control plane."""
        assert self.stack.control_plane is not None
        return tree_bytes([self.stack.control_plane.pid]) / MIB

    async def ended(self) -> int:
        """Return how many executions have ended."""
        return int(await self.sql.fetchval("SELECT count(*) FROM executions WHERE ended_at IS NOT NULL"))

    async def counts(self) -> tuple[int, int]:
        """Return how many executions there are, and how many of them have ended."""
        row = await self.sql.fetchrow("SELECT count(*), count(ended_at) FROM executions")
        return int(row[0]), int(row[1])

    async def waiting(self) -> int:
        """Return how many executions wait for a node."""
        query = "SELECT count(*) FROM executions WHERE claimable_at IS NOT NULL"
        return int(await self.sql.fetchval(query))

    async def drain(self, *, by_hand: bool = False) -> None:
        """Wait until nothing is open; `by_hand` ends what waits instead of running it."""
        if by_hand:
            await self.sql.execute(
                "UPDATE executions SET run_deadline_at = now() WHERE claimable_at IS NOT NULL"
            )
        async with asyncio.timeout(QUIET_SECONDS):
            while await self.sql.fetchval(
                "SELECT EXISTS (SELECT FROM executions WHERE state IN ('pending', 'running'))"
            ):
                await asyncio.sleep(POLL_SECONDS)

    @asynccontextmanager
    async def caller(self, name: str, body: str) -> AsyncIterator[Process]:
        """Run a caller of the tenant of this name; the installation's own is "admin"."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.pressure.caller"),
            *("--data-dir", str(self.stack.paths.data_dir), "--target", f"localhost:{self.stack.ports.grpc}"),
            *("--client", name, "--agent", AGENT, "--body", body),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=16 * MIB,
            cwd=ROOT,
        )
        try:
            yield Process(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def running_world() -> AsyncIterator[World]:
    """Run the system with an agent of the same name for both tenants."""
    os.environ["AF_CONTROL_MAX_PENDING_PER_TENANT"] = str(MAX_PENDING_PER_TENANT)
    async with running_stack(nodes=1, AF_NODE_SLOTS=str(SLOTS)) as stack, AsyncExitStack() as kept:
        sql = await postgres_server.connect(stack.database.url())
        kept.push_async_callback(sql.close, timeout=5)
        await stack.make_agent(AGENT, ACTOR)
        await add_tenant(stack, sql, "other", agent=AGENT)
        yield World(stack=stack, sql=sql, folder=stack.folder)

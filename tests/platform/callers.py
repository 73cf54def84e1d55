"""A caller that repeats what docs/kubernetes.md asks callers to repeat, and counts what that did not hide."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace

from agentfactory.v1 import executions_pb2

from cli.client import Client, connect
from cli.run import Request, execute_with
from cli.settings import CliSettings
from shared.errors import AgentFactoryError, UnavailableError
from tests.e2e.stack import Execution, eventually, new_request

TRIES = 6
FIRST_PAUSE_SECONDS = 0.2
"""Doubled after each try."""
CALLERS = 3
SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED


def request(agent: str = "actor", body: bytes = b"exit 0", request_id: str | None = None) -> Request:
    return replace(new_request(agent, body, 30), request_id=request_id or str(uuid.uuid4()))


async def call(settings: CliSettings, asked: Request, kept: Client | None = None) -> tuple[Execution, int]:
    """Run to the end, over a connection of its own each time or the one that is kept; return how often it was asked too.

    Raises:
        AgentFactoryError: Not UNAVAILABLE, or that at each try.
    """
    tried = 1
    while True:
        try:
            async with nullcontext(kept) if kept else connect(settings) as client:
                return (await execute_with(client, asked))[0], tried
        except UnavailableError:
            if tried == TRIES:
                raise
        await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (tried - 1))
        tried += 1


class Calls:
    """Counts of calls that ended, by how."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()

    @property
    def failed(self) -> dict[str, int]:
        return {how: count for how, count in self.ended.items() if not how.startswith("succeeded")}

    async def go_on_over_one(self, settings: CliSettings) -> None:
        """Call again and again, until cancelled, over one connection for as long as a colour keeps it."""
        async with connect(settings) as kept:
            await self.go_on(settings, kept)

    async def go_on(self, settings: CliSettings, kept: Client | None = None) -> None:
        """Call again and again, until cancelled."""
        while True:
            try:
                execution, tried = await call(settings, request(), kept)
            except AgentFactoryError as error:
                self.ended[f"{error.reason}: {error}"] += 1
                continue
            state = executions_pb2.ExecutionState.Name(execution.state)
            self.ended[f"succeeded at try {tried}" if execution.state == SUCCEEDED else state] += 1

    async def more(self, count: int = 10) -> None:
        """Return when so many more have succeeded."""

        async def succeeded() -> int:
            return self.ended.total() - sum(self.failed.values())

        wanted = await succeeded() + count
        await eventually(succeeded, lambda now: now >= wanted, f"{count} more good answers")


@asynccontextmanager
async def calling(settings: CliSettings) -> AsyncIterator[Calls]:
    """Keep some callers calling for the time of the context: one of them keeps its connection."""
    calls = Calls()
    loops = [calls.go_on_over_one(settings), *(calls.go_on(settings) for _ in range(CALLERS - 1))]
    tasks = [asyncio.create_task(one) for one in loops]
    try:
        await calls.more()
        yield calls
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""One caller in a process of its own: ``python -m tests.bench.pressure.caller --data-dir DIR --target HOST:PORT``.

Reads one task as JSON per line of stdin and answers each with one line of JSON on stdout.
"""

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc
from agentfactory.v1 import executions_pb2

from cli.client import Client, connect
from cli.settings import CliSettings
from shared.errors import ResourceExhaustedError, UnavailableError
from shared.rpc.errors import error_of
from tests.bench.peers.load import schedule

CALL_SECONDS: Final = 120.0
RUN_DEADLINE_SECONDS: Final = 3600
"""What is submitted may wait for long."""
NO_HINT_SECONDS: Final = 1.0

Answer = dict[str, Any]


class Caller:
    """What one caller can do. Every call is repeated, after the time that it is told, until it is let in."""

    def __init__(self, client: Client, agent: str, body: bytes) -> None:
        self._stub = client.executions
        self._agent = agent
        self._body = body
        self.refused = 0
        self.turned_away = 0

    async def execute(self) -> None:
        """Run once and see it succeed."""
        answer = await self._let_in(
            lambda request: self._stub.Execute(
                executions_pb2.ExecuteRequest(execution=request), timeout=CALL_SECONDS
            )
        )
        if answer.execution.state != executions_pb2.EXECUTION_STATE_SUCCEEDED:
            raise AssertionError(f"an execution did not succeed: {answer.execution}")

    async def submit(self) -> None:
        """Have one execution stored."""
        await self._let_in(
            lambda request: self._stub.SubmitExecution(
                executions_pb2.SubmitExecutionRequest(execution=request), timeout=CALL_SECONDS
            )
        )

    async def _let_in(self, call: Callable[[executions_pb2.ExecutionRequest], Awaitable[Any]]) -> Any:
        request = executions_pb2.ExecutionRequest(
            agent=self._agent, request_id=str(uuid.uuid4()), inline=self._body
        )
        request.run_deadline.seconds = RUN_DEADLINE_SECONDS
        while True:
            try:
                return await call(request)
            except grpc.aio.AioRpcError as error:
                typed = error_of(error)
                hint = None
                if isinstance(typed, ResourceExhaustedError):
                    self.refused += 1
                    hint = typed.retry_after
                elif isinstance(typed, UnavailableError) or error.code() is grpc.StatusCode.CANCELLED:
                    self.turned_away += 1  # by gRPC itself: its server was not looked at for too long
                else:
                    raise typed from error
                wait = hint.total_seconds() if hint else NO_HINT_SECONDS
            await asyncio.sleep(wait)


async def steady(caller: Caller, *, rate: float, seconds: float) -> Answer:
    """Execute at a constant rate, whatever is under way; answer with seconds from due to answered."""
    took: list[float] = []

    async def one(due: float) -> None:
        await caller.execute()
        took.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as group:
        start = time.perf_counter()
        for offset in schedule(rate, seconds):
            if (delay := start + offset - time.perf_counter()) > 0:
                await asyncio.sleep(delay)
            group.create_task(one(start + offset))
    return {"took": took}


async def flood(caller: Caller, *, submissions: int, in_flight: int) -> Answer:
    """Submit so many, always so many at once; answer when all are stored."""
    left = submissions
    started = time.perf_counter()

    async def one() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await caller.submit()

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(one())
    return {"seconds": time.perf_counter() - started}


async def closed(caller: Caller, *, callers: int, seconds: float) -> Answer:
    """Execute with so many callers, each of which waits for its answer; answer with executions per second."""
    stop_at = time.perf_counter() + seconds
    done = 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < stop_at:
            await caller.execute()
            done += time.perf_counter() < stop_at

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(one())
    return {"rate": done / seconds}


async def offer(caller: Caller, *, rate: float, seconds: float) -> Answer:
    """Submit at a constant rate; those that are refused come again when they were told, until the time is over."""
    offered = 0
    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter()
    for offset in schedule(rate, seconds):
        if (delay := start + offset - time.perf_counter()) > 0:
            await asyncio.sleep(delay)
        task = asyncio.create_task(caller.submit())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        offered += 1
    late = time.perf_counter() - start - seconds
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"offered": offered, "late": late}


TASKS: Final[dict[str, Callable[..., Awaitable[Answer]]]] = {
    "steady": steady,
    "flood": flood,
    "closed": closed,
    "offer": offer,
}


async def serve(settings: CliSettings, agent: str, body: bytes) -> None:
    loop = asyncio.get_running_loop()
    async with connect(settings) as client:
        while True:
            line = await loop.run_in_executor(None, sys.stdin.readline)
            if not line:
                return
            task = json.loads(line)
            caller = Caller(client, agent, body)
            answer = await TASKS[task.pop("do")](caller, **task)
            counts = {"refused": caller.refused, "turned_away": caller.turned_away}
            sys.stdout.write(json.dumps(answer | counts) + "\n")
            sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--agent", required=True)
    parser.add_argument("--body", required=True)
    given = parser.parse_args()
    settings = CliSettings(data_dir=given.data_dir, target=given.target, client=given.client)
    asyncio.run(serve(settings, given.agent, given.body.encode()))


if __name__ == "__main__":
    main()

"""A constant rate of executions, open loop, from a client that forgets nothing it was answered.

Arrivals never wait for answers: a slow system gets no fewer of them. Half of the calls wait for the end
(Execute), half only for the promise (SubmitExecution); each is repeated with its request id, at the other control
plane, until it is answered. Latencies count from when a call was due.
"""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from agentfactory.v1 import executions_pb2

from cli.client import Client
from tests.chaos.world import AGENT

SEED = 20261124
TRY_SECONDS = 3.0
MAX_IN_FLIGHT = 5000
"""Calls without an answer; beyond it the client itself gives up, which fails the run."""
FIRST_PAUSE = 0.05
MAX_PAUSE = 0.5
RUN_MS = 40
"""What a run takes without the CPU: slots bound the fleet, and not this machine's cores."""
BODY = f"sleep {RUN_MS}".encode()

SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED
RETRYABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


@dataclass(slots=True, kw_only=True)
class Call:
    """One call and everything it was ever answered. Times are seconds of this machine's clock."""

    request_id: str
    waits: bool
    """Whether it waits for the end."""
    due_at: float
    answered_at: float | None = None
    execution_ids: set[str] = field(default_factory=set)
    receipt_ids: set[str] = field(default_factory=set)
    state: int = executions_pb2.EXECUTION_STATE_UNSPECIFIED
    tries: int = 0

    @property
    def is_acknowledged(self) -> bool:
        return bool(self.execution_ids)

    @property
    def seconds(self) -> float | None:
        return None if self.answered_at is None else self.answered_at - self.due_at


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What the client did and was told."""

    calls: list[Call] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    """Answers that a caller does not repeat after: there must be none."""

    @property
    def acknowledged(self) -> list[Call]:
        return [call for call in self.calls if call.is_acknowledged]

    @property
    def unanswered(self) -> int:
        return sum(call.answered_at is None for call in self.calls)


class Caller:
    """Makes calls and writes the ledger."""

    def __init__(self, clients: Sequence[Client], ledger: Ledger, dice: random.Random) -> None:
        self._clients = clients
        self._ledger = ledger
        self._dice = dice
        self._number = 0

    async def call(self, due_at: float, *, waits: bool) -> Call:
        """Make one call and repeat it until it is answered."""
        call = Call(
            request_id=str(uuid.UUID(int=self._dice.getrandbits(128), version=4)), waits=waits, due_at=due_at
        )
        self._ledger.calls.append(call)
        self._number += 1
        pause = FIRST_PAUSE
        turn = self._number // 2  # both kinds of calls go to both
        while True:
            client = self._clients[(turn + call.tries) % len(self._clients)]
            call.tries += 1
            try:
                execution = await self._try(client, call)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE:
                    self._ledger.refusals[f"{error.code().name}: {error.details()}"[:200]] += 1
                    return call
            else:
                call.answered_at = time.time()
                call.state = execution.state
                return call
            await asyncio.sleep(pause * self._dice.uniform(0.5, 1))
            pause = min(pause * 2, MAX_PAUSE)

    async def _try(self, client: Client, call: Call) -> executions_pb2.Execution:
        request = executions_pb2.ExecutionRequest(agent=AGENT, request_id=call.request_id, inline=BODY)
        if call.waits:
            waiting = executions_pb2.ExecuteRequest(execution=request)
            execution = (await client.executions.Execute(waiting, timeout=TRY_SECONDS)).execution
        else:
            submitting = executions_pb2.SubmitExecutionRequest(execution=request)
            execution = (await client.executions.SubmitExecution(submitting, timeout=TRY_SECONDS)).execution
        call.execution_ids.add(execution.execution_id)
        if execution.receipt_id:
            call.receipt_ids.add(execution.receipt_id)
        return execution


def _dice(ledger: Ledger) -> random.Random:
    """Return dice of this ledger's own next calls: a request id that comes again is answered from the record."""
    return random.Random(SEED + len(ledger.calls))


@asynccontextmanager
async def constant_load(clients: Sequence[Client], ledger: Ledger, *, rate: float) -> AsyncIterator[None]:
    """Begin `rate` calls a second for the length of the block; leave it when every call is answered.

    Raises:
        AssertionError: More calls than `MAX_IN_FLIGHT` wait.
    """
    caller = Caller(clients, ledger, _dice(ledger))
    async with asyncio.TaskGroup() as group:
        arrivals = group.create_task(_arrivals(caller, ledger, group, rate))
        try:
            yield
        finally:
            arrivals.cancel()


async def _arrivals(caller: Caller, ledger: Ledger, group: asyncio.TaskGroup, rate: float) -> None:
    started, number = time.time(), 0
    open_calls: set[asyncio.Task[Call]] = set()
    while True:
        due_at = started + number / rate
        await asyncio.sleep(max(0.0, due_at - time.time()))
        task = group.create_task(caller.call(due_at, waits=number % 2 == 0))
        open_calls.add(task)
        task.add_done_callback(open_calls.discard)
        assert len(open_calls) < MAX_IN_FLIGHT, f"{len(open_calls)} calls wait for an answer"
        number += 1


async def measure_capacity(
    clients: Sequence[Client], ledger: Ledger, *, in_flight: int, seconds: float
) -> float:
    """Return the executions per second that the fleet ends when more wait than it can run."""
    caller = Caller(clients, ledger, _dice(ledger))
    ends_at = time.time() + seconds
    done = 0

    async def one_after_the_other() -> None:
        nonlocal done
        while time.time() < ends_at:
            call = await caller.call(time.time(), waits=True)
            if call.state == SUCCEEDED and time.time() < ends_at:
                done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(one_after_the_other())
    return done / seconds

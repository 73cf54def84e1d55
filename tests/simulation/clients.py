"""Clients of the simulated system: they submit with request ids, repeat until they are told, and remember."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from control_plane.executions.lifecycle import Execution
from control_plane.executions.service import RunRequest
from control_plane.policy.domain import Subject
from shared.errors import (
    DeadlineExceededError,
    ResourceExhaustedError,
    UnavailableError,
    WrongStateError,
)
from shared.ids import TenantId
from tests.simulation.chance import Chance
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.node import guest_input, guest_output
from tests.simulation.replica import Replica
from tests.simulation.watch import Trace, Watch

CALL_SECONDS = 6.0
PAUSE_SECONDS = 0.4
GUEST_MILLISECONDS = ((0, 100), (0, 500), (200, 3000), (3000, 12000))
"""How long guests run: from less than a heartbeat to several leases."""
LARGE_OUTPUTS = 0.15
HURRIED = 0.1
"""With a run deadline of seconds."""

RETRYABLE = (UnavailableError, DeadlineExceededError, ResourceExhaustedError)
TENANT = TenantId("default")


@dataclass
class Client:
    """One caller with some requests, one after the other."""

    name: str
    loop: VirtualLoop
    chance: Chance
    network: Network
    replicas: list[Replica]
    watch: Watch
    trace: Trace
    outputs: dict[str, bytes]
    requests: int
    spread_seconds: float

    def __post_init__(self) -> None:
        self.chance = self.chance.of(self.name)
        self.process = Process(self.loop, self.name)
        self.subject = Subject(
            identity=f"spiffe://local/caller/{self.name}", tenant_id=TENANT, roles=frozenset({"caller"})
        )
        self.task = self.process.spawn(self.run())

    async def run(self) -> None:
        for number in range(1, self.requests + 1):
            await asyncio.sleep(self.chance.between(0, self.spread_seconds / self.requests))
            await self._one(f"{self.name}.{number}")

    async def _one(self, request_id: str) -> None:
        milliseconds = self.chance.whole(*self.chance.one_of(GUEST_MILLISECONDS))
        stdin = guest_input(milliseconds, request_id, is_large=self.chance.happens(LARGE_OUTPUTS))
        deadline = timedelta(seconds=self.chance.between(1, 8)) if self.chance.happens(HURRIED) else None
        request = RunRequest(
            agent="redact",
            request_id=request_id,
            inline=stdin,
            body_id=None,
            run_deadline=deadline,
            traceparent="",
        )
        # Some wait for the end in their call, some come back for it.
        waits = self.chance.happens(0.5)
        execution = await self._until_told(request, waits=waits)
        if deadline is not None:
            self.watch.hurried.add(execution.execution_id)
        self.outputs[execution.execution_id] = guest_output(stdin)
        self.watch.promised(request_id, execution.execution_id)
        self.trace.note(f"{request_id} is promised {execution.execution_id[-6:]}, {milliseconds} ms")
        if execution.state.is_terminal:
            self.watch.answered(request_id, execution)
        elif self.chance.happens(0.1):
            await asyncio.sleep(self.chance.between(0, 1))
            await self._cancel(execution)

    async def _until_told(self, request: RunRequest, *, waits: bool) -> Execution:
        while True:
            replica = self.chance.one_of(self.replicas)
            call = replica.executions.execute if waits else replica.executions.submit
            try:
                told: Execution = await self.network.request(
                    self.name,
                    replica,
                    lambda: call(self.subject, request, method="Execute"),  # noqa: B023 - called at once
                    deadline=CALL_SECONDS,
                )
            except RETRYABLE as error:
                self.trace.note(f"{request.request_id} again: {error}")
            else:
                return told
            await asyncio.sleep(self.chance.between(0, PAUSE_SECONDS))

    async def _cancel(self, execution: Execution) -> None:
        self.watch.cancelled.add(execution.execution_id)
        self.trace.note(f"cancels {execution.execution_id[-6:]}")
        while True:
            replica = self.chance.one_of(self.replicas)
            try:
                await self.network.request(
                    self.name,
                    replica,
                    lambda: replica.executions.cancel(self.subject, execution.execution_id),  # noqa: B023
                    deadline=CALL_SECONDS,
                )
            except WrongStateError:
                return
            except RETRYABLE:
                await asyncio.sleep(self.chance.between(0, PAUSE_SECONDS))
            else:
                return

"""The use cases of executions over fakes: no socket, no clock but ours."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest

from control_plane.executions.acceptor import Acceptor
from control_plane.executions.bodies import BodyService
from control_plane.executions.completions import Completions
from control_plane.executions.crowd import Crowd
from control_plane.executions.service import ExecutionService, RunRequest
from control_plane.policy.domain import Subject
from control_plane.transfers import TransferSlots
from tests.builders.executions import AGENT, CALLER, TEMPLATE, TENANT, Builder, node
from tests.fakes.answers import OneAgentDirectory, SaidPolicy
from tests.fakes.clock import FakeClock, FakeRandom
from tests.fakes.executions import FakeExecutionStore
from tests.fakes.placer import FakePlacer

BOUND_SECONDS = 30.0
SUBJECT = Subject(identity=CALLER, tenant_id=TENANT, roles=frozenset({"caller"}))


def ask(request_id: str = "r1", **changes: object) -> RunRequest:
    asked = {
        "agent": "redact",
        "request_id": request_id,
        "inline": b"input",
        "body_id": None,
        "run_deadline": None,
        "traceparent": "",
    }
    return RunRequest(**{**asked, **changes})


@dataclass
class Stack:
    build: Builder
    store: FakeExecutionStore
    placer: FakePlacer
    completions: Completions
    agents: OneAgentDirectory
    policy: SaidPolicy
    service: ExecutionService
    bodies: BodyService
    crowd: Crowd

    async def finish(self, placement, *arguments, **changes):
        """The node's answer arrives, as dispatch would hand it on."""
        (finished,) = await self.store.finish([self.build.result(placement, *arguments, **changes)])
        if finished.execution is not None:
            self.completions.complete(finished.execution)
        return finished

    async def until(self, condition):
        async with asyncio.timeout(BOUND_SECONDS):
            while not condition():
                await asyncio.sleep(0)


@pytest.fixture
async def stack():
    clock, random = FakeClock(), FakeRandom()
    build = Builder(clock=clock, random=random)
    store = FakeExecutionStore(clock, agents={AGENT: (1, TEMPLATE)})
    store.sessions = {node("one"): (1, "boot_1")}
    placer = FakePlacer(build, slots=8)
    completions = Completions()
    agents, policy = OneAgentDirectory(), SaidPolicy(clock, random)
    acceptor = Acceptor(store=store, placer=placer)
    service = ExecutionService(
        store=store,
        acceptor=acceptor,
        completions=completions,
        placer=placer,
        agents=agents,
        policy=policy,
        clock=clock,
        random=random,
    )
    bodies = BodyService(
        store=store, clock=clock, random=random, slots=TransferSlots(1, wait=timedelta(milliseconds=20))
    )
    accepting = asyncio.create_task(acceptor.run())
    crowd = Crowd(service=service, acceptor=acceptor, completions=completions, store=store)
    yield Stack(build, store, placer, completions, agents, policy, service, bodies, crowd)
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)

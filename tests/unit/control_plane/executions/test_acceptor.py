"""What counts as waiting: the acceptor tells admission what became of each execution that it let in."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from control_plane.executions.acceptor import Acceptor
from control_plane.executions.admission import Admission, AdmissionBounds
from control_plane.executions.domain import AcceptOutcome
from shared.errors import DatabaseUnavailableError, ResourceExhaustedError
from tests.builders.executions import TEMPLATE, TENANT, Builder, agent_of, node
from tests.fakes.clock import FakeClock
from tests.fakes.executions import FakeExecutionStore
from tests.fakes.placer import FakePlacer

BOUND_SECONDS = 5.0


class Away(FakeExecutionStore):
    """Postgres does not answer."""

    async def accept(self, items, placements):
        raise DatabaseUnavailableError("away")


@asynccontextmanager
async def accepting(store_type=FakeExecutionStore, *, slots=0, pending=2):
    clock = FakeClock()
    build = Builder(clock=clock)
    store = store_type(clock, agents={agent_of(TENANT): (1, TEMPLATE)})
    placer = FakePlacer(build, slots=slots)
    store.sessions = {node("one"): (placer.at.session_epoch, placer.at.boot_id)}
    bounds = AdmissionBounds(pending_of_tenant=pending)
    acceptor = Acceptor(
        store=store, placer=placer, admission=Admission(counts=None, bounds=bounds, clock=clock)
    )
    running = asyncio.create_task(acceptor.run())
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            yield acceptor, build
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_waits_fills_the_bound_and_the_next_is_refused_in_both_places():
    async with accepting() as (acceptor, build):
        for _ in range(2):
            await acceptor.accept(build.execution())
        with pytest.raises(ResourceExhaustedError):
            acceptor.require_room(TENANT)
        with pytest.raises(ResourceExhaustedError):
            await acceptor.accept(build.execution())


async def test_what_is_placed_at_once_or_a_repeat_does_not_wait():
    async with accepting(slots=3) as (acceptor, build):
        for _ in range(2):
            assert (await acceptor.accept(build.execution())).placed
        outcomes = [(await acceptor.accept(build.execution(request_id="again"))).outcome for _ in range(4)]
        assert outcomes == [AcceptOutcome.NEW, *[AcceptOutcome.DUPLICATE] * 3]
        acceptor.require_room(TENANT)


async def test_what_has_an_unknown_fate_counts_as_waiting():
    async with accepting(Away) as (acceptor, build):
        for _ in range(2):
            with pytest.raises(DatabaseUnavailableError):
                await acceptor.accept(build.execution())
        with pytest.raises(ResourceExhaustedError):
            acceptor.require_room(TENANT)

"""What counts as a session that went well: one that lasted, however it ended."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import pytest

from data_plane.session import service
from data_plane.session.service import FIRST_BACKOFF, MAX_BACKOFF, STEADY_AFTER, SessionService
from shared.errors import UnavailableError
from tests.fakes.clock import FakeClock, FakeRandom

BOUND_S = 30


class Stream:
    async def close(self) -> None:
        """Nothing to let go."""


class Connector:
    """Opens streams without end, and says how many."""

    target = "here"

    def __init__(self) -> None:
        self.opened = 0

    async def open_session(self) -> Stream:
        self.opened += 1
        return Stream()


class Gauge:
    def inc(self) -> None: ...

    def set(self, value: int) -> None: ...


class World:
    """A session service whose sessions last as long as a test says and end as it says."""

    def __init__(self, monkeypatch) -> None:
        self.clock, self.connector = FakeClock(), Connector()
        self.lasts, self.error = timedelta(0), UnavailableError("broken")
        monkeypatch.setattr(service, "Session", self._session)
        monkeypatch.setattr(service, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": self._pause}))
        parts = SimpleNamespace(
            clock=self.clock, metrics=SimpleNamespace(sessions=Gauge(), connected=Gauge())
        )
        self.service = SessionService(connector=self.connector, parts=parts, random=FakeRandom())
        self.pauses: list[float] = []

    def _session(self, *_args):
        async def run(opened):
            opened()
            self.clock.advance(self.lasts)
            if self.error is not None:
                raise self.error

        return SimpleNamespace(run=run)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def ceiling_after(self, sessions: int) -> timedelta:
        task = asyncio.create_task(self.service.run())
        async with asyncio.timeout(BOUND_S):
            while len(self.pauses) < sessions:
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return self.service._backoff._ceiling


@pytest.fixture
def world(monkeypatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize("error", [UnavailableError("broken"), ZeroDivisionError("a bug"), None])
async def test_welcome_alone_is_no_success(world, error):
    world.lasts, world.error = STEADY_AFTER - timedelta(microseconds=1), error

    assert await world.ceiling_after(10) == MAX_BACKOFF


@pytest.mark.parametrize("error", [UnavailableError("broken"), ZeroDivisionError("a bug"), None])
async def test_session_that_lasted_starts_anew_however_it_ended(world, error):
    world.lasts, world.error = STEADY_AFTER, error

    assert await world.ceiling_after(10) <= FIRST_BACKOFF * 2

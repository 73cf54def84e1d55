"""``python -m tests.chaos.processes.node``: a node whose clock can be set and whose stream can be shuffled.

Shuffled: of the messages after the greeting, in both directions, some come twice and some after the next one.
"""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from agentfactory.v1 import nodes_pb2

from data_plane import __main__ as command
from data_plane import main
from data_plane.session.remote import ControlPlaneLink, GrpcStream
from shared.clock import SystemClock
from tests.chaos.processes.switches import Switch

CLOCK_AHEAD_SECONDS = "clock-ahead-seconds"
SHUFFLED = "shuffled"
TWICE = 0.3
LATER = 0.3
LATEST_SECONDS = 0.1
"""A message that nothing follows is kept back no longer."""
SEED = 20261124

M = TypeVar("M")


class SetClock(SystemClock):
    """The machine's clock, as somebody set it."""

    def now(self) -> datetime:
        return SystemClock.now(self) + timedelta(seconds=Switch(CLOCK_AHEAD_SECONDS).value)


class Shuffler(Generic[M]):
    """Gives messages back in another order, and some of them twice."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._kept: list[M] = []
        self._greeted = False

    def pass_on(self, message: M) -> list[M]:
        """Return what goes on now that this message has come."""
        if not self._greeted or not Switch(SHUFFLED).is_on:
            self._greeted = True
            return [*self.rest(), message]
        times = 2 if self._dice.random() < TWICE else 1
        if not self._kept and self._dice.random() < LATER:
            self._kept = [message] * times
            return []
        return [message] * times + self.rest()

    def rest(self) -> list[M]:
        """Return what was kept back."""
        kept, self._kept = self._kept, []
        return kept


class ShuffledStream:
    """A session's stream, shuffled in both directions."""

    def __init__(self, stream: GrpcStream, dice: random.Random) -> None:
        self._stream = stream
        self._up: Shuffler[nodes_pb2.SessionRequest] = Shuffler(dice)
        self._down: Shuffler[nodes_pb2.SessionResponse] = Shuffler(dice)
        self._writing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None

    async def write(self, message: nodes_pb2.SessionRequest) -> None:
        async with self._writing:
            for each in self._up.pass_on(message):
                await self._stream.write(each)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(LATEST_SECONDS)
            async with self._writing:
                for each in self._up.rest():
                    await self._stream.write(each)

    async def __aiter__(self) -> AsyncIterator[nodes_pb2.SessionResponse]:
        arriving = aiter(self._stream)
        following: asyncio.Future[nodes_pb2.SessionResponse] = asyncio.ensure_future(anext(arriving))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=LATEST_SECONDS)
                if done:
                    messages = self._down.pass_on(following.result())
                    following = asyncio.ensure_future(anext(arriving))
                else:
                    messages = self._down.rest()
                for message in messages:
                    yield message
        except StopAsyncIteration:
            return
        finally:
            following.cancel()

    async def close(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
        await self._stream.close()


class ShuffledLink(ControlPlaneLink):
    """Opens shuffled streams."""

    async def open_session(self) -> ShuffledStream:  # type: ignore[override]  # it is a `ClosableStream` too
        return ShuffledStream(await ControlPlaneLink.open_session(self), random.Random(SEED))


if __name__ == "__main__":
    vars(main).update(SystemClock=SetClock, ControlPlaneLink=ShuffledLink)
    sys.exit(command.main())

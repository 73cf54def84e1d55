"""Drives a system under test with the common job: one in flight, many in flight, and an open loop. One asyncio client.

Every result is compared with what the module must have written, and every loop counts what it sent and what came
back; one difference ends the visit.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.bench.peers.job import require_right

LONGEST = 10

Submit = Callable[[bytes], Awaitable[bytes]]
"""Hands one body over, durably, and returns the durable output."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """When answers came and how long each took, in seconds."""

    ended_at: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    def between(self, start: float, end: float) -> list[float]:
        """Return how long the answers took that came in [start, end)."""
        return [took for at, took in zip(self.ended_at, self.took, strict=True) if start <= at < end]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a closed loop found in its window."""

    rate: float
    took: Sequence[float]
    jobs: int
    """All of them, outside the window too."""


async def one_in_flight(submit: Submit, jobs: Iterator[bytes], *, count: int, seconds: float) -> list[float]:
    """Return the seconds that each of up to `count` jobs took, one after the other, within about `seconds`."""
    took: list[float] = []
    stop_at = time.perf_counter() + seconds
    for _ in range(count):
        body = next(jobs)
        started = time.perf_counter()
        output = await submit(body)
        ended = time.perf_counter()
        require_right(body, output)
        took.append(ended - started)
        if ended > stop_at:
            break
    return took


async def many_in_flight(
    submit: Submit,
    jobs: Iterator[bytes],
    *,
    in_flight: int,
    warm_up: float,
    seconds: float,
    under_load: Callable[[], Awaitable[None]],
) -> Loaded:
    """Keep `in_flight` callers busy, each of which waits for its answer; measure `seconds` after the warm-up.

    The window of a slow system grows until every caller had an answer in it on average, up to `LONGEST` times:
    less would measure in which gust of answers it ends. `under_load` is awaited after the window, while the load goes on.
    """
    sample = Sample()
    going = True

    async def caller() -> None:
        while going:
            body = next(jobs)
            started = time.perf_counter()
            output = await submit(body)
            ended = time.perf_counter()
            require_right(body, output)
            sample.ended_at.append(ended)
            sample.took.append(ended - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
        await asyncio.sleep(warm_up)
        start = time.perf_counter()
        before = len(sample.took)
        for _ in range(LONGEST):
            await asyncio.sleep(seconds)
            if len(sample.took) - before >= in_flight:
                break
        end = time.perf_counter()
        await under_load()
        going = False
    took = sample.between(start, end)
    if not took:
        raise AssertionError(f"not one of {in_flight} jobs was answered in {end - start:.1f} s")
    return Loaded(rate=len(took) / (end - start), took=took, jobs=len(sample.took))


def schedule(rate: float, seconds: float) -> list[float]:
    """Return when jobs are due, in seconds from the start: evenly, `rate` per second, for `seconds`."""
    return [number / rate for number in range(max(1, round(rate * seconds)))]


async def open_loop(submit: Submit, jobs: Iterator[bytes], due: Sequence[float]) -> list[float]:
    """Send each job when it is due, whatever is still under way, and return the seconds from *due* to answered.

    Counting from the schedule keeps a stall in the figure: a client that waits for it would hide it.
    """
    took: list[float] = []

    async def one(body: bytes, due_at: float) -> None:
        output = await submit(body)
        took.append(time.perf_counter() - due_at)
        require_right(body, output)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for offset in due:
            delay = start + offset - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            group.create_task(one(next(jobs), start + offset))
    if len(took) != len(due):
        raise AssertionError(f"{len(due)} jobs were sent, {len(took)} answered")
    return took

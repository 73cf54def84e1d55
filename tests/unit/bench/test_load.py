"""The load generators of the bench beside peers: what they count, and that a wrong answer never counts."""

import asyncio
import itertools

import pytest

from tests.bench.peers.job import BODY_BYTES, Guest, WrongResultError, bodies, number_of
from tests.bench.peers.load import Sample, many_in_flight, one_in_flight, open_loop, schedule

LIMIT_SECONDS = 30


async def right(body):
    await asyncio.sleep(0)
    return body.upper()


async def echo(body):
    return body


async def nothing():
    pass


def test_bodies_are_one_kilobyte_of_json_and_all_different():
    first = list(itertools.islice(bodies(), 20))

    assert [len(body) for body in first] == [BODY_BYTES] * 20
    assert list(range(20)) == [number_of(body) for body in first]


def test_the_guest_answers_what_the_client_expects():
    body = next(bodies())

    assert body.upper() == Guest().run(body)


async def test_one_in_flight_stops_at_its_count():
    assert len(await one_in_flight(right, bodies(), count=5, seconds=LIMIT_SECONDS)) == 5


async def test_one_in_flight_stops_after_its_time():
    assert len(await one_in_flight(right, bodies(), count=5, seconds=0)) == 1


async def test_many_in_flight_holds_that_many_and_measures_the_window_alone():
    under_way = most = 0
    looked = []

    async def slow(body):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return body.upper()

    async def look():
        looked.append(under_way)

    found = await many_in_flight(slow, bodies(), in_flight=7, warm_up=0.05, seconds=0.1, under_load=look)

    assert most == 7
    assert looked == [7]
    assert 0 < len(found.took) < found.jobs
    assert found.rate == pytest.approx(len(found.took) / 0.1, rel=0.5)


async def test_the_window_of_a_slow_system_grows_until_every_caller_had_an_answer():
    async def slow(body):
        await asyncio.sleep(0.05)
        return body.upper()

    found = await many_in_flight(slow, bodies(), in_flight=3, warm_up=0, seconds=0.02, under_load=nothing)

    assert len(found.took) >= 3


def test_a_window_takes_its_start_and_leaves_its_end():
    sample = Sample(ended_at=[0.9, 1.0, 1.9, 2.0], took=[1, 2, 3, 4])

    assert sample.between(1.0, 2.0) == [2, 3]


async def test_a_window_without_an_answer_is_no_figure():
    async def late(body):
        await asyncio.sleep(0.5)
        return body.upper()

    with pytest.raises(AssertionError, match="not one of 2 jobs"):
        await many_in_flight(late, bodies(), in_flight=2, warm_up=0, seconds=0.01, under_load=nothing)


def test_a_schedule_is_even_and_has_at_least_one_job():
    assert schedule(4, 1) == [0.0, 0.25, 0.5, 0.75]
    assert schedule(0.1, 1) == [0.0]


async def test_an_open_loop_counts_from_when_a_job_was_due():
    """One stall of the loop: jobs due meanwhile are sent late, and their wait is in the figure."""
    stalled = False

    async def stalls_once(body):
        nonlocal stalled
        if not stalled:
            stalled = True
            loop = asyncio.get_running_loop()
            until = loop.time() + 0.05
            while loop.time() < until:
                pass
        return body.upper()

    took = await open_loop(stalls_once, bodies(), schedule(rate=100, seconds=0.05))

    assert len(took) == 5
    # Due 10 ms after the start and sent after the stall of 50 ms.
    assert took[1] > 0.03


@pytest.mark.parametrize(
    "loop",
    [
        lambda: one_in_flight(echo, bodies(), count=1, seconds=1),
        lambda: many_in_flight(echo, bodies(), in_flight=1, warm_up=0, seconds=0.01, under_load=nothing),
        lambda: open_loop(echo, bodies(), [0.0]),
    ],
)
async def test_a_wrong_answer_ends_the_loop(loop):
    with pytest.raises((WrongResultError, ExceptionGroup)) as caught:
        async with asyncio.timeout(LIMIT_SECONDS):
            await loop()

    assert "came" in str(caught.value) or caught.group_contains(WrongResultError)

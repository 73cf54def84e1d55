"""Group commit: a lone caller never waits, a crowd shares, a failure belongs to whom it concerns."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from control_plane.database.group_commit import MAX_RETRY_AFTER, MIN_RETRY_AFTER, GroupCommit
from shared.errors import (
    DatabaseUnavailableError,
    InvalidInputError,
    ResourceExhaustedError,
    UnavailableError,
)
from shared.gathering import Gathering

BOUND = 30.0


class Flush:
    """Records groups; a gate holds the commit that runs."""

    def __init__(self):
        self.groups = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = []
        self.refused = set()

    async def __call__(self, items):
        self.groups.append(list(items))
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        if self.refused & set(items):
            raise InvalidInputError("one of them is not valid")
        return [item * 10 for item in items]


@asynccontextmanager
async def running(flush, **bounds):
    group = GroupCommit(flush, size_of=lambda item: item, **bounds)
    task = asyncio.create_task(group.run())
    try:
        async with asyncio.timeout(BOUND):
            yield group, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0)


def start(group, *items):
    return [asyncio.ensure_future(group.submit(item)) for item in items]


async def test_a_lone_caller_is_flushed_at_once():
    flush = Flush()
    async with running(flush) as (group, _):
        assert await group.submit(1) == 10
    assert flush.groups == [[1]]


async def test_the_next_group_forms_while_a_commit_runs():
    flush = Flush()
    flush.gate.clear()
    async with running(flush) as (group, _):
        first = start(group, 1)
        await until(lambda: flush.groups)
        rest = start(group, 2, 3, 4)
        await asyncio.sleep(0)
        flush.gate.set()
        answers = await asyncio.gather(*first, *rest)
    assert answers == [10, 20, 30, 40]
    assert flush.groups == [[1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("bounds", "groups"),
    [
        ({"max_items": 2}, [[1], [2, 3], [4]]),
        ({"max_bytes": 6}, [[1], [2, 3], [4]]),
        ({"max_bytes": 1}, [[1], [2], [3], [4]]),
    ],
)
async def test_groups_are_bounded_by_items_and_bytes_and_a_large_item_goes_alone(bounds, groups):
    flush = Flush()
    flush.gate.clear()
    async with running(flush, **bounds) as (group, _):
        first = start(group, 1)
        await until(lambda: flush.groups)
        rest = start(group, 2, 3, 4)
        await asyncio.sleep(0)
        flush.gate.set()
        await asyncio.gather(*first, *rest)
    assert flush.groups == groups


async def test_a_failed_group_is_repeated_item_by_item():
    flush = Flush()
    flush.gate.clear()
    flush.refused = {3}
    async with running(flush) as (group, _):
        first = start(group, 1)
        await until(lambda: flush.groups)
        rest = start(group, 2, 3, 4)
        await asyncio.sleep(0)
        flush.gate.set()
        answers = await asyncio.gather(*first, *rest, return_exceptions=True)
    assert answers[:2] == [10, 20]
    assert isinstance(answers[2], InvalidInputError)
    assert answers[3] == 40
    assert flush.groups == [[1], [2, 3, 4], [2], [3], [4]]


async def test_an_unknown_commit_is_resolved_before_anybody_is_answered():
    flush = Flush()
    flush.failures = [DatabaseUnavailableError("the connection broke")]
    async with running(flush) as (group, _):
        assert await group.submit(1) == 10
    assert flush.groups == [[1], [1]]


async def test_a_database_that_stays_away_is_told_to_all_and_bounded():
    flush = Flush()
    flush.failures = [DatabaseUnavailableError("away")] * 2
    async with running(flush) as (group, _):
        with pytest.raises(DatabaseUnavailableError):
            await group.submit(1)
        assert await group.submit(2) == 20
    assert flush.groups == [[1], [1], [2]]


async def test_too_many_that_wait_are_refused():
    flush = Flush()
    flush.gate.clear()
    async with running(flush, max_waiting=2) as (group, _):
        first = start(group, 1)
        await until(lambda: flush.groups)
        rest = start(group, 2, 3)
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError) as refused:
            await group.submit(4)
        assert refused.value.retry_after is not None
        assert MIN_RETRY_AFTER <= refused.value.retry_after <= MAX_RETRY_AFTER
        flush.gate.set()
        await asyncio.gather(*first, *rest)


def parity(item):
    return item % 2


async def test_lanes_take_turns_so_a_flood_stands_behind_its_own():
    flush = Flush()
    flush.gate.clear()
    async with running(flush, max_items=4, lane_of=parity) as (group, _):
        first = start(group, 1)
        await until(lambda: flush.groups)
        rest = start(group, 3, 5, 7, 9, 11, 2, 4)
        await asyncio.sleep(0)
        flush.gate.set()
        assert await asyncio.gather(*first, *rest) == [10, 30, 50, 70, 90, 110, 20, 40]
    assert flush.groups == [[1], [3, 2, 5, 4], [7, 9, 11]]


async def test_the_longest_lane_gives_way_when_there_is_no_more_room():
    flush = Flush()
    flush.gate.clear()
    async with running(flush, max_waiting=3, lane_of=parity) as (group, _):
        first = start(group, 1)
        await until(lambda: flush.groups)
        flood = start(group, 3, 5, 7)
        await asyncio.sleep(0)
        other = start(group, 2)
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError):
            await group.submit(4)  # its lane would become the longest
        with pytest.raises(ResourceExhaustedError) as gave_way:
            await flood[2]
        assert gave_way.value.retry_after is not None
        flush.gate.set()
        assert await asyncio.gather(*first, *flood[:2], *other) == [10, 30, 50, 20]
    assert flush.groups == [[1], [3, 2, 5]]


async def test_who_went_away_before_the_commit_is_not_written():
    flush = Flush()
    flush.gate.clear()
    async with running(flush) as (group, _):
        first = start(group, 1)
        await until(lambda: flush.groups)
        gone, stays = start(group, 2, 3)
        await asyncio.sleep(0)
        gone.cancel()
        flush.gate.set()
        assert await stays == 30
        await asyncio.gather(*first)
    assert flush.groups == [[1], [3]]


async def test_stopping_tells_everybody_who_waits():
    flush = Flush()
    flush.gate.clear()
    async with running(flush) as (group, task):
        waiting = start(group, 1)
        await until(lambda: flush.groups)
        waiting += start(group, 2)
        await asyncio.sleep(0)
        task.cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(UnavailableError):
            await group.submit(3)
    assert [type(answer) for answer in answers] == [UnavailableError, UnavailableError]


async def test_group_waits_for_those_who_are_about_to_write():
    flush, idle = Flush(), []
    async with running(flush, gathering=Gathering(idle=idle.append, linger=BOUND)) as (group, _):
        waiting = start(group, 1, 2)
        await until(lambda: idle)
        waiting += start(group, 3)
        for _ in range(10):
            await asyncio.sleep(0)
        assert flush.groups == []
        idle.pop()()
        assert await asyncio.gather(*waiting) == [10, 20, 30]
    assert flush.groups == [[1, 2, 3]]


async def test_full_group_waits_for_nobody():
    flush = Flush()
    gathering = Gathering(idle=lambda _: None, linger=BOUND)
    async with running(flush, gathering=gathering, max_items=2) as (group, _):
        first = start(group, 1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert flush.groups == []
        assert await asyncio.gather(*first, group.submit(2)) == [10, 20]
    assert flush.groups == [[1, 2]]


async def test_group_that_nobody_joins_is_committed_after_the_linger():
    flush = Flush()
    async with running(flush, gathering=Gathering(idle=lambda _: None, linger=0.001)) as (group, _):
        assert await group.submit(1) == 10


async def test_stopping_ends_a_group_that_forms():
    flush, idle = Flush(), []
    async with running(flush, gathering=Gathering(idle=idle.append, linger=BOUND)) as (group, task):
        waiting = start(group, 1)
        await until(lambda: idle)
        task.cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError]
    assert flush.groups == []

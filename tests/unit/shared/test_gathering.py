"""A group closes when the loop has nothing else to do, and not later than the linger."""

import asyncio
import os

import pytest

from shared.gathering import Gathering, IdleLoop, when_idle

BOUND = 30.0


def run(main):
    async def bounded():
        async with asyncio.timeout(BOUND):
            return await main()

    with asyncio.Runner(loop_factory=IdleLoop) as runner:
        return runner.run(bounded())


async def busy(turns, then=lambda: None):
    for _ in range(turns):
        await asyncio.sleep(0)
    then()


def test_group_closes_after_everything_that_is_ready():
    async def main():
        said, closed = [], asyncio.Event()
        work = asyncio.create_task(busy(100, lambda: said.append("worked")))
        Gathering(linger=BOUND).open(lambda: (said.append("closed"), closed.set()))
        await closed.wait()
        await work
        return said

    assert run(main) == ["worked", "closed"]


def test_group_closes_after_what_sockets_have_ready():
    async def main():
        said, closed = [], asyncio.Event()
        reading, writing = os.pipe()
        try:
            asyncio.get_running_loop().add_reader(reading, lambda: (os.read(reading, 1), said.append("read")))
            os.write(writing, b"x")
            Gathering(linger=BOUND).open(lambda: (said.append("closed"), closed.set()))
            await closed.wait()
            asyncio.get_running_loop().remove_reader(reading)
        finally:
            os.close(reading)
            os.close(writing)
        return said

    assert run(main) == ["read", "closed"]


def test_lone_group_closes_although_a_timer_runs():
    async def main():
        later = asyncio.get_running_loop().call_later(10 * BOUND, lambda: None)
        closed = asyncio.Event()
        Gathering(linger=BOUND).open(closed.set)
        await closed.wait()
        later.cancel()

    run(main)


def test_group_of_a_loop_that_is_never_idle_closes_after_the_linger():
    async def main():
        closed = asyncio.Event()
        Gathering(linger=0.01).open(closed.set)
        turns = 0
        while not closed.is_set():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert run(main) > 1


def test_full_group_closes_at_once_and_no_later_group_with_it():
    async def main():
        closed = []
        gathering = Gathering(idle=lambda _: None, linger=BOUND)
        gathering.open(lambda: closed.append(1))
        gathering.open(lambda: closed.append("joined the first"))
        gathering.close()
        gathering.close()
        assert closed == [1]
        gathering.open(lambda: closed.append(2))
        assert closed == [1]
        gathering.close()
        return closed

    assert run(main) == [1, 2]


def test_many_groups_ask_the_loop_once():
    async def main():
        asked = []
        gathering = Gathering(idle=asked.append, linger=BOUND)
        for _ in range(3):
            gathering.open(lambda: None)
            gathering.close()
        assert len(asked) == 1
        asked[0]()
        gathering.open(lambda: None)
        gathering.close()
        return len(asked)

    assert run(main) == 2


@pytest.mark.parametrize("factory", [IdleLoop, asyncio.SelectorEventLoop])
def test_every_loop_calls_once(factory):
    async def main():
        calls = []
        when_idle(lambda: calls.append(1))
        await asyncio.sleep(0.02)
        await asyncio.sleep(0.02)
        return calls

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == [1]

"""What one session may have under way."""

import asyncio

from control_plane.dispatch.budget import Budget


async def waits(budget: Budget, size_bytes: int) -> bool:
    task = asyncio.ensure_future(budget.acquire(size_bytes))
    await asyncio.sleep(0)
    if task.done():
        return False
    task.cancel()
    return True


async def test_items_and_bytes_are_bounded():
    budget = Budget(max_items=2, max_bytes=10)
    await budget.acquire(4)
    assert await waits(budget, 7)
    await budget.acquire(6)
    assert await waits(budget, 0)


async def test_one_above_the_bytes_passes_alone():
    budget = Budget(max_items=2, max_bytes=10)
    await budget.acquire(100)
    assert await waits(budget, 1)


async def test_what_is_given_back_lets_the_next_one_in():
    budget = Budget(max_items=1, max_bytes=10)
    await budget.acquire(1)
    waiting = asyncio.ensure_future(budget.acquire(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.release(1)
    await asyncio.wait_for(waiting, timeout=30)

"""A queue that never waits for its reader."""

import pytest

from control_plane.dispatch.outbox import Outbox
from shared.errors import ResourceExhaustedError, SessionSupersededError


def outbox(limit: int = 3) -> Outbox[int]:
    return Outbox(limit=limit, max_bytes=100, size_of=lambda number: number, owner="nod_1")


async def read(box: Outbox[int]) -> list[int]:
    return [message async for message in box]


async def test_messages_come_in_order_and_a_plain_end_delivers_them_all():
    box = outbox()
    assert [box.put(n) for n in (1, 2)] == [True, True]
    box.close()
    assert not box.put(3)
    assert await read(box) == [1, 2]


async def test_a_node_that_does_not_read_loses_its_session():
    box = outbox(limit=2)
    assert [box.put(n) for n in (1, 2, 3)] == [True, True, False]
    assert box.is_closed
    with pytest.raises(ResourceExhaustedError, match="2 messages of 3 bytes unread"):
        await read(box)
    assert box.take_unread() == [1, 2], "what never left can be taken back"


async def test_what_stands_behind_is_overtaken_by_everything_else():
    box = outbox(limit=4)
    assert [box.put_behind(8), box.put_behind(9), box.put(1)] == [True] * 3
    seen = []
    async for message in box:
        seen.append(message)
        if message == 8:
            box.put(2)
            box.close()
    assert seen == [1, 8, 2, 9]


async def test_what_stands_behind_counts_for_the_bounds_and_can_be_taken_back():
    box = outbox(limit=2)
    assert [box.put_behind(8), box.put(1), box.put_behind(9)] == [True, True, False]
    assert box.take_unread() == [1, 8]


async def test_the_first_reason_to_close_stays():
    box = outbox()
    box.put(1)
    box.close(SessionSupersededError("newer"))
    box.close()
    with pytest.raises(SessionSupersededError):
        await read(box)
    assert box.take_unread() == [1]
    assert box.take_unread() == []


async def test_a_node_that_leaves_large_messages_unread_loses_its_session():
    box = outbox(limit=10)
    assert [box.put(n) for n in (60, 40, 1)] == [True, True, False]
    with pytest.raises(ResourceExhaustedError, match="2 messages of 100 bytes unread"):
        await read(box)


async def test_what_was_read_counts_no_more():
    box = outbox(limit=10)
    assert box.put(100)
    async for _ in box:
        assert box.put(100)
        break

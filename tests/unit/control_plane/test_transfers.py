"""Slots of large transfers: nobody keeps others out, by number or by silence."""

import asyncio
from datetime import timedelta

import pytest

from control_plane.transfers import TransferSlots, paced
from shared.errors import DeadlineExceededError, ResourceExhaustedError

SHORT = timedelta(milliseconds=20)


async def test_one_identity_cannot_hold_all_slots():
    slots = TransferSlots(4, per_identity=2, wait=SHORT)
    async with slots.hold("eve"), slots.hold("eve"):
        with pytest.raises(ResourceExhaustedError):
            async with slots.hold("eve"):
                pass
        async with slots.hold("ann"), slots.hold("bob"):
            with pytest.raises(ResourceExhaustedError):
                async with slots.hold("dan"):
                    pass


async def test_what_waits_gets_the_slot_that_comes_free():
    slots = TransferSlots(1, per_identity=1)
    entered = asyncio.Event()

    async def next_one():
        async with slots.hold("ann"):
            entered.set()

    async with slots.hold("ann"):
        waiting = asyncio.ensure_future(next_one())
        await asyncio.sleep(0)
        assert not entered.is_set()
    await asyncio.wait_for(waiting, timeout=30)


async def test_a_cancelled_wait_takes_no_slot_with_it():
    slots = TransferSlots(1, per_identity=2)

    async def next_one():
        async with slots.hold("ann"):
            pass

    async with slots.hold("ann"):
        waiting = asyncio.ensure_future(next_one())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(30), slots.hold("ann"):
        pass
    assert not slots._shares


@pytest.mark.parametrize("pieces", [[], [b""] * 3])
async def test_a_silent_sender_is_cut_off(pieces):
    async def sender():
        yield b"first"
        for piece in pieces:
            yield piece
        await asyncio.Event().wait()

    received = paced(sender(), idle=SHORT)
    assert await anext(received) == b"first"
    with pytest.raises(DeadlineExceededError):
        await anext(received)


async def test_pieces_come_as_they_were_sent():
    async def sender():
        yield b"a"
        yield b""
        yield b"b"

    assert [piece async for piece in paced(sender())] == [b"a", b"b"]

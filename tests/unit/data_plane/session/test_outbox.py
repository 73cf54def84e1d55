"""What is sent, in which order, and what is sent again."""

from dataclasses import replace
from datetime import timedelta

import pytest

from data_plane.orders.domain import AttemptRef
from data_plane.receipts.domain import SpooledBody, SpooledReceipt
from data_plane.session.outbox import (
    MAX_BATCH_BYTES,
    MAX_BATCH_RECEIPTS,
    MAX_REMEMBERED_ENVELOPES,
    MAX_UNACKNOWLEDGED,
    RESEND_AFTER,
    STARTED_LINGER,
    Outbox,
)
from shared.digests import sha256_digest
from shared.ids import ExecutionId
from tests.fakes.clock import FakeClock
from tests.fakes.spool import FakeSpool


def attempt(number: int) -> AttemptRef:
    return AttemptRef(execution_id=ExecutionId(f"exe_{number}"), attempt_number=1, fencing_token=1)


def receipt(sequence: int, *, envelope: bytes = b"r", large: bool = False) -> SpooledReceipt:
    body = SpooledBody(
        salt=bytes(32), size_bytes=100_000, commitment=sha256_digest(b"x"), inline=None if large else b""
    )
    return SpooledReceipt(sequence=sequence, envelope=envelope, attempt=attempt(sequence), output=body)


class World:
    def __init__(self) -> None:
        self.clock, self.spool = FakeClock(), FakeSpool()
        self.outbox = Outbox(spool=self.spool, clock=self.clock)

    def spooled(self, *receipts: SpooledReceipt) -> None:
        for one in receipts:
            self.spool.receipts[one.sequence] = one

    def ready(self, *receipts: SpooledReceipt) -> None:
        self.spooled(*receipts)
        for one in receipts:
            self.outbox.receipt_ready(one)

    async def sent(self) -> list[int]:
        return [one.sequence for one in await self.outbox.next_receipts()]


@pytest.fixture
async def world() -> World:
    return World()


async def test_receipt_is_sent_once(world):
    world.ready(receipt(1))

    assert await world.sent() == [1]
    assert await world.sent() == []


async def test_new_stream_sends_everything_unacknowledged_from_the_oldest_on(world):
    world.ready(receipt(1), receipt(2), receipt(3))
    await world.sent()
    world.outbox.acknowledged([2])

    world.outbox.restart()

    assert await world.sent() == [1, 3]


def under(root: bytes, sequence: int) -> SpooledReceipt:
    return replace(receipt(sequence), order_envelope=root)


async def test_a_receipt_takes_the_signature_of_its_order_along_only_on_another_stream_than_it_came_by(world):
    world.outbox.came(b"root")
    world.ready(under(b"root", 1), under(b"earlier root", 2))
    assert [one.order_envelope for one in await world.outbox.next_receipts()] == [b"", b"earlier root"]
    world.outbox.restart()
    assert [one.order_envelope for one in await world.outbox.next_receipts()] == [b"root", b"earlier root"]


async def test_signatures_of_a_stream_are_remembered_within_a_bound(world):
    roots = [number.to_bytes(4, "big") for number in range(MAX_REMEMBERED_ENVELOPES + 1)]
    for root in roots:
        world.outbox.came(root)
    world.ready(under(roots[0], 1), under(roots[1], 2))
    assert [one.order_envelope for one in await world.outbox.next_receipts()] == [roots[0], b""]


async def test_acknowledged_receipt_leaves_the_spool(world):
    world.ready(receipt(1))
    await world.sent()

    world.outbox.acknowledged([1])

    assert world.spool.unacknowledged() == []


async def test_unanswered_receipt_is_sent_again_on_the_same_stream(world):
    world.ready(receipt(1))
    await world.sent()
    world.clock.advance(RESEND_AFTER - timedelta(microseconds=1))
    world.outbox.resend_unanswered()
    assert await world.sent() == []

    world.clock.advance(timedelta(microseconds=1))
    world.outbox.resend_unanswered()

    assert await world.sent() == [1]


async def test_messages_are_bounded_in_number(world):
    world.ready(*(receipt(number) for number in range(1, MAX_BATCH_RECEIPTS + 2)))

    assert len(await world.sent()) == MAX_BATCH_RECEIPTS
    assert await world.sent() == [MAX_BATCH_RECEIPTS + 1]


async def test_messages_are_bounded_in_size(world):
    half = bytes(MAX_BATCH_BYTES // 2 + 1)
    world.ready(receipt(1, envelope=half), receipt(2, envelope=half))

    assert await world.sent() == [1]
    assert await world.sent() == [2]


async def test_control_plane_that_does_not_answer_gets_no_flood(world):
    world.ready(*(receipt(number) for number in range(1, MAX_UNACKNOWLEDGED + 10)))
    while await world.sent():
        pass

    world.outbox.acknowledged([1])

    assert await world.sent() == [MAX_UNACKNOWLEDGED + 1]


async def test_receipt_waits_for_its_upload_and_the_next_one_does_not(world):
    world.ready(receipt(1, large=True), receipt(2))

    assert await world.sent() == [2]
    assert (await world.outbox.next_upload()).sequence == 1
    world.outbox.uploaded(1)
    assert await world.sent() == [1]


async def test_upload_that_failed_comes_again(world):
    world.ready(receipt(1, large=True))
    first = await world.outbox.next_upload()

    world.outbox.upload_failed(first)

    assert (await world.outbox.next_upload()).sequence == 1


async def test_what_was_uploaded_is_not_uploaded_again_on_a_new_stream(world):
    world.ready(receipt(1, large=True))
    await world.outbox.next_upload()
    world.outbox.uploaded(1)
    await world.sent()

    world.outbox.restart()

    assert await world.sent() == [1]


async def test_after_a_restart_of_the_process_large_outputs_are_uploaded_first(world):
    world.spooled(receipt(1, large=True), receipt(2))

    world.outbox.restart()

    assert await world.sent() == [2]
    assert (await world.outbox.next_upload()).sequence == 1


async def test_run_that_lasts_is_told(world):
    world.outbox.started(attempt(1))
    assert world.outbox.next_started() == []

    world.clock.advance(STARTED_LINGER)

    assert world.outbox.next_started() == [attempt(1)]
    assert world.outbox.next_started() == []


async def test_run_that_is_over_at_once_needs_no_note(world):
    world.outbox.started(attempt(1))
    world.ready(receipt(1))
    world.clock.advance(STARTED_LINGER)

    assert world.outbox.next_started() == []

"""What every `ReceiptSpool` promises, on the real one and on the fake."""

import hashlib
import os

import pytest

from data_plane.orders.domain import AttemptRef
from data_plane.receipts.domain import EMPTY_HEAD, INLINE_BODY_BYTES, Body
from data_plane.receipts.ports import ReceiptDraft
from data_plane.receipts.spool import Spool
from shared.errors import NotFoundError
from shared.ids import ExecutionId
from tests.fakes.spool import FakeSpool

ATTEMPT = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=1)


@pytest.fixture(params=["real", "fake"])
async def spool(request, tmp_path):
    if request.param == "fake":
        yield FakeSpool()
        return
    spool = Spool.open(tmp_path, bound_bytes=1 << 27)
    yield spool
    await spool.close()


def draft(
    text: bytes = b"receipt", *, output: bytes | None = None, order_envelope: bytes = b""
) -> ReceiptDraft:
    body = None if output is None else Body.of(output, bytes(32))
    return ReceiptDraft(
        build=lambda head: text + head.hash, attempt=ATTEMPT, output=body, order_envelope=order_envelope
    )


async def test_new_spool_has_no_head(spool):
    assert spool.head == EMPTY_HEAD
    assert spool.unacknowledged() == []


async def test_each_receipt_is_built_on_the_head_before_it(spool):
    first = await spool.append(draft())
    second = await spool.append(draft())

    assert (first.sequence, second.sequence) == (1, 2)
    assert second.envelope == b"receipt" + hashlib.sha256(first.envelope).digest()
    assert spool.head.sequence == 2
    assert spool.hash_of(2) == spool.head.hash
    assert spool.hash_of(1) == hashlib.sha256(first.envelope).digest()


async def test_receipt_is_read_back_as_it_was_returned(spool):
    receipt = await spool.append(draft(output=b"small"))

    assert await spool.read(1) == receipt
    assert receipt.output.inline == b"small"
    assert receipt.uploads == ()


async def test_signature_of_the_order_is_kept_with_its_receipt(spool):
    await spool.append(draft(output=b"small", order_envelope=b"signed root"))
    assert (await spool.read(1)).order_envelope == b"signed root"


@pytest.mark.parametrize("size", [100, INLINE_BODY_BYTES + 1])
async def test_recording_and_writes_are_kept_with_their_receipt(spool, size):
    recording = Body.of(os.urandom(size), bytes(32))
    made = ReceiptDraft(
        build=lambda _: b"receipt",
        attempt=ATTEMPT,
        log=Body.of(b"log", bytes(32)),
        recording=recording,
        kv_writes=b"writes",
        order_envelope=b"signed root",
    )

    receipt = await spool.append(made)

    assert await spool.read(1) == receipt
    assert (receipt.kv_writes, receipt.order_envelope) == (b"writes", b"signed root")
    assert (receipt.output, receipt.log.inline) == (None, b"log")
    assert receipt.recording.commitment == recording.commitment
    assert await spool.read_body(receipt.recording) == recording.content
    assert receipt.uploads == (() if size == 100 else (receipt.recording,))


@pytest.mark.parametrize(("size", "inline"), [(INLINE_BODY_BYTES, True), (INLINE_BODY_BYTES + 1, False)])
async def test_bodies_travel_inline_up_to_64_kib(spool, size, inline):
    content = os.urandom(size)

    receipt = await spool.append(draft(output=content))

    assert (receipt.output.inline is not None) is inline
    assert receipt.output.size_bytes == size
    assert await spool.read_body(receipt.output) == content


async def test_acknowledged_receipt_is_forgotten_but_the_chain_goes_on(spool):
    first = await spool.append(draft(output=os.urandom(INLINE_BODY_BYTES + 1)))
    head = spool.head

    spool.acknowledge([1, 1, 77])

    assert spool.unacknowledged() == []
    assert spool.head == head
    with pytest.raises(NotFoundError):
        await spool.read(1)
    assert (await spool.append(draft())).sequence == 2
    with pytest.raises(NotFoundError):
        await spool.read_body(first.output)
    assert spool.hash_of(1) is None


async def test_reservation_may_be_released_twice(spool):
    held = spool.reserve(1000)

    held.release()
    held.release()

    spool.reserve(1000).release()

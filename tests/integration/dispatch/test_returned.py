"""A replica that died after sending orders leaves no order with a receipt and without its signature on record."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from agentfactory.v1 import orders_pb2

from shared.order_codec import decode_order
from tests.fixtures.keys import rsa_key, signer
from tests.fixtures.order_batches import sign_batch
from tests.fixtures.scripted_node import ScriptedNode
from tests.integration.dispatch.stage import CLOCK, Replica, replica, seed, work

NEVER = timedelta(hours=1)
"""Longer than a test: the replica that sends writes no signature by itself."""

SIGNATURES = "SELECT b.envelope FROM orders o JOIN order_batches b USING (batch_id) WHERE o.order_id = $1"


@pytest.fixture
async def pair(owner_url: str, database_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """A replica that records no signature, and the one that its nodes go to."""
    await seed(owner_url)
    async with (
        replica(database_url, record_linger=NEVER) as gone,
        replica(database_url, name="replica-2") as next_one,
    ):
        yield gone, next_one


async def ordered(
    gone: Replica, next_one: Replica, count: int = 1
) -> tuple[ScriptedNode, orders_pb2.OrderBatch]:
    """A node that got orders from the one and has its session with the other now."""
    node = await gone.ready_node()
    await gone.submit(*(work() for _ in range(count)))
    batch = (await node.next("order_batch")).order_batch
    assert len(batch.orders) == count
    await node.close()
    again = next_one.client(node.node_id, boot=node.boot_id, receipts=node.receipts)
    await again.connect()
    return again, batch


async def taken(
    next_one: Replica, node: ScriptedNode, delivery: orders_pb2.OrderDelivery, envelope: bytes
) -> bytes:
    """Have a receipt taken that comes with an envelope; returns the one on record, or nothing."""
    receipt = await node.receipts.answer(delivery.order)
    receipt.order_envelope = 1
    await node.deliver(receipt, order_envelopes=[envelope])
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [node.receipts.sequence]
    rows = await next_one.fetch(SIGNATURES, decode_order(delivery.order).id)
    return bytes(rows[0]["envelope"]) if rows else b""


async def signed(order: bytes, *, by: str = "orders", installation: str = "test") -> bytes:
    """Return the envelope of a batch of one order."""
    batch = await sign_batch(
        [order], signer(rsa_key(by)), installation=installation, epoch=1, issued_at=CLOCK.now()
    )
    return batch.envelope


async def test_signature_comes_on_record_with_the_receipt(pair: tuple[Replica, Replica]) -> None:
    node, batch = await ordered(*pair, count=2)

    receipts = [await node.receipts.answer(one.order) for one in batch.orders]
    for one in receipts:
        one.order_envelope = 1
    await node.deliver(*receipts, order_envelopes=[batch.envelope])
    await node.next("receipt_ack")

    for order in batch.orders:
        [row] = await pair[1].fetch(SIGNATURES, decode_order(order.order).id)
        assert row["envelope"] == batch.envelope


async def test_node_of_an_older_build_returns_none_and_is_taken_all_the_same(
    pair: tuple[Replica, Replica],
) -> None:
    node, batch = await ordered(*pair)
    await node.answer(batch.orders[0])
    assert await node.next("receipt_ack")
    assert await pair[1].fetch("SELECT 1 FROM order_batches") == []


async def test_attack_envelope_of_another_batch_takes_no_place(pair: tuple[Replica, Replica]) -> None:
    node, batch = await ordered(*pair)
    other = await signed(b"another order")
    assert await taken(pair[1], node, batch.orders[0], other) == b""


async def test_attack_right_root_signed_by_somebody_else(pair: tuple[Replica, Replica]) -> None:
    node, batch = await ordered(*pair)
    forged = await signed(batch.orders[0].order, by="somebody")
    assert await taken(pair[1], node, batch.orders[0], forged) == b""


async def test_attack_signature_of_another_installation(pair: tuple[Replica, Replica]) -> None:
    node, batch = await ordered(*pair)
    other = await signed(batch.orders[0].order, installation="another")
    assert await taken(pair[1], node, batch.orders[0], other) == b""


async def test_place_that_no_envelope_has_is_as_none(pair: tuple[Replica, Replica]) -> None:
    node, batch = await ordered(*pair)
    receipt = await node.receipts.answer(batch.orders[0].order)
    receipt.order_envelope = 2
    await node.deliver(receipt, order_envelopes=[batch.envelope])
    assert await node.next("receipt_ack")
    assert await pair[1].fetch("SELECT 1 FROM order_batches") == []


async def test_signature_on_record_is_not_replaced(pair: tuple[Replica, Replica]) -> None:
    node, batch = await ordered(*pair, count=2)
    first, second = batch.orders
    assert await taken(pair[1], node, first, batch.envelope) == batch.envelope
    assert await taken(pair[1], node, second, b"nonsense") == batch.envelope

"""An order is found by its digest: what a node names that could not believe it."""

from shared.digests import sha256_digest
from shared.order_codec import decode_order
from shared.receipts import AttemptIdentity
from tests.fixtures import dispatch as build
from tests.integration.dispatch.stage import Replica, work


async def test_order_of_a_node_is_found_while_its_attempt_lives_and_afterwards(one: Replica) -> None:
    node = await one.ready_node()
    await one.submit(work())
    delivery = await node.next_order()
    order, digest = decode_order(delivery.order), sha256_digest(delivery.order)
    expected = AttemptIdentity(
        order_id=order.id,
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        fencing_token=order.fencing_token,
    )

    assert await one.nodes.find_order(node.node_id, digest) == expected

    await node.answer(delivery)
    await one.waiting.ended(order.execution_id)
    assert await one.nodes.find_order(node.node_id, digest) == expected


async def test_order_of_another_node_is_not_found(one: Replica) -> None:
    node = await one.ready_node()
    await one.submit(work())
    delivery = await node.next_order()

    assert await one.nodes.find_order(build.node_id(), sha256_digest(delivery.order)) is None
    assert await one.nodes.find_order(node.node_id, sha256_digest(b"another order")) is None

"""Orders down, receipts up, over a real channel and a real database."""

from tests.integration.dispatch.stage import Replica, work


async def test_an_order_goes_out_and_its_receipt_is_accepted(one: Replica):
    node = await one.ready_node()

    [accepted] = await one.submit(work())
    delivery = await node.next_order()
    await node.answer(delivery, output=b'{"found": 3}')

    ended = await one.waiting.ended(accepted.execution_id)
    assert (ended.state, ended.output) == ("succeeded", b'{"found": 3}')
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [1]
    stored = await one.get(accepted.execution_id)
    assert (stored.state, stored.receipt_id) == ("succeeded", ended.receipt_id)

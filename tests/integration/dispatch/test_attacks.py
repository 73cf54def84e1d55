"""What a malicious node tries on a session; each scene is named for the attack."""

from collections.abc import Sequence
from typing import Any

import pytest

from control_plane.audit.domain import NewAuditEntry
from control_plane.executions import finishing
from control_plane.executions.domain import AttemptResult
from shared.errors import InvalidInputError, ReceiptInvalidError
from shared.ids import AUDIT_ENTRY, new_id
from shared.outcomes import Outcome
from tests.fixtures import dispatch as build
from tests.integration.dispatch.stage import CLOCK, RANDOM, Replica, work


async def _entry(one: Replica, subject: str, action: str) -> bool:
    found = await one.fetch(
        "SELECT details FROM audit_entries WHERE subject = $1 AND action = $2", subject, action
    )
    return bool(found)


@pytest.mark.parametrize("exit_code", [255, 2**31 - 1, 2**31, 2**32 - 1])
async def test_every_exit_code_of_a_guest_is_recorded(one: Replica, exit_code: int):
    node = await one.ready_node()
    accepted = await one.submit(work(), work())
    orders = (await node.next("order_batch")).order_batch.orders
    failed = await node.receipts.answer(orders[0].order, outcome=Outcome.FAILED, exit_code=exit_code)
    good = await node.receipts.answer(orders[1].order)
    await node.deliver(failed, good)
    ends = [await one.waiting.ended(answer.execution_id) for answer in accepted]
    assert sorted((end.state, end.exit_code) for end in ends) == [("failed", exit_code), ("succeeded", 0)]


async def test_a_receipt_that_cannot_be_stored_holds_up_no_other(
    one: Replica, monkeypatch: pytest.MonkeyPatch
):
    real = finishing.finish_arguments

    def poisoned(results: Sequence[AttemptResult]) -> list[Sequence[Any]]:
        if any(result.sequence == 1 for result in results):
            raise ValueError("no row can hold it")
        return real(results)

    monkeypatch.setattr(finishing, "finish_arguments", poisoned)
    node = await one.ready_node()
    await one.submit(work(), work())
    orders = (await node.next("order_batch")).order_batch.orders
    await node.deliver(*[await node.receipts.answer(delivery.order) for delivery in orders])
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [2]
    await one.until(lambda: _entry(one, node.node_id, "node.receipt_refused"))
    await one.submit(work())  # the session goes on
    await node.beat()
    await node.answer(await node.next_order())
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [3]


async def test_receipts_before_a_refused_one_are_recorded(one: Replica):
    node = await one.ready_node()
    await one.submit(work(), work())
    orders = (await node.next("order_batch")).order_batch.orders
    good, bad = [await node.receipts.answer(delivery.order) for delivery in orders]
    bad.output.inline = b"another"
    bad.output.size_bytes = len(b"another")
    await node.deliver(good, bad)
    assert isinstance(await node.end(), ReceiptInvalidError)
    await one.until(lambda: _states(one, {"succeeded": 1, "pending": 1}))


async def _states(one: Replica, expected: dict[str, int]) -> bool:
    rows = await one.fetch("SELECT state, count(*) AS n FROM executions GROUP BY state")
    return {row["state"]: row["n"] for row in rows} == expected


async def test_a_trap_with_a_nul_is_refused_on_record(one: Replica):
    node = await one.ready_node()
    await one.submit(work())
    await node.answer(await node.next_order(), outcome=Outcome.TRAPPED, exit_code=None, trap="x\0y")
    error = await node.end()
    assert isinstance(error, ReceiptInvalidError)
    assert "check 5" in str(error)
    await one.until(lambda: _entry(one, node.node_id, "node.receipt_refused"))


async def test_control_characters_do_not_keep_a_refusal_off_the_record(one: Replica):
    node = one.client((await one.add_node()).node_id)
    hello = node.hello()
    del hello.hello.accepts[:]
    hello.hello.accepts.append("x\0\x1b[2J\u202e")
    node._call = node.stub.Session()
    await node._call.write(hello)
    assert await node.end() is not None
    rows = await one.fetch(
        "SELECT details->>'reason' AS reason FROM audit_entries"
        " WHERE subject = $1 AND action = 'node.session_refused'",
        node.node_id,
    )
    assert len(rows) == 1
    assert rows[0]["reason"].isprintable()


async def test_a_hello_with_a_malformed_digest_does_not_end_the_nodes_own_session(one: Replica):
    good = await one.ready_node()
    bad = one.client(good.node_id, boot=good.boot_id)
    hello = bad.hello()
    hello.hello.cached_digests.append("nonsense")
    bad._call = bad.stub.Session()
    await bad._call.write(hello)
    assert isinstance(await bad.end(), InvalidInputError)
    await one.submit(work())
    await good.answer(await good.next_order())
    await good.next("receipt_ack")
    [row] = await one.fetch("SELECT session_epoch FROM sessions WHERE node_id = $1", good.node_id)
    assert row["session_epoch"] == 1


def _state_entry(subject: str) -> NewAuditEntry:
    return NewAuditEntry(
        audit_entry_id=new_id(AUDIT_ENTRY, CLOCK, RANDOM),
        tenant_id=build.TENANT,
        actor="somebody",
        action="node.changed",
        subject=subject,
    )


async def test_a_drain_that_started_before_a_quarantine_does_not_lift_it(one: Replica):
    node = await one.add_node()
    seen = await one.nodes.find(node.node_id)
    assert seen is not None
    for state in (seen.quarantine(), seen.drain()):
        await one.nodes.save_state(state, audit=_state_entry(node.node_id))
    now = await one.nodes.find(node.node_id)
    assert now is not None
    assert now.state == "quarantined"

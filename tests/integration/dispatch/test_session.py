"""Orders down, receipts up, over a real channel and a real database."""

import asyncio
import json
from datetime import timedelta

import pytest
from agentfactory.v1 import nodes_pb2

from control_plane.executions.encoding import capabilities_bytes
from control_plane.nodes.domain import NodeState
from shared.clock import SystemClock
from shared.digests import sha256_digest
from shared.dsse import decode_envelope
from shared.errors import (
    ClockSkewError,
    InvalidInputError,
    NodeEvictedError,
    NodeQuarantinedError,
    PermissionDeniedError,
    ReceiptConflictError,
    ReceiptInvalidError,
    RejectionReason,
    SessionSupersededError,
    SignatureInvalidError,
    UnauthenticatedError,
    UnknownKeyError,
    UnsupportedVersionError,
)
from shared.manifest import Capabilities, Profile
from shared.order_codec import PROFILE_NUMBERS, decode_order
from shared.orders import verify_batch, verify_order_inclusion
from shared.outcomes import Outcome
from shared.receipts import Rejection
from shared.resources import ResourcesUsed
from tests.fixtures import dispatch as build
from tests.fixtures.keys import ed25519_key, rsa_key, trusting
from tests.fixtures.scripted_node import ScriptedNode
from tests.integration.dispatch.stage import Replica, replica, work


def renewal(number: int, *orders: bytes) -> nodes_pb2.LeaseRenewal:
    attempts = [
        nodes_pb2.AttemptRef(
            execution_id=order.execution_id,
            attempt_number=order.attempt_number,
            fencing_token=order.fencing_token,
        )
        for order in map(decode_order, orders)
    ]
    return nodes_pb2.LeaseRenewal(number=number, attempts=attempts)


async def actions(one: Replica, subject: str) -> list[tuple[str, str]]:
    rows = await one.fetch(
        "SELECT action, result FROM audit_entries WHERE subject = $1 ORDER BY audit_entry_id", subject
    )
    return [(row["action"], row["result"]) for row in rows]


# --- the path


async def test_an_order_goes_out_and_its_receipt_is_accepted(one: Replica):
    node = await one.ready_node()

    [accepted] = await one.submit(work())
    await node.answer(await node.next_order(), output=b'{"found": 3}')

    ended = await one.waiting.ended(accepted.execution_id)
    assert (ended.state, ended.output) == ("succeeded", b'{"found": 3}')
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [1]
    stored = await one.get(accepted.execution_id)
    assert (stored.state, stored.receipt_id) == ("succeeded", ended.receipt_id)


async def test_all_that_a_receipt_says_was_used_is_kept(one: Replica):
    node = await one.ready_node(accepts=[V2])
    [accepted] = await one.submit(work())
    used = ResourcesUsed(
        wall=timedelta(milliseconds=3), fuel=5, host_calls=2, host_call_time=timedelta(microseconds=1)
    )
    await node.answer(await node.next_order(), resources=used)
    await one.waiting.ended(accepted.execution_id)
    assert (await one.get(accepted.execution_id)).resources_used == used


async def test_rule_3_a_newcomer_is_accepted_and_claimed_in_one_transaction(one: Replica):
    await one.ready_node()
    [accepted] = await one.submit(work())
    assert accepted.placed


async def test_orders_of_one_moment_share_one_signature_and_each_verifies_alone(one: Replica):
    node = await one.ready_node()
    works = [work(), work()]
    await one.submit(*works)
    batch = (await node.next("order_batch")).order_batch
    root = verify_batch(
        batch.envelope, keys=trusting(rsa_key("orders")), installation="test", minimum_epoch=1
    )
    assert root.tree_size == 2
    for delivery in batch.orders:
        verify_order_inclusion(
            delivery.order, index=delivery.index, path=list(delivery.path), verified_root=root
        )
    assert {decode_order(one_.order).execution_id for one_ in batch.orders} == {
        new.run.execution_id for new in works
    }


async def test_a_receipt_is_accepted_only_after_the_signature_of_its_order_is_stored(one: Replica):
    node = await one.ready_node()
    [accepted] = await one.submit(work())
    batch = (await node.next("order_batch")).order_batch
    await node.answer(batch.orders[0])
    await one.waiting.ended(accepted.execution_id)
    [stored] = await one.fetch(
        "SELECT b.envelope, b.key_id, o.leaf_index, o.content FROM orders o JOIN order_batches b USING (batch_id)"
    )
    assert stored["envelope"] == batch.envelope
    assert stored["content"] == batch.orders[0].order
    assert stored["key_id"] == decode_envelope(batch.envelope).signatures[0].key_id


async def test_what_finds_no_slot_waits_and_is_claimed_when_one_is_free(one: Replica):
    node = await one.ready_node()
    answers = await one.submit(work(), work(), work())
    assert [answer.placed for answer in answers] == [True, True, False]
    batch = (await node.next("order_batch")).order_batch
    await node.answer(batch.orders[0])
    third = decode_order((await node.next_order()).order)
    assert third.execution_id == answers[2].execution_id


async def test_two_nodes_share_the_work(one: Replica):
    nodes = [await one.ready_node(), await one.ready_node()]
    await one.submit(*(work() for _ in range(4)))
    # Placed at once or claimed a moment later, in one batch or two: two slots each, so two orders each.
    for node in nodes:
        orders = set()
        while len(orders) < 2:
            batch = (await node.next("order_batch")).order_batch
            orders |= {delivery.order for delivery in batch.orders}
        assert len(orders) == 2


# --- rule 4


async def test_rule_4_an_order_names_the_boot_and_may_start_for_at_most_a_minute(one: Replica):
    node = await one.ready_node()
    await one.submit(work())
    order = decode_order((await node.next_order()).order)
    assert (order.node_id, order.boot_id) == (node.node_id, node.boot_id)
    assert order.expires_at - order.not_before == timedelta(seconds=60)


# --- rule 5


async def test_rule_5_an_unacknowledged_receipt_is_acknowledged_when_it_comes_again(one: Replica):
    node = await one.ready_node()
    await one.submit(work())
    receipt = await node.answer(await node.next_order())
    await node.next("receipt_ack")
    await node.close()

    again = one.client(node.node_id, boot=node.boot_id, receipts=node.receipts)
    welcome = await again.connect()
    assert welcome.last_accepted.sequence == 1
    await again.deliver(receipt)
    assert list((await again.next("receipt_ack")).receipt_ack.sequences) == [1]


async def test_rule_5_receipts_may_arrive_out_of_order(one: Replica):
    node = await one.ready_node()
    await one.submit(work(), work())
    orders = (await node.next("order_batch")).order_batch.orders
    first = await node.receipts.answer(orders[0].order)
    second = await node.receipts.answer(orders[1].order)
    await node.deliver(second)
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [2]
    await node.deliver(first)
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [1]


async def test_rule_5_two_receipts_for_one_sequence_quarantine_the_node(one: Replica):
    node = await one.ready_node()
    await one.submit(work(), work())
    orders = (await node.next("order_batch")).order_batch.orders
    await node.answer(orders[0])
    await node.next("receipt_ack")
    forked = build.ReceiptWriter(node_id=node.node_id, boot_id=node.boot_id)
    await node.deliver(await forked.answer(orders[1].order, output=b"other"))

    assert isinstance(await node.end(), ReceiptConflictError)
    await one.until(lambda: _is(one, node, NodeState.QUARANTINED))
    assert ("node.quarantined", "RECEIPT_CONFLICT") in await actions(one, node.node_id)
    again = one.client(node.node_id, boot=node.boot_id, receipts=node.receipts)
    with pytest.raises(NodeQuarantinedError):
        await again.connect()


async def _is(one: Replica, node: ScriptedNode, state: NodeState) -> bool:
    found = await one.nodes.find(node.node_id)
    return found is not None and found.state is state


async def test_rule_5_the_same_fork_over_two_sessions_is_found_by_the_database(one: Replica):
    node = await one.ready_node()
    await one.submit(work(), work())
    orders = (await node.next("order_batch")).order_batch.orders
    for delivery in orders:
        await node.answer(delivery)
        await node.next("receipt_ack")
    await node.close()
    forked = build.ReceiptWriter(node_id=node.node_id, boot_id=node.boot_id)
    other = await forked.answer(orders[0].order, output=b"other")
    again = one.client(node.node_id, boot=node.boot_id, receipts=node.receipts)
    await again.connect()  # this session has seen neither
    await again.deliver(other)
    assert isinstance(await again.end(), ReceiptConflictError)
    await one.until(lambda: _is(one, node, NodeState.QUARANTINED))


async def test_rule_5_a_node_that_lost_its_spool_has_lost_its_identity(one: Replica):
    node = await one.ready_node()
    await one.submit(work())
    await node.answer(await node.next_order())
    await node.next("receipt_ack")
    await node.close()

    reborn = one.client(node.node_id)
    with pytest.raises(NodeEvictedError, match="identity has ended"):
        await reborn.connect()
    assert await _is(one, node, NodeState.EVICTED)
    assert ("node.session_refused", "NODE_EVICTED") in await actions(one, node.node_id)


async def test_a_receipt_by_another_key_ends_the_session_and_is_on_record(one: Replica):
    node = await one.ready_node()
    await one.submit(work())
    delivery = await node.next_order()
    forger = build.ReceiptWriter(
        node_id=node.node_id, boot_id=node.boot_id, key=ed25519_key("somebody else's")
    )
    await node.deliver(await forger.answer(delivery.order))
    assert isinstance(await node.end(), UnknownKeyError)
    await one.until(lambda: _recorded(one, node.node_id, ("node.receipt_refused", "UNKNOWN_KEY")))


async def _recorded(one: Replica, subject: str, entry: tuple[str, str]) -> bool:
    return entry in await actions(one, subject)


async def test_a_receipt_whose_output_is_not_what_it_commits_to_is_refused(one: Replica):
    node = await one.ready_node()
    [accepted] = await one.submit(work())
    receipt = await node.receipts.answer((await node.next_order()).order, output=b"right")
    receipt.output.inline = b"wrong"
    await node.deliver(receipt)
    assert isinstance(await node.end(), ReceiptInvalidError)
    assert (await one.get(accepted.execution_id)).state == "pending"


async def test_a_receipt_for_an_order_that_never_was_quarantines_the_node(one: Replica):
    node = await one.ready_node()
    await one.submit(work())
    delivery = await node.next_order()
    altered = build.orders_pb2.Order.FromString(delivery.order)
    altered.fencing_token = 7
    await node.deliver(await node.receipts.answer(altered.SerializeToString(deterministic=True)))
    assert isinstance(await node.end(), ReceiptInvalidError | ReceiptConflictError)
    await one.until(lambda: _is(one, node, NodeState.QUARANTINED))


# --- rules 1 and 2


async def test_rule_1_a_busy_node_is_excluded_and_the_next_one_gets_the_work(one: Replica):
    busy = await one.ready_node()
    [accepted] = await one.submit(work())
    delivery = await busy.next_order()
    other = await one.ready_node()
    await busy.answer(
        delivery,
        outcome=Outcome.REJECTED,
        exit_code=None,
        output_commitment=None,
        engine=None,
        started_at=None,
        rejection=Rejection(check=9, reason=RejectionReason.BUSY, message="no slot"),
    )
    order = decode_order((await other.next_order()).order)
    assert (order.execution_id, order.attempt_number) == (accepted.execution_id, 2)


async def test_rule_2_a_late_receipt_is_evidence_and_changes_nothing(quick: Replica):
    one = quick
    node = await one.ready_node()
    [accepted] = await one.submit(work())
    first = await node.next_order()
    await one.until(lambda: _attempts_lost(one, 1))
    await node.beat()
    second = await node.next_order()
    assert decode_order(second.order).fencing_token == 2
    late = await node.answer(first, output=b"late")
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [1]
    assert late
    await node.answer(second, output=b"in time")
    assert (await one.waiting.ended(accepted.execution_id)).output == b"in time"


async def _attempts_lost(one: Replica, count: int) -> bool:
    return len(await one.fetch("SELECT FROM attempts WHERE state = 'lost'")) == count


async def test_rule_1_an_attempt_that_is_never_heard_of_again_is_tried_anew_and_alone(quick: Replica):
    silent, other = await quick.ready_node(), await quick.ready_node()
    [accepted] = await quick.submit(work())
    await quick.until(lambda: _attempts_lost(quick, 1))
    for node in (silent, other):
        await node.beat()
    execution = await quick.get(accepted.execution_id)
    assert execution.runs_alone
    await quick.until(lambda: _attempts_made(quick, 2))


async def _attempts_made(one: Replica, count: int) -> bool:
    return len(await one.fetch("SELECT FROM attempts")) == count


async def test_a_slot_is_free_again_when_another_replica_lost_its_attempt(quick: Replica):
    node = await quick.ready_node()
    await quick.submit(work())
    await node.next_order()
    await quick.fetch("UPDATE attempts SET state = 'lost'")  # as another replica's sweep does
    await quick.until(lambda: quick.dispatch.stats().held_slots == 0)


# --- rule 3: sessions


async def test_rule_3_the_newest_session_of_a_node_ends_the_older_one(one: Replica):
    node = await one.ready_node()
    newer = one.client(node.node_id, boot=node.boot_id, receipts=node.receipts)
    welcome = await newer.connect()
    assert welcome.session_epoch == 2
    assert isinstance(await node.end(), SessionSupersededError)


async def test_rule_3_a_session_on_another_replica_takes_over(one: Replica, database_url: str):
    node = await one.ready_node()
    async with replica(database_url, name="replica-2") as two:
        newer = two.client(node.node_id, boot=node.boot_id, receipts=node.receipts)
        await newer.connect()
        assert isinstance(await node.end(), SessionSupersededError)
        await newer.beat()
        await one.submit(work())
        assert await newer.next_order(), "the queue reaches the replica that owns the session"
        await newer.close()


async def test_a_broken_stream_closes_no_attempt_and_the_node_goes_on_elsewhere(one: Replica):
    node = await one.ready_node()
    [accepted] = await one.submit(work())
    delivery = await node.next_order()
    await node.close()
    await one.until(lambda: one.dispatch.stats().sessions == 0)
    again = one.client(node.node_id, boot=node.boot_id, receipts=node.receipts)
    await again.connect()
    await again.answer(delivery)
    assert (await one.waiting.ended(accepted.execution_id)).state == "succeeded"


async def test_a_new_boot_loses_what_the_old_one_ran(one: Replica):
    node = await one.ready_node()
    [accepted] = await one.submit(work())
    await node.next_order()
    await node.close()
    reborn = one.client(node.node_id)
    await reborn.connect()
    await reborn.beat()
    order = decode_order((await reborn.next_order()).order)
    assert (order.execution_id, order.fencing_token) == (accepted.execution_id, 2)


# --- rule 7


async def test_rule_7_cancelling_reaches_the_node_and_ends_the_execution(one: Replica):
    node = await one.ready_node()
    [accepted] = await one.submit(work())
    delivery = await node.next_order()
    _, request = await one.executions.request_cancel(
        build.TENANT, accepted.execution_id, _cancel_entry(accepted.execution_id)
    )
    assert request is not None
    one.dispatch.placer.cancel([request])
    cancel = (await node.next("cancel")).cancel
    assert cancel.attempt.execution_id == accepted.execution_id
    await node.answer(delivery, outcome=Outcome.CANCELLED, exit_code=None, output_commitment=None)
    assert (await one.waiting.ended(accepted.execution_id)).state == "cancelled"


async def test_rule_7_a_cancel_of_another_replica_reaches_the_node(one: Replica):
    node = await one.ready_node()
    [accepted] = await one.submit(work())
    await node.next_order()
    await one.executions.request_cancel(
        build.TENANT, accepted.execution_id, _cancel_entry(accepted.execution_id)
    )  # nobody calls the placer: NOTIFY or the poll has to do it
    assert (await node.next("cancel")).cancel.attempt.execution_id == accepted.execution_id


def _cancel_entry(execution_id: str) -> build.Any:
    from control_plane.audit.domain import NewAuditEntry  # noqa: PLC0415
    from tests.integration.dispatch.stage import AUDIT_ENTRY, CLOCK, RANDOM, new_id  # noqa: PLC0415

    return NewAuditEntry(
        audit_entry_id=new_id(AUDIT_ENTRY, CLOCK, RANDOM),
        tenant_id=build.TENANT,
        actor="spiffe://test/caller/alice",
        action="execution.cancel_requested",
        subject=execution_id,
    )


# --- rule 9


@pytest.mark.parametrize("seconds", [-29, 29])
async def test_rule_9_a_clock_that_is_a_little_off_is_let_in(one: Replica, seconds: int):
    node = one.client((await one.add_node()).node_id)
    welcome = await node.connect(now=SystemClock().now() + timedelta(seconds=seconds))
    assert welcome.session_epoch == 1


@pytest.mark.parametrize("seconds", [-31, 31])
async def test_rule_9_a_clock_that_is_far_off_is_refused_on_record(one: Replica, seconds: int):
    node = one.client((await one.add_node()).node_id)
    now = SystemClock().now() + timedelta(seconds=seconds)
    with pytest.raises(ClockSkewError, match="check 4"):
        await node.connect(now=now)
    assert ("node.session_refused", "CLOCK_SKEW") in await actions(one, node.node_id)


async def test_rule_9_a_renewed_lease_is_granted_and_an_ended_one_is_not(one: Replica):
    node = await one.ready_node()
    await one.submit(work(), work())
    orders = (await node.next("order_batch")).order_batch.orders
    await node.answer(orders[0])
    await node.next("receipt_ack")
    await node.send(lease_renewal=renewal(1, orders[0].order, orders[1].order))
    granted = (await node.next("lease_granted")).lease_granted
    assert granted.number == 1
    assert [one_.execution_id for one_ in granted.attempts] == [decode_order(orders[1].order).execution_id]


async def test_rule_9_the_first_lease_counts_from_the_heartbeat_that_the_order_echoes(one: Replica):
    node = await one.ready_node()
    await node.beat()
    await one.until(lambda: next(iter(one.dispatch._fleet)).heartbeat_number == 2)
    await one.submit(work())
    order = decode_order((await node.next_order()).order)
    assert (order.heartbeat_number, order.lease) == (2, timedelta(seconds=4))


# --- rule 11


async def test_rule_11_a_node_without_a_common_order_type_is_refused(one: Replica):
    node = one.client((await one.add_node()).node_id)
    node.hello = lambda **_: _without_types(ScriptedNode.hello(node))  # type: ignore[method-assign]
    with pytest.raises(UnsupportedVersionError, match="check 5"):
        await node.connect()


def _without_types(request: nodes_pb2.SessionRequest) -> nodes_pb2.SessionRequest:
    del request.hello.accepts[:]
    request.hello.accepts.append("agentfactory.order.v9")
    return request


async def test_rule_11_the_newest_common_order_type_is_spoken(one: Replica):
    node = one.client((await one.add_node()).node_id)
    welcome = await node.connect(accepts=["agentfactory.order.v0", "agentfactory.order.v2"])
    assert welcome.order_type == "agentfactory.order.v2"


V1 = "agentfactory.order.v1"
V2 = "agentfactory.order.v2"
NEW = capabilities_bytes(Capabilities(kv=True))


async def test_rule_11_a_node_that_accepts_only_version_1_gets_orders_of_it_and_answers_in_it(one: Replica):
    node = await one.ready_node()
    session = one.dispatch._fleet.get(node.node_id)
    assert session is not None
    assert session.order_type == V1

    [accepted] = await one.submit(work())
    delivery = await node.next_order()
    assert decode_order(delivery.order).format == V1
    receipt = await node.answer(delivery)

    assert (await one.waiting.ended(accepted.execution_id)).state == "succeeded"
    statement = json.loads(decode_envelope(receipt.envelope).payload)
    assert statement["predicateType"] == "https://agentfactory.dev/receipt/v1"


async def test_rule_11_what_version_1_cannot_say_waits_says_why_and_holds_nobody_up(one: Replica):
    node = await one.ready_node()
    too_new = [work(capabilities=NEW) for _ in range(3)]
    [*waiting, other] = await one.submit(*too_new, work())
    assert not any(accepted.placed for accepted in waiting)

    delivery = await node.next_order()
    assert decode_order(delivery.order).execution_id == other.execution_id

    async def all_say_why() -> bool:
        found = [await one.get(accepted.execution_id) for accepted in waiting]
        return all(
            (execution.state, execution.pending_reason) == ("pending", "NEEDS_NEWER_NODE")
            for execution in found
        )

    await one.until(all_say_why)


async def test_rule_11_what_version_1_cannot_say_goes_to_a_node_that_speaks_version_2(one: Replica):
    older = await one.ready_node()
    [accepted] = await one.submit(work(capabilities=NEW))
    await one.until(lambda: one.dispatch._fleet.get(older.node_id)._too_new)

    newer = one.client((await one.add_node()).node_id)
    await newer.connect(accepts=[V2])
    await newer.beat()

    order = decode_order((await newer.next_order()).order)
    assert (order.format, order.execution_id) == (V2, accepted.execution_id)
    assert order.host_call_grants == ("kv.get", "kv.put")


async def test_rule_11_what_version_1_cannot_say_is_not_asked_for_in_a_hot_loop(one: Replica):
    node = await one.ready_node()
    session = one.dispatch._fleet.get(node.node_id)
    await one.submit(work(capabilities=NEW))
    await one.until(lambda: session._too_new)
    claims, claim = [], one.leases.claim

    async def counted(*arguments, **named):
        claims.append(named["too_new"])
        return await claim(*arguments, **named)

    one.leases.claim = counted  # type: ignore[method-assign]
    await asyncio.sleep(0.5)
    one.leases.claim = claim  # type: ignore[method-assign]
    assert len(claims) <= 4


# --- who may open a session


async def test_a_hello_that_names_another_node_is_refused(one: Replica):
    mine, other = await one.add_node(), await one.add_node()
    node = one.client(mine.node_id)
    with pytest.raises(PermissionDeniedError, match="check 3"):
        await node.connect(node_id=other.node_id)


async def test_a_node_that_is_not_enrolled_here_is_refused(one: Replica):
    node = one.client(build.node_id())
    with pytest.raises(UnauthenticatedError, match="check 1"):
        await node.connect()


async def test_the_first_message_must_be_a_hello(one: Replica):
    node = one.client((await one.add_node()).node_id)
    node._call = node.stub.Session()
    await node.beat()
    assert isinstance(await node.end(), InvalidInputError)


async def test_a_spool_head_signed_by_another_key_is_refused(one: Replica):
    node = one.client((await one.add_node()).node_id)
    node.receipts = build.ReceiptWriter(
        node_id=node.node_id, boot_id=node.boot_id, key=ed25519_key("somebody else's")
    )
    with pytest.raises(SignatureInvalidError):
        await node.connect()


# --- rule 12, drain, evict


async def test_rule_12_a_newer_keyset_is_relayed_and_no_order_leaves_before_it_is_acknowledged(one: Replica):
    node = await one.ready_node()
    one.keysets.version = 2
    await one.dispatch.relay_keyset()
    assert (await node.next("keyset_update")).keyset_update.keyset == b"keyset 2"
    [accepted] = await one.submit(work())
    assert not accepted.placed
    await node.beat(keyset_version=2)
    assert decode_order((await node.next_order()).order).execution_id == accepted.execution_id


async def test_rule_12_a_keyset_that_a_newcomer_was_welcomed_with_still_reaches_the_others(one: Replica):
    node = await one.ready_node()
    one.keysets.version = 2
    newcomer = one.client((await one.add_node()).node_id)
    await newcomer.connect()
    await one.dispatch.relay_keyset()
    assert (await node.next("keyset_update")).keyset_update.keyset == b"keyset 2"


async def test_a_drained_node_finishes_what_runs_and_gets_nothing_new(one: Replica):
    node = await one.ready_node()
    [running] = await one.submit(work())
    delivery = await node.next_order()
    await one.service.drain(build.TENANT, node.node_id, actor="me")
    assert not (await node.next("drain")).drain.evicted
    [waiting] = await one.submit(work())
    assert not waiting.placed
    await node.answer(delivery)
    assert (await one.waiting.ended(running.execution_id)).state == "succeeded"
    assert (await one.get(waiting.execution_id)).state == "pending"


async def test_an_evicted_node_is_told_and_its_attempts_go_elsewhere(one: Replica):
    node, other = await one.ready_node(), await one.ready_node()
    await one.submit(*(work() for _ in range(4)))
    lost = {
        decode_order(one_.order).execution_id for one_ in (await node.next("order_batch")).order_batch.orders
    }
    for delivery in (await other.next("order_batch")).order_batch.orders:
        await other.answer(delivery)
    await one.service.evict(build.TENANT, node.node_id, actor="me", reason="stolen")
    assert (await node.next("drain")).drain.evicted
    assert await node.end() is None
    await other.beat()
    assert decode_order((await other.next_order()).order).execution_id in lost
    assert ("node.evicted", "ok") in await actions(one, node.node_id)


async def test_stopping_a_replica_ends_sessions_as_planned(owner_url: str, database_url: str):
    from tests.integration.dispatch.stage import seed  # noqa: PLC0415

    await seed(owner_url)
    async with replica(database_url) as one:
        node = await one.ready_node()
        one.dispatch.end_sessions()
        assert await node.end() is None
        await asyncio.sleep(0)


def _engine(profile: Profile, content: bytes) -> nodes_pb2.ProfileEngine:
    return nodes_pb2.ProfileEngine(profile=PROFILE_NUMBERS[profile], config_digest=sha256_digest(content))


async def test_rule_20_an_order_names_the_engine_under_its_own_profile(one: Replica):
    node = one.client((await one.add_node()).node_id)
    engines = [_engine(Profile.DEFAULT, b"fast"), _engine(Profile.PORTABLE, b"portable")]
    await node.connect(profile_engines=engines)
    await node.beat()

    for profile, content in ((Profile.PORTABLE, b"portable"), (Profile.DEFAULT, b"fast")):
        await one.submit(work(profile=profile))
        order = decode_order((await node.next_order()).order)
        assert (order.profile, order.engine.config_digest) == (profile, sha256_digest(content))


async def test_rule_20_a_profile_waits_for_a_node_that_offers_it_and_holds_nobody_up(one: Replica):
    older = await one.ready_node()
    [waiting, other] = await one.submit(work(profile="deterministic"), work())
    assert decode_order((await older.next_order()).order).execution_id == other.execution_id

    newer = one.client((await one.add_node()).node_id)
    await newer.connect(profile_engines=[_engine(Profile.DETERMINISTIC, b"metered")])
    await newer.beat()

    order = decode_order((await newer.next_order()).order)
    assert (order.execution_id, order.profile) == (waiting.execution_id, Profile.DETERMINISTIC)
    assert order.engine.config_digest == sha256_digest(b"metered")


async def test_rule_20_a_configuration_that_is_no_digest_is_refused(one: Replica):
    node = one.client((await one.add_node()).node_id)
    engine = nodes_pb2.ProfileEngine(profile=PROFILE_NUMBERS[Profile.PORTABLE], config_digest="sha256:0")
    with pytest.raises(InvalidInputError, match="not a digest"):
        await node.connect(profile_engines=[engine])

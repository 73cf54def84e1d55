"""Who gets a slot, what leaves signed, and what is taken back."""

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from agentfactory.v1 import nodes_pb2

from control_plane.dispatch import options as limits
from control_plane.dispatch.dispatcher import COMPANY_ORDERS, COMPANY_RESERVE, ENOUGH_EMPTY
from control_plane.dispatch.session import LiveSession
from control_plane.executions.domain import AttemptRef, CancelRequest, RunSpec
from shared.errors import KeyUnavailableError, SessionSupersededError
from shared.ids import TenantId
from shared.orders import verify_batch, verify_order_inclusion
from shared.signatures import Signature
from tests.fakes.clock import START
from tests.fixtures import dispatch as build
from tests.fixtures.keys import rsa_key, trusting
from tests.unit.control_plane.dispatch.conftest import Parts, newcomer


def messages(session: LiveSession) -> list[nodes_pb2.SessionResponse]:
    """What was queued for a node."""
    return [outgoing.message for outgoing in session.outbox.take_unread()]


def ordered(session: LiveSession) -> list[str]:
    """The executions whose orders were queued for a node."""
    return [order.execution_id for message in messages(session) for order in build.orders_in(message)]


# --- rule 3: newcomers


async def test_rule_3_no_newcomer_is_placed_before_a_claim_found_the_queue_empty(parts: Parts):
    parts.join()
    assert parts.dispatcher.place([newcomer()]) == [None]
    await parts.find_queue_empty()
    [placement] = parts.dispatcher.place([newcomer()])
    assert placement is not None


async def test_rule_3_a_newcomer_never_jumps_the_queue(parts: Parts):
    session = parts.join(slots=1)
    await parts.find_queue_empty()
    first, second, third = (newcomer() for _ in range(3))
    placements = parts.dispatcher.place([first, second])
    assert [placement is not None for placement in placements] == [True, False]
    session.release((first.run.execution_id, 1))  # a slot is free again, but the second one waits
    assert parts.dispatcher.place([third]) == [None]


async def test_rule_3_word_that_something_waits_stops_direct_placement(parts: Parts):
    parts.join()
    await parts.find_queue_empty()
    parts.dispatcher.wake()
    assert parts.dispatcher.place([newcomer()]) == [None]


CALM, WILD = TenantId("calm"), TenantId("wild")


async def test_rule_3_a_newcomer_before_which_nothing_of_its_tenant_waits_is_placed_though_others_wait(
    parts: Parts,
):
    session = parts.join(slots=2)
    parts.enqueue(*(build.claimable(run=build.run_spec(tenant_id=WILD)) for _ in range(9)))
    await parts.dispatcher.claim_once()
    session.take_heartbeat(number=session.heartbeat_number + 1, free_slots=9, capacity=11, now=0.0)
    parts.dispatcher.wake(of=[WILD])
    assert parts.dispatcher.place([newcomer(tenant_id=WILD)]) == [None]
    [placement] = parts.dispatcher.place([newcomer(tenant_id=CALM)])
    assert placement is not None


async def test_rule_3_a_newcomer_never_jumps_the_queue_of_its_own_tenant(parts: Parts):
    session = parts.join(slots=1)
    parts.enqueue(build.claimable(run=build.run_spec(tenant_id=WILD)))
    await parts.dispatcher.claim_once()
    assert parts.dispatcher.place([newcomer(tenant_id=CALM)]) == [None], "there is no slot: it waits"
    for held in session.held():
        session.release(held.key)
    assert parts.dispatcher.place([newcomer(tenant_id=CALM)]) == [None]


async def test_among_several_tenants_little_stands_in_a_nodes_queue_and_a_place_is_kept(parts: Parts):
    session = parts.join(slots=2)
    session.take_heartbeat(number=session.heartbeat_number + 1, free_slots=100, capacity=100, now=0.0)
    parts.enqueue(
        *(build.claimable(run=build.run_spec(tenant_id=one)) for one in (CALM, *[WILD] * 30)),
    )
    parts.dispatcher.place([newcomer(tenant_id=CALM), newcomer(tenant_id=WILD)])
    await parts.dispatcher.claim_once()
    assert session.held_count == COMPANY_ORDERS
    placed = [one for _ in range(10) for one in parts.dispatcher.place([newcomer(tenant_id=CALM)]) if one]
    assert len(placed) == COMPANY_RESERVE


async def test_a_tenant_alone_fills_a_nodes_queue(parts: Parts):
    session = parts.join(slots=2)
    session.take_heartbeat(number=session.heartbeat_number + 1, free_slots=100, capacity=100, now=0.0)
    parts.enqueue(*(build.claimable() for _ in range(30)))
    await parts.dispatcher.claim_once()
    assert session.held_count == 30


async def test_a_wake_during_a_claim_is_not_forgotten(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    parts.join()
    claim = parts.leases.claim

    async def claim_and_hear(*arguments, **named):
        answer = await claim(*arguments, **named)
        parts.dispatcher.wake()
        return answer

    monkeypatch.setattr(parts.leases, "claim", claim_and_hear)
    await parts.dispatcher.claim_once()
    assert not parts.dispatcher.queue_is_empty


async def test_an_empty_queue_is_found_by_a_few_claims_however_many_nodes_there_are(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(10 * ENOUGH_EMPTY):
        parts.join()
    asked, claim = [], parts.leases.claim

    async def claim_and_count(session, **named):
        asked.append(session.node_id)
        return await claim(session, **named)

    monkeypatch.setattr(parts.leases, "claim", claim_and_count)
    await parts.find_queue_empty()
    assert len(asked) == ENOUGH_EMPTY
    await parts.find_queue_empty()
    assert len(set(asked)) > ENOUGH_EMPTY, "others are asked each time"


async def test_a_long_queue_is_claimed_for_every_node(parts: Parts):
    sessions = [parts.join(slots=1) for _ in range(3 * ENOUGH_EMPTY)]
    parts.enqueue(*(build.claimable() for _ in sessions))
    await parts.dispatcher.claim_once()
    assert [one.held_count for one in sessions] == [1] * len(sessions)


async def test_what_some_nodes_refused_gets_to_another_node(parts: Parts):
    sessions = [parts.join() for _ in range(3 * ENOUGH_EMPTY)]
    refused = tuple(one.node_id for one in sessions[:-1])
    parts.enqueue(build.claimable(excluded_nodes=refused))
    for _ in sessions:
        await parts.dispatcher.claim_once()
    assert sessions[-1].held_count == 1


async def test_without_a_slot_nothing_is_placed_and_nothing_is_claimed(parts: Parts):
    session = parts.join(slots=1)
    await parts.find_queue_empty()
    parts.take(newcomer())
    waiting = build.claimable()
    parts.enqueue(waiting)
    await parts.dispatcher.claim_once()
    assert parts.leases.queue == [waiting]
    assert session.held_count == 1


@pytest.mark.parametrize(("left_ms", "placed"), [(-1, 0), (0, 0), (1, 1)])
async def test_what_passed_its_run_deadline_is_not_ordered(parts: Parts, left_ms: int, placed: int):
    parts.join()
    await parts.find_queue_empty()
    deadline = START + timedelta(milliseconds=left_ms)
    assert len(parts.take(newcomer(run_deadline_at=deadline))) == placed
    parts.enqueue(build.claimable(run=build.run_spec(run_deadline_at=deadline)))
    await parts.dispatcher.claim_once()
    assert len(parts.leases.live) == 2 * placed


async def test_a_placement_that_was_not_committed_gives_its_slot_back(parts: Parts):
    session = parts.join(slots=1)
    await parts.find_queue_empty()
    [placement] = parts.dispatcher.place([newcomer()])
    assert placement is not None
    assert session.free_slots(0.0) == 0
    parts.dispatcher.release([placement])
    assert session.free_slots(0.0) == 1


# --- claims


async def test_a_claim_fills_free_slots_in_the_queues_order(parts: Parts):
    session = parts.join(slots=2)
    works = [build.claimable() for _ in range(3)]
    parts.enqueue(*works)
    await parts.dispatcher.claim_once()
    await parts.dispatcher.send_once()
    assert ordered(session) == [work.run.execution_id for work in works[:2]]
    assert not parts.dispatcher.queue_is_empty


async def test_rule_1_what_must_run_alone_waits_until_its_node_is_empty_and_then_fills_it(parts: Parts):
    session = parts.join(slots=4)
    await parts.find_queue_empty()
    [running] = parts.take(newcomer())
    alone, behind = build.claimable(runs_alone=True, attempt_number=2, fencing_token=2), build.claimable()
    parts.enqueue(alone, behind)
    await parts.dispatcher.claim_once()
    assert parts.leases.queue == [alone, behind], "nothing passes it, so that its node gets empty"

    parts.dispatcher.slot_freed(session.node_id, session.held()[0])
    await parts.dispatcher.claim_once()

    assert parts.leases.queue == [behind]
    assert session.free_slots(0.0) == 0
    assert running.execution_id != alone.run.execution_id


async def test_what_must_run_alone_stops_the_claims_of_one_node_only(parts: Parts):
    first, second = parts.join(slots=4), parts.join(slots=4)
    await parts.find_queue_empty()
    parts.take(*(newcomer() for _ in range(4)))
    assert not first.is_idle
    assert not second.is_idle
    alone = build.claimable(runs_alone=True, attempt_number=2, fencing_token=2)
    behind = [build.claimable() for _ in range(2)]
    parts.enqueue(alone, *behind)
    await parts.dispatcher.claim_once()
    assert parts.leases.queue == [alone]
    assert not parts.dispatcher.queue_is_empty


async def test_with_every_slot_busy_the_queues_of_several_nodes_are_filled(parts: Parts):
    sessions = [parts.join(slots=1), parts.join(slots=1)]
    for session in sessions:
        session.take_heartbeat(number=2, free_slots=3, capacity=3, now=0.0)
    await parts.find_queue_empty()
    assert len(parts.take(newcomer(), newcomer())) == 2
    assert [session.idle_slots() for session in sessions] == [0, 0]
    parts.enqueue(*(build.claimable() for _ in range(5)))

    await parts.dispatcher.claim_once()

    assert sorted(session.held_count for session in sessions) == [3, 3]
    assert len(parts.leases.queue) == 1
    assert not parts.dispatcher.queue_is_empty


async def test_slots_of_every_node_come_before_the_queue_of_one(parts: Parts):
    sessions = [parts.join(slots=2), parts.join(slots=2)]
    for session in sessions:
        session.take_heartbeat(number=2, free_slots=10, capacity=10, now=0.0)
    parts.enqueue(*(build.claimable() for _ in range(4)))

    await parts.dispatcher.claim_once()

    assert [session.held_count for session in sessions] == [2, 2]


async def test_what_no_order_can_say_stands_in_nobodys_way(parts: Parts):
    session = parts.join()
    unsayable = build.claimable(run=build.run_spec(agent_id="not an id", profile="unknown"))
    good = build.claimable()
    parts.enqueue(unsayable, good)
    await parts.dispatcher.claim_once()
    await parts.dispatcher.send_once()
    assert ordered(session) == [good.run.execution_id]
    assert parts.leases.queue == [unsayable]


async def test_an_excluded_node_does_not_get_the_work(parts: Parts):
    session = parts.join()
    other = parts.join()
    work = build.claimable(excluded_nodes=(session.node_id,))
    parts.enqueue(work)
    await parts.dispatcher.claim_once()
    await parts.dispatcher.send_once()
    assert (ordered(session), ordered(other)) == ([], [work.run.execution_id])


async def test_rule_3_a_claim_for_a_superseded_session_ends_it_and_takes_nothing(parts: Parts):
    session = parts.join()
    work = build.claimable()
    parts.enqueue(work)
    parts.leases.superseded.add(session.node_id)
    await parts.dispatcher.claim_once()
    assert isinstance(session.outbox.error, SessionSupersededError)
    assert parts.leases.queue == [work]


async def test_a_claim_of_unknown_fate_gives_slots_and_leases_back(parts: Parts):
    session = parts.join()
    parts.enqueue(build.claimable())
    parts.leases.away = True
    await parts.dispatcher.claim_once()
    assert session.held_count == 0
    parts.leases.away = False
    await parts.settle()
    assert len(parts.leases.released) == 1


# --- signing and sending


async def test_orders_of_one_moment_share_a_signature_over_several_nodes(parts: Parts):
    sessions = [parts.join(slots=2), parts.join(slots=2)]
    await parts.find_queue_empty()
    parts.take(*(newcomer() for _ in range(4)))
    await parts.dispatcher.send_once()
    await parts.batches.record_once(all_of_them=True)
    [record] = parts.leases.batches
    assert record.key_id == rsa_key("orders").key_id
    for session in sessions:
        [message] = messages(session)
        root = verify_batch(
            message.order_batch.envelope,
            keys=trusting(rsa_key("orders")),
            installation="test",
            minimum_epoch=1,
        )
        assert root.tree_size == 4
        for delivery in message.order_batch.orders:
            path = list(delivery.path)
            verify_order_inclusion(delivery.order, index=delivery.index, path=path, verified_root=root)


async def test_a_batch_is_bounded(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("control_plane.dispatch.batches.MAX_BATCH_ORDERS", 2)
    session = parts.join(slots=3)
    await parts.find_queue_empty()
    parts.take(*(newcomer() for _ in range(3)))
    await parts.dispatcher.send_once()
    assert len(ordered(session)) == 2
    await parts.dispatcher.send_once()
    assert len(ordered(session)) == 1


async def test_messages_stay_below_what_grpc_carries(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    session = parts.join(slots=100)
    await parts.find_queue_empty()
    body = build.body(b"x" * 64 * 1024)
    parts.take(*(newcomer(input=body) for _ in range(100)))
    await parts.dispatcher.send_once()
    sent = messages(session)
    assert len(sent) == 3
    assert max(message.ByteSize() for message in sent) <= limits.MAX_MESSAGE_BYTES + 8 * 1024
    assert {message.order_batch.envelope for message in sent} == {sent[0].order_batch.envelope}


@pytest.mark.parametrize(("size", "inline"), [(64 * 1024, True), (64 * 1024 + 1, False)])
async def test_rule_10_a_large_input_travels_by_digest_only(parts: Parts, size: int, *, inline: bool):
    session = parts.join()
    await parts.find_queue_empty()
    parts.take(newcomer(input=build.body(b"x" * size)))
    await parts.dispatcher.send_once()
    [delivery] = messages(session)[0].order_batch.orders
    assert delivery.input.size_bytes == size
    assert (len(delivery.input.inline) == size) is inline


@dataclass
class AwaySigner:
    """Key custody that does not answer until it is told to."""

    away: bool = True

    async def sign(self, data: bytes) -> Signature:
        if self.away:
            raise KeyUnavailableError("key custody does not answer")
        key = rsa_key("orders")
        return Signature(key_id=key.key_id, key_version=1, value=key.sign(data))


async def test_orders_that_cannot_be_signed_are_released_uncounted_and_slots_rest(parts: Parts):
    custody = AwaySigner()
    parts.batches._signer = custody
    session = parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    await parts.dispatcher.send_once()
    await parts.settle()
    assert parts.leases.released == [placement]
    assert session.held_count == 0

    work = build.claimable()
    parts.enqueue(work)
    await parts.dispatcher.claim_once()
    assert parts.leases.queue == [work], "no claim while the key is away: it could not be ordered"

    custody.away = False
    parts.clock.advance(build.options().signing_pause)
    await parts.dispatcher.claim_once()
    await parts.dispatcher.send_once()
    assert ordered(session) == [work.run.execution_id]


async def test_an_order_whose_session_went_before_it_left_is_released_uncounted(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    parts.fleet.remove(session)
    await parts.dispatcher.send_once()
    await parts.settle()
    assert parts.leases.released == [placement]


async def test_an_order_that_a_closed_session_never_read_is_released_uncounted(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    await parts.dispatcher.send_once()
    session.end()
    parts.dispatcher.session_ended(session)
    await parts.settle()
    assert parts.leases.released == [placement]


async def test_an_order_that_was_read_stays_with_its_lease(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    parts.take(newcomer())
    await parts.dispatcher.send_once()
    assert len(ordered(session)) == 1
    session.end()
    parts.dispatcher.session_ended(session)
    await parts.settle()
    assert parts.leases.released == []


async def test_a_signature_is_on_record_with_the_first_receipt_or_a_moment_later(parts: Parts):
    parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    await parts.dispatcher.send_once()
    record = parts.batches.unrecorded(placement.order_id)
    assert record is not None
    assert record.batch_id == placement.batch.batch_id

    await parts.batches.record_once()
    assert parts.leases.batches == [], "a receipt may still bring it along"
    parts.clock.advance(build.options().record_linger)
    parts.leases.away = True
    await parts.batches.record_once()
    assert parts.batches.unrecorded(placement.order_id) == record
    parts.leases.away = False
    await parts.batches.record_once()

    assert parts.leases.batches == [record]
    assert parts.batches.unrecorded(placement.order_id) is None
    await parts.batches.record_once()
    assert parts.leases.batches == [record]


async def test_a_batch_of_which_nothing_was_committed_is_forgotten(parts: Parts):
    parts.join()
    await parts.find_queue_empty()
    [placement] = parts.dispatcher.place([newcomer()])
    assert placement is not None
    parts.dispatcher.release([placement])
    await parts.settle()
    await parts.batches.record_once(all_of_them=True)
    assert parts.leases.batches == []
    assert not parts.batches._open


async def test_orders_that_could_not_be_signed_leave_no_batch_behind(parts: Parts):
    parts.batches._signer = AwaySigner()
    parts.join()
    await parts.find_queue_empty()
    parts.take(newcomer())
    await parts.dispatcher.send_once()
    await parts.settle()
    await parts.batches.record_once(all_of_them=True)
    assert not parts.batches._open
    assert not parts.batches._of_order


# --- the order itself


async def _sent_order(parts: Parts, run: RunSpec | None = None, **session: object):
    joined = parts.join(**session)
    await parts.find_queue_empty()
    parts.take(replace(newcomer(), run=run) if run is not None else newcomer())
    await parts.dispatcher.send_once()
    [order] = build.orders_in(messages(joined)[0])
    return joined, order


async def test_rule_4_an_order_names_node_and_boot_and_lives_for_a_bounded_time(parts: Parts):
    session, order = await _sent_order(parts)
    assert (order.node_id, order.boot_id) == (session.node_id, session.boot_id)
    assert (order.not_before, order.expires_at) == (START, START + timedelta(seconds=60))
    assert len(order.nonce) == 16


async def test_rule_4_an_order_never_outlives_the_run_deadline(parts: Parts):
    deadline = START + timedelta(seconds=7)
    _, order = await _sent_order(parts, build.run_spec(run_deadline_at=deadline))
    assert order.expires_at == deadline


@pytest.mark.parametrize("seconds", [0, 61])
def test_rule_4_no_setting_makes_an_order_live_longer_than_a_minute(seconds: int):
    with pytest.raises(ValueError, match="order life"):
        build.options(order_life=timedelta(seconds=seconds))


async def test_an_order_carries_all_that_influences_the_run(parts: Parts):
    run = build.run_spec(seed=b"7" * 32, traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    session, order = await _sent_order(parts, run)
    assert order.engine.config_digest == session.engine.config_digest
    assert (order.seed, order.traceparent) == (run.seed, run.traceparent)
    assert order.input_commitment == run.input.commitment
    assert order.limits.wall_ms == 1000
    assert (order.decision_id, order.policy_digest) == (run.decision_id, run.policy_digest)


async def test_no_two_orders_share_a_nonce(parts: Parts):
    session = parts.join(slots=50)
    await parts.find_queue_empty()
    parts.take(*(newcomer() for _ in range(50)))
    await parts.dispatcher.send_once()
    orders = [order for message in messages(session) for order in build.orders_in(message)]
    assert len({order.nonce for order in orders}) == 50


# --- rule 7


async def test_rule_7_a_cancel_reaches_own_sessions_only(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    mine = CancelRequest(attempt=placement.attempt, node_id=session.node_id, reason="CANCEL_REQUESTED")
    elsewhere = CancelRequest(
        attempt=AttemptRef(execution_id=build.execution_id(), attempt_number=1, fencing_token=1),
        node_id=build.node_id(),
        reason="CANCEL_REQUESTED",
    )
    parts.dispatcher.cancel([elsewhere, mine])
    [message] = messages(session)
    assert message.cancel.attempt.execution_id == placement.execution_id
    assert message.cancel.reason == "CANCEL_REQUESTED"

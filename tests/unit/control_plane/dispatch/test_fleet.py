"""Which session gets an order, and what a node's messages do to its offer."""

from datetime import timedelta

import pytest

from control_plane.dispatch.fleet import MAX_COMPARED, Fleet
from control_plane.dispatch.session import OFFER_SHARE, HeldAttempt, LiveSession
from shared.digests import sha256_digest
from shared.errors import ReceiptConflictError, SessionSupersededError
from tests.fixtures.dispatch import MODULE_DIGEST, SpoolHead, boot_id, execution_id, session


def held(*, runs_alone: bool = False) -> HeldAttempt:
    return HeldAttempt(execution_id=execution_id(), attempt_number=1, fencing_token=1, runs_alone=runs_alone)


def fleet_of(*sessions: LiveSession) -> Fleet:
    fleet = Fleet()
    for one in sessions:
        fleet.add(one)
    return fleet


def test_no_order_before_the_first_heartbeat():
    assert session(heartbeat=False).free_slots(0.0) == 0


@pytest.mark.parametrize(("milliseconds", "free"), [(-1, 2), (0, 0), (1, 0)])
def test_an_old_heartbeat_offers_nothing(milliseconds: int, free: int):
    for lease in (timedelta(seconds=4), timedelta(seconds=30)):
        now = (OFFER_SHARE * lease + timedelta(milliseconds=milliseconds)).total_seconds()
        assert session(lease=lease).free_slots(now) == free


def test_rule_9_the_first_lease_counts_from_the_heartbeat_that_offered_the_place():
    one = session(lease=timedelta(seconds=4), last_message_at=10.0)
    assert one.first_lease(10.0) == timedelta(seconds=4)
    assert one.first_lease(12.25) == timedelta(seconds=1.75)
    one.take_heartbeat(number=2, free_slots=2, now=12.25)
    assert one.first_lease(12.25) == timedelta(seconds=4)


def test_held_attempts_take_slots_until_they_are_released():
    one, attempt = session(), held()
    one.hold(attempt)
    assert one.free_slots(0.0) == 1
    assert one.release(attempt.key)
    assert one.free_slots(0.0) == 2
    assert not one.release(attempt.key)


def test_an_attempt_that_runs_alone_closes_the_whole_node():
    one = session()
    one.hold(held(runs_alone=True))
    assert one.free_slots(0.0) == 0


def test_slots_that_are_busy_for_unknown_reasons_are_not_offered():
    one = session(slots=4)
    one.take_heartbeat(number=2, free_slots=1, now=0.0)
    assert one.free_slots(0.0) == 1
    assert not one.is_idle
    one.take_heartbeat(number=3, free_slots=4, now=0.0)
    assert one.free_slots(0.0) == 4


def test_an_order_on_its_way_is_not_offered_again_by_a_heartbeat_that_does_not_know_it():
    one = session()
    one.hold(held())
    one.take_heartbeat(number=2, free_slots=2, now=0.0)
    assert one.free_slots(0.0) == 1


@pytest.mark.parametrize("field", ["draining", "node_is_draining"])
def test_a_draining_node_gets_nothing(field: str):
    assert session(**{field: True}).free_slots(0.0) == 0


def test_rule_12_no_order_before_the_keyset_is_acknowledged():
    one = session(keyset_version=1)
    fleet = fleet_of(one)
    fleet.require_keyset(2)
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0) is None
    one.keyset_version = 2
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0) is one
    fleet.require_keyset(1)
    assert fleet.required_keyset_version == 2, "versions never go back"


def test_a_node_that_has_the_module_is_preferred_to_an_emptier_one():
    warm, empty = session(), session()
    warm.remember_cached([MODULE_DIGEST])
    warm.hold(held())
    assert fleet_of(empty, warm).pick(module_digest=MODULE_DIGEST, now=0.0) is warm
    assert fleet_of(empty, warm).pick(module_digest=sha256_digest(b"other"), now=0.0) is empty


def test_the_own_zone_is_preferred_and_the_least_loaded_in_it():
    far, near, busy = session(zone="far"), session(zone="near"), session(zone="near")
    busy.hold(held())
    assert fleet_of(far, busy, near).pick(module_digest=MODULE_DIGEST, now=0.0, zone="near") is near


def test_excluded_and_full_nodes_are_never_picked():
    refused, full = session(), session(slots=1)
    full.hold(held())
    fleet = fleet_of(refused, full)
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0, excluded=[refused.node_id]) is None


def test_rule_3_the_newest_session_wins_and_ends_the_older_one():
    older = session(session_epoch=1)
    older.hold(held())
    newer = session(session_epoch=2, node_id=older.node_id, boot_id=older.boot_id)
    fleet = fleet_of(older, newer)
    assert isinstance(older.outbox.error, SessionSupersededError)
    assert fleet.get(newer.node_id) is newer
    assert newer.held_count == 1, "the same process still runs what the older session held"
    assert not fleet.remove(older)
    with pytest.raises(SessionSupersededError):
        fleet.add(session(session_epoch=1, node_id=older.node_id))


def test_a_new_boot_inherits_nothing():
    older = session()
    older.hold(held())
    newer = session(session_epoch=2, node_id=older.node_id, boot_id=boot_id())
    fleet_of(older, newer)
    assert newer.held_count == 0


def test_a_newer_session_elsewhere_ends_ours():
    mine = session(session_epoch=3)
    fleet = fleet_of(mine)
    assert not fleet.supersede(mine.node_id, 3)
    assert fleet.supersede(mine.node_id, 4)
    assert isinstance(mine.outbox.error, SessionSupersededError)


@pytest.mark.parametrize(
    "head", [SpoolHead(sequence=4, hash=b"x" * 32), SpoolHead(sequence=5, hash=b"y" * 32)]
)
def test_rule_5_a_spool_that_goes_back_is_a_conflict(head: SpoolHead):
    one = session(spool_head=SpoolHead(sequence=5, hash=b"x" * 32))
    assert one.head_moved(head)
    with pytest.raises(ReceiptConflictError):
        one.move_head(head)


def test_remembered_digests_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("control_plane.dispatch.session.MAX_REMEMBERED_DIGESTS", 2)
    digests = [sha256_digest(bytes([n])) for n in range(3)]
    one = session()
    one.remember_cached(digests)
    assert [one.has_cached(digest) for digest in digests] == [False, True, True]


def test_a_slot_that_is_idle_is_preferred_to_a_place_in_the_queue_of_a_node_with_the_module():
    warm, cold = session(slots=1), session(slots=1)
    warm.remember_cached([MODULE_DIGEST])
    warm.take_heartbeat(number=2, free_slots=2, capacity=2, now=0.0)
    warm.hold(held())
    fleet = fleet_of(warm, cold)
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0) is cold
    cold.hold(held())
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0) is warm, "a queue is better than to wait"


def test_newcomers_spread_over_a_fleet_that_is_larger_than_what_is_compared():
    fleet = fleet_of(*(session(slots=1) for _ in range(5 * MAX_COMPARED)))
    picked = set()
    for _ in range(len(fleet)):
        chosen = fleet.pick(module_digest=MODULE_DIGEST, now=0.0)
        assert chosen is not None
        chosen.hold(held())
        picked.add(chosen.node_id)
    assert len(picked) == len(fleet)
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0) is None


def test_the_only_node_with_the_module_and_the_only_one_of_the_zone_are_found_among_many():
    others = [session(zone="far") for _ in range(5 * MAX_COMPARED)]
    near, warm = session(zone="near"), session(zone="far")
    warm.remember_cached([MODULE_DIGEST])
    fleet = fleet_of(*others, near, warm)
    for _ in range(10):
        assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0, zone="near") is warm
        assert fleet.pick(module_digest=sha256_digest(b"other"), now=0.0, zone="near") is near


def test_a_module_that_came_by_heartbeat_counts_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("control_plane.dispatch.session.MAX_REMEMBERED_DIGESTS", 1)
    warm = session()
    fleet = fleet_of(*(session() for _ in range(5 * MAX_COMPARED)), warm)
    warm.remember_cached([MODULE_DIGEST])
    warm.hold(held())
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0) is warm
    warm.remember_cached([sha256_digest(b"other")])
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0) is not warm


def test_a_session_that_has_left_is_never_picked():
    warm = session(zone="near")
    warm.remember_cached([MODULE_DIGEST])
    fleet = fleet_of(warm)
    newer = session(session_epoch=2, node_id=warm.node_id, boot_id=warm.boot_id)
    fleet.add(newer)
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0, zone="near") is newer
    assert fleet.remove(newer)
    assert fleet.pick(module_digest=MODULE_DIGEST, now=0.0, zone="near") is None

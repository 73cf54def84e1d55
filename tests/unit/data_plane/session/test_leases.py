"""Leases count from sending, by the node's own clock; times at the boundary."""

from datetime import timedelta

import pytest

from data_plane.orders.domain import AttemptRef
from data_plane.session.leases import MAX_REMEMBERED_HEARTBEATS, Leases
from shared.errors import OrderRejectedError, RejectionReason
from shared.ids import ExecutionId

LEASE = timedelta(seconds=4)
ONE = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=1)
TWO = AttemptRef(execution_id=ExecutionId("exe_2"), attempt_number=1, fencing_token=1)


@pytest.fixture
def leases() -> Leases:
    leases = Leases()
    leases.heartbeat_sent(1, at=100.0)
    return leases


def begin(leases: Leases, attempt: AttemptRef = ONE, *, now: float = 101.0, heartbeat: int = 1) -> None:
    leases.begin(attempt, heartbeat_number=heartbeat, lease=LEASE, now=now)


@pytest.mark.parametrize(("now", "over"), [(103.999, ()), (104.0, (ONE,)), (104.001, (ONE,))])
def test_first_lease_counts_from_the_heartbeat_that_offered_the_slot(leases, now, over):
    begin(leases, now=103.0)

    assert leases.expired(now=now) == over


def test_order_that_comes_after_its_first_lease_is_stale(leases):
    with pytest.raises(OrderRejectedError) as caught:
        begin(leases, now=104.0)

    assert caught.value.rejection is RejectionReason.STALE


def test_order_for_a_heartbeat_that_was_never_sent_is_stale(leases):
    with pytest.raises(OrderRejectedError):
        begin(leases, heartbeat=2)


def test_order_for_a_heartbeat_of_long_ago_is_stale(leases):
    for number in range(2, MAX_REMEMBERED_HEARTBEATS + 2):
        leases.heartbeat_sent(number, at=100.0 + number / 1000)

    with pytest.raises(OrderRejectedError):
        begin(leases, heartbeat=1)


def test_renewed_lease_counts_from_sending_not_from_the_answer(leases):
    begin(leases)
    leases.renewal_sent(1, at=102.0)

    leases.granted(1, [ONE], lease=LEASE)

    assert leases.next_end() == 106.0


def test_answer_that_overtakes_a_newer_one_does_not_shorten_the_lease(leases):
    begin(leases)
    leases.renewal_sent(1, at=102.0)
    leases.renewal_sent(2, at=103.0)
    leases.granted(2, [ONE], lease=LEASE)

    leases.granted(1, [ONE], lease=LEASE)

    assert leases.next_end() == 107.0


def test_attempt_that_is_missing_in_the_answer_has_ended(leases):
    begin(leases)
    begin(leases, TWO)
    assert set(leases.renewal_sent(1, at=102.0)) == {ONE, TWO}

    assert leases.granted(1, [TWO], lease=LEASE) == (ONE,)
    assert not leases.is_live(ONE, now=102.0)
    assert leases.is_live(TWO, now=102.0)


def test_attempt_that_began_after_the_renewal_is_not_ended_by_its_answer(leases):
    leases.renewal_sent(1, at=100.5)
    begin(leases)

    assert leases.granted(1, [], lease=LEASE) == ()
    assert leases.is_live(ONE, now=103.0)


def test_answer_to_nothing_grants_nothing(leases):
    begin(leases)

    leases.granted(9, [ONE], lease=LEASE)

    assert leases.next_end() == 104.0


def test_expired_lease_is_not_revived_by_a_late_answer(leases):
    begin(leases)
    leases.renewal_sent(1, at=102.0)
    leases.expired(now=104.0)

    leases.granted(1, [ONE], lease=LEASE)

    assert not leases.is_live(ONE, now=104.0)

"""How many orders a node wants: a queue measured in time."""

from datetime import timedelta

import pytest

from data_plane.orders.admission import QUEUE_TIME, QUEUED_SPOOL_BYTES, Admissions
from data_plane.session.leases import Leases
from shared.limits import MAX_LIMITS
from tests.fakes.spool import FakeSpool
from tests.unit.data_plane.builders import order

SLOTS, QUEUE = 2, 64


@pytest.fixture
def spool() -> FakeSpool:
    return FakeSpool()


@pytest.fixture
def admissions(spool) -> Admissions:
    leases = Leases()
    leases.heartbeat_sent(3, at=0.0)
    return Admissions(slots=SLOTS, queue=QUEUE, leases=leases, spool=spool, ceilings=MAX_LIMITS)


def ran(admissions: Admissions, took: timedelta, *, times: int = 50) -> None:
    """Let so many runs of this length pass."""
    for number in range(times):
        admission = admissions.admit(order(nonce=number.to_bytes(16, "big")), now=0.0)
        admissions.begin(admission, now=0.0)
        admissions.end(admission, now=took.total_seconds())
        admission.leave()


def test_nothing_is_queued_before_anything_was_measured(admissions):
    assert admissions.capacity(now=0.0) == SLOTS


def test_runs_as_long_as_the_queue_time_leave_one_order_for_each_slot(admissions):
    ran(admissions, QUEUE_TIME)
    assert admissions.capacity(now=0.0) == SLOTS + SLOTS


def test_long_runs_leave_no_queue(admissions):
    ran(admissions, 3 * QUEUE_TIME)
    assert admissions.capacity(now=0.0) == SLOTS


def test_short_runs_fill_the_queue_to_its_bound(admissions):
    ran(admissions, timedelta(milliseconds=1))
    assert admissions.capacity(now=0.0) == SLOTS + QUEUE


def test_guests_that_last_longer_than_expected_close_the_queue(admissions):
    ran(admissions, timedelta(milliseconds=1))
    for number in range(SLOTS):
        admissions.begin(admissions.admit(order(nonce=bytes([number]) * 16), now=0.0), now=0.0)
    assert admissions.capacity(now=10.0) == SLOTS
    assert admissions.free_places(now=10.0) == 0


def test_orders_that_may_write_much_leave_room_in_the_spool(admissions):
    ran(admissions, timedelta(milliseconds=1))
    limits = order().limits
    large = order(
        nonce=b"large order 0000",
        limits=type(limits)(**{name: getattr(MAX_LIMITS, name) for name in limits.__slots__}),
    )
    admissions.admit(large, now=0.0).leave()
    reserved = MAX_LIMITS.output_bytes + MAX_LIMITS.log_bytes
    assert admissions.capacity(now=0.0) == SLOTS + QUEUED_SPOOL_BYTES // reserved


def test_a_node_that_drains_wants_nothing(admissions):
    admissions.draining = True
    assert admissions.free_places(now=0.0) == 0


def test_a_node_whose_disk_is_full_asks_for_no_orders_until_there_is_room(admissions, spool):
    spool.is_full = True
    assert admissions.free_places(now=0.0) == 0
    spool.is_full = False
    assert admissions.free_places(now=0.0) == SLOTS

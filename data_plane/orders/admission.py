"""Check 11: whether this node has room for an order now. Owns slots, queue and what each order holds. No I/O.

Room is taken at once, before anything is awaited, and given back exactly once. Beyond one order per slot the
node takes a short queue, so that a slot that becomes free has its next order without a round trip. How long
the queue may be is measured in time, not in orders: a node whose guests run for seconds takes none.
All times here are monotonic seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from data_plane.orders.domain import AttemptRef, attempt_of
from data_plane.orders.verifier import Check
from data_plane.receipts.ports import ReceiptSpool, Reservation
from data_plane.session.leases import Leases
from shared.errors import OrderRejectedError, RejectionReason, SpoolFullError
from shared.limits import Limits, RequestedLimits
from shared.orders import Order
from shared.receipts import MAX_RECORDING_BYTES

QUEUE_TIME: Final = timedelta(milliseconds=100)
"""How much work may wait here: long enough to hide a round trip, short enough to wait out anywhere."""

QUEUED_SPOOL_BYTES: Final = 128 * 1024 * 1024
"""Spool that orders of the queue may reserve before the queue counts as full."""

_WEIGHT: Final = 1 / 8
"""Of the newest run in the mean."""


@dataclass(slots=True, kw_only=True, eq=False)
class Admission:
    """What one admitted order holds: a place, a lease, room in the spool."""

    attempt: AttemptRef
    limits: Limits
    """Of order and node, the smaller ones; after `limit` of the template as well."""
    reservation: Reservation = field(repr=False)
    _leave: Callable[["Admission"], None] = field(repr=False)
    _is_in: bool = True

    def limit(self, requested: RequestedLimits) -> None:
        """Grant no more than the signed template asks for, whatever was ordered."""
        self.limits = self.limits.limited_by(requested)

    def leave(self) -> None:
        """Let the next order in; the guest of this one has ended, or never ran."""
        if self._is_in:
            self._is_in = False
            self._leave(self)


class Admissions:
    """The node's slots, and its queue in front of them."""

    def __init__(
        self, *, slots: int, queue: int, leases: Leases, spool: ReceiptSpool, ceilings: Limits
    ) -> None:
        self._slots = slots
        self._queue = queue
        self._taken = 0
        self._leases = leases
        self._spool = spool
        self._ceilings = ceilings
        self._mean_run: float | None = None
        self._begun: dict[Admission, float] = {}
        self._reserved_bytes = 0
        self.draining = False

    @property
    def slots(self) -> int:
        """How many guests may run at once."""
        return self._slots

    def capacity(self, *, now: float) -> int:
        """Return how many orders this node wants to hold now, its queue included."""
        if self._mean_run is None:
            return self._slots
        # Every slot ends its run after the mean; one whose run lasts longer already is as slow as that run.
        rate = (self._slots - len(self._begun)) / self._mean_run
        rate += sum(1 / max(self._mean_run, now - begun) for begun in self._begun.values())
        room = QUEUED_SPOOL_BYTES // max(1, self._reserved_bytes)
        return self._slots + min(self._queue, room, int(rate * QUEUE_TIME.total_seconds()))

    def free_places(self, *, now: float) -> int:
        """Return how many orders this node wants now; none while it drains or has no room for a receipt."""
        if self.draining or not self._spool_has_room():
            return 0
        return max(0, self.capacity(now=now) - self._taken)

    def _spool_has_room(self) -> bool:
        """Whether an order like the last one would find room; one that would not is better sent elsewhere."""
        try:
            self._spool.reserve(self._reserved_bytes).release()
        except SpoolFullError:
            return False
        return True

    @property
    def is_idle(self) -> bool:
        """Whether no guest runs and none is about to."""
        return self._taken == 0

    def begin(self, admission: Admission, *, now: float) -> None:
        """Note that a slot has begun with the order."""
        self._begun[admission] = now

    def end(self, admission: Admission, *, now: float) -> None:
        """Note that a slot is done with the order; how long that took decides how much is wanted next."""
        took = max(now - self._begun.pop(admission), 1e-5)
        self._mean_run = (
            took if self._mean_run is None else self._mean_run + _WEIGHT * (took - self._mean_run)
        )

    def admit(self, order: Order, *, now: float) -> Admission:
        """Take room for the order; `now` is monotonic.

        Raises:
            OrderRejectedError: The node drains, every slot is taken, the first lease has run out, or the
                spool has no room: reasons of this node alone.
        """
        if self.draining:
            raise _no_room("this node drains", RejectionReason.DRAINING)
        if self._taken >= self._slots + self._queue:
            raise _no_room(
                f"all {self._slots} slots and {self._queue} places of the queue are taken",
                RejectionReason.BUSY,
            )
        limits = order.limits.limited_by(self._ceilings)
        attempt = attempt_of(order)
        self._reserved_bytes = limits.output_bytes + limits.log_bytes
        if order.host_call_grants:
            self._reserved_bytes += MAX_RECORDING_BYTES
        try:
            reservation = self._spool.reserve(self._reserved_bytes)
        except SpoolFullError as error:
            raise _no_room(str(error), RejectionReason.SPOOL) from error
        try:
            self._leases.begin(attempt, heartbeat_number=order.heartbeat_number, lease=order.lease, now=now)
        except OrderRejectedError:
            reservation.release()
            raise
        self._taken += 1
        return Admission(attempt=attempt, limits=limits, reservation=reservation, _leave=self._left)

    def _left(self, _admission: Admission) -> None:
        self._taken -= 1


def _no_room(problem: str, reason: RejectionReason) -> OrderRejectedError:
    return OrderRejectedError(problem, check=Check.ROOM, rejection=reason)

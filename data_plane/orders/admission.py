"""Check 11: whether this node has room for an order now. Owns the slots and what each holds. No I/O.

Room is taken at once, before anything is awaited, and given back exactly once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from data_plane.orders.domain import AttemptRef, attempt_of
from data_plane.orders.verifier import Check, granted_limits
from data_plane.receipts.ports import ReceiptSpool, Reservation
from data_plane.session.leases import Leases
from shared.errors import OrderRejectedError, RejectionReason, SpoolFullError
from shared.manifest import GrantedLimits, RequestedLimits
from shared.orders import Order


@dataclass(slots=True, kw_only=True, eq=False)
class Admission:
    """What one admitted order holds: a slot, a lease, room in the spool."""

    attempt: AttemptRef
    limits: GrantedLimits
    """Of order and node, the smaller ones; after `limit` of the template as well."""
    reservation: Reservation = field(repr=False)
    _free_slot: Callable[[], None] = field(repr=False)
    _holds_slot: bool = True

    def limit(self, requested: RequestedLimits) -> None:
        """Grant no more than the signed template asks for, whatever was ordered."""
        self.limits = self.limits.limited_by(requested)

    def free_slot(self) -> None:
        """Let the next order in; the guest of this one has ended."""
        if self._holds_slot:
            self._holds_slot = False
            self._free_slot()


class Admissions:
    """The node's slots."""

    def __init__(self, *, slots: int, leases: Leases, spool: ReceiptSpool, ceilings: GrantedLimits) -> None:
        self._slots = slots
        self._taken = 0
        self._leases = leases
        self._spool = spool
        self._ceilings = ceilings
        self.draining = False

    @property
    def slots(self) -> int:
        """How many guests may run at once."""
        return self._slots

    @property
    def free_slots(self) -> int:
        """How many orders would be admitted now; none while the node drains."""
        return 0 if self.draining else self._slots - self._taken

    @property
    def is_idle(self) -> bool:
        """Whether no guest runs and none is about to."""
        return self._taken == 0

    def admit(self, order: Order, *, now: float) -> Admission:
        """Take room for the order; `now` is monotonic.

        Raises:
            OrderRejectedError: The node drains, every slot is taken, the first lease has run out, or the
                spool has no room: reasons of this node alone.
        """
        if self.draining:
            raise _no_room("this node drains", RejectionReason.DRAINING)
        if self._taken >= self._slots:
            raise _no_room(f"all {self._slots} slots are taken", RejectionReason.BUSY)
        limits = granted_limits(order, self._ceilings)
        attempt = attempt_of(order)
        try:
            reservation = self._spool.reserve(limits.output_bytes + limits.log_bytes)
        except SpoolFullError as error:
            raise _no_room(str(error), RejectionReason.SPOOL) from error
        try:
            self._leases.begin(attempt, heartbeat_number=order.heartbeat_number, lease=order.lease, now=now)
        except OrderRejectedError:
            reservation.release()
            raise
        self._taken += 1
        return Admission(attempt=attempt, limits=limits, reservation=reservation, _free_slot=self._free_one)

    def _free_one(self) -> None:
        self._taken -= 1


def _no_room(problem: str, reason: RejectionReason) -> OrderRejectedError:
    return OrderRejectedError(problem, check=Check.ROOM, rejection=reason)

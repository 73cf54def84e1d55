"""Which attempts this node may go on with, by its own count of time (protocol rule 9). No I/O, no clock.

A lease counts from the moment its renewal was *sent*, as a monotonic duration: whatever the network did
since, the node's lease ends no later than the control plane's. All times here are monotonic seconds.
"""

from collections import OrderedDict
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from data_plane.orders.domain import AttemptRef
from data_plane.orders.verifier import Check
from shared.errors import OrderRejectedError, RejectionReason

MAX_REMEMBERED_HEARTBEATS: Final = 128
"""Two minutes of heartbeats: longer than any order lives."""

MAX_OPEN_RENEWALS: Final = 64


class Leases:
    """The living leases of one node, over all its sessions."""

    def __init__(self) -> None:
        self._heartbeats: OrderedDict[int, float] = OrderedDict()
        self._renewals: OrderedDict[int, tuple[float, frozenset[AttemptRef]]] = OrderedDict()
        self._ends: dict[AttemptRef, float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def heartbeat_sent(self, number: int, *, at: float) -> None:
        """Note when a heartbeat left; orders echo its number."""
        self._heartbeats[number] = at
        while len(self._heartbeats) > MAX_REMEMBERED_HEARTBEATS:
            self._heartbeats.popitem(last=False)

    def begin(self, attempt: AttemptRef, *, heartbeat_number: int, lease: timedelta, now: float) -> None:
        """Start the first lease of an attempt: it counts from the heartbeat that offered the slot.

        Raises:
            OrderRejectedError: That heartbeat is unknown, or its lease has run out already (stale).
        """
        sent_at = self._heartbeats.get(heartbeat_number)
        if sent_at is None:
            raise _stale(f"order answers heartbeat {heartbeat_number}, which this node did not send lately")
        end = sent_at + lease.total_seconds()
        if end <= now:
            raise _stale(f"the first lease, of heartbeat {heartbeat_number}, ran out {now - end:.3f} s ago")
        self._ends[attempt] = end

    def renewal_sent(self, number: int, *, at: float) -> tuple[AttemptRef, ...]:
        """Note when a renewal leaves; returns the attempts it has to list."""
        listed = tuple(self._ends)
        self._renewals[number] = (at, frozenset(listed))
        while len(self._renewals) > MAX_OPEN_RENEWALS:
            self._renewals.popitem(last=False)
        return listed

    def granted(
        self, number: int, attempts: Iterable[AttemptRef], *, lease: timedelta
    ) -> tuple[AttemptRef, ...]:
        """Take an answer to a renewal; returns the attempts that it ended by not naming them."""
        sent = self._renewals.pop(number, None)
        if sent is None:
            return ()
        sent_at, asked = sent
        renewed = asked.intersection(attempts)
        for attempt in renewed:
            if attempt in self._ends:
                self._ends[attempt] = max(self._ends[attempt], sent_at + lease.total_seconds())
        return tuple(attempt for attempt in asked - renewed if self._ends.pop(attempt, None) is not None)

    def end(self, attempt: AttemptRef) -> None:
        """Forget an attempt that is over."""
        self._ends.pop(attempt, None)

    def expired(self, *, now: float) -> tuple[AttemptRef, ...]:
        """Return, and forget, the attempts whose lease has run out."""
        over = tuple(attempt for attempt, end in self._ends.items() if end <= now)
        for attempt in over:
            del self._ends[attempt]
        return over

    def is_live(self, attempt: AttemptRef, *, now: float) -> bool:
        """Whether the attempt may go on now."""
        return self._ends.get(attempt, now) > now

    def next_end(self) -> float | None:
        """Return when the first living lease runs out."""
        return min(self._ends.values(), default=None)


def _stale(problem: str) -> OrderRejectedError:
    return OrderRejectedError(problem, check=Check.ROOM, rejection=RejectionReason.STALE)

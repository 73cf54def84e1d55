"""What this boot of the node has seen: nonces and fencing tokens, in memory only (protocol rule 4).

Memory is enough because an order names the boot id, and an order's life is bounded: what is forgotten here
can no longer be valid. Bounded; a full ledger refuses orders rather than forget a living one.
"""

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from data_plane.orders.verifier import Check
from shared.errors import OrderRejectedError, RejectionReason
from shared.ids import ExecutionId  # noqa: TC001 - imports stay in one place
from shared.orders import Order

MAX_ENTRIES: Final = 200_000
"""Orders remembered at once: 60 s of life plus skew at over 1,000 orders a second."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FencingPoint:
    """How new an attempt is. A restore starts a new epoch, so the epoch counts first."""

    epoch: int
    token: int


class OrderLedger:
    """Remembers the orders of this boot. Not thread-safe; one per node."""

    def __init__(
        self, *, max_order_life: timedelta, max_skew: timedelta, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._life = max_order_life
        self._skew = max_skew
        self._max_entries = max_entries
        self._nonces: dict[bytes, datetime] = {}
        self._nonce_ends: list[tuple[datetime, bytes]] = []
        self._fences: dict[ExecutionId, tuple[FencingPoint, datetime]] = {}
        self._fence_ends: list[tuple[datetime, ExecutionId]] = []

    def accept(self, order: Order, *, now: datetime) -> None:
        """Record the order as seen, once. The order's other checks have passed.

        9. The nonce is unseen.
        10. The fencing point is higher than any seen for the execution.

        Raises:
            OrderRejectedError: One check failed (replay, fencing), or the ledger is full (busy).
        """
        self._forget(now)
        if order.nonce in self._nonces:
            raise OrderRejectedError(
                f"order {order.id} was seen before", check=Check.NONCE, rejection=RejectionReason.REPLAY
            )
        if len(self._nonces) >= self._max_entries:
            raise OrderRejectedError(
                f"the ledger holds {self._max_entries} orders",
                check=Check.NONCE,
                rejection=RejectionReason.BUSY,
            )
        # Kept even when the next check fails: a refused order stays refused.
        ends = order.expires_at + self._skew
        self._nonces[order.nonce] = ends
        heapq.heappush(self._nonce_ends, (ends, order.nonce))
        self._accept_fencing(order, now)

    def __len__(self) -> int:
        return len(self._nonces)

    def _accept_fencing(self, order: Order, now: datetime) -> None:
        execution_id = order.execution_id
        point = FencingPoint(epoch=order.epoch, token=order.fencing_token)
        seen = self._fences.get(execution_id)
        if seen is not None and point <= seen[0]:
            raise OrderRejectedError(
                f"fencing token {point.token} of epoch {point.epoch} is stale, {seen[0].token} was seen",
                check=Check.FENCING,
                rejection=RejectionReason.FENCING,
            )
        # An older order of this execution was made before now, so it ends within one life and the skews.
        ends = now + self._life + 2 * self._skew
        self._fences[execution_id] = (point, ends)
        heapq.heappush(self._fence_ends, (ends, execution_id))

    def _forget(self, now: datetime) -> None:
        while self._nonce_ends and self._nonce_ends[0][0] <= now:
            del self._nonces[heapq.heappop(self._nonce_ends)[1]]
        while self._fence_ends and self._fence_ends[0][0] <= now:
            ends, execution_id = heapq.heappop(self._fence_ends)
            # A newer attempt of the execution has moved the end on and has a heap entry of its own.
            if execution_id in self._fences and self._fences[execution_id][1] == ends:
                del self._fences[execution_id]

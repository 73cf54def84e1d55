"""Whose turn it is in the queue: start-time fair queueing over tenants. Memory only; one per replica.

Goyal, Vin, Cheng, "Start-time Fair Queueing" (1996): every tenant has the time at which its next execution
would start if slots were handed out one by one in circles; the earliest goes first. A tenant that had nothing
waiting starts at the present, so it is ahead of one that waits with thousands, and has saved up nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from control_plane.executions.domain import AGING_STEP, Priority
from shared.ids import TenantId


class Turns:
    """The turns of one replica. Replicas need not agree: each hands its own slots out fairly."""

    def __init__(self) -> None:
        self._now = 0.0
        self._next: dict[TenantId, float] = {}  # of those whose turn is not yet; the others are at `now`

    @property
    def now(self) -> float:
        """The turn of every tenant that `later` does not list."""
        return self._now

    @property
    def later(self) -> Mapping[TenantId, float]:
        """Tenants that were served lately, with their turns, all of them after `now`."""
        return self._next

    def of(self, tenant_id: TenantId) -> float:
        """Return a tenant's turn."""
        return self._next.get(tenant_id, self._now)

    def served(self, tenants: Iterable[TenantId]) -> None:
        """Executions of these tenants got slots, one for each time that a tenant is named."""
        counts = Counter(tenants)
        if not counts:
            return
        ends = {tenant: self.of(tenant) + count for tenant, count in counts.items()}
        self._now = max(self._now, max(ends.values()) - 1)  # the start of the latest that was served
        self._next |= ends
        self._next = {tenant: turn for tenant, turn in self._next.items() if turn > self._now}


def due(claimable_at: datetime, priority: Priority) -> datetime:
    """Return what a tenant's own waiting executions are ordered by: a step of priority is worth a minute.

    So whatever waits is overtaken only by what came within two minutes after it: nothing starves.
    """
    return claimable_at + priority * AGING_STEP


def share(limit: int, tenants: Sequence[TenantId]) -> int:
    """Return how many executions each tenant may get of `limit` before the others have had theirs."""
    return max(1, -(-limit // max(1, len(tenants))))

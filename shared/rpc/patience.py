"""How late a refusal is told to a tenant that has had many: so many in a second, no more. Memory only.

A refused call costs a server nearly as much as an answered one, so peers that come again at once would have
the processor without having a turn. While its refusal is held, a call takes a place on its connection (see
`MAX_CONCURRENT_STREAMS`): such a peer slows itself down. One that comes again when it was told loses nothing,
for what it waited here is taken off the time that it is told.
"""

from collections import OrderedDict
from datetime import timedelta
from typing import Final

from shared.ids import TenantId

TOLD_PER_SECOND: Final = 50
"""Refusals of one tenant: a few hundredths of a processor."""
TOLD_AT_ONCE: Final = 50
"""Before any of them is late."""
MAX_HELD: Final = timedelta(seconds=5)
"""However many there are; how many calls can be held is bounded by `RpcBounds`."""
MIN_RETRY_AFTER: Final = timedelta(milliseconds=100)
"""What is told at least, though all of it was waited here."""


class Patience:
    """Refusals by tenant. Used on one event loop only; all times are monotonic seconds."""

    def __init__(self, *, per_second: float = TOLD_PER_SECOND, at_once: int = TOLD_AT_ONCE) -> None:
        self._every = 1 / per_second
        self._unused = at_once / per_second
        self._due: OrderedDict[TenantId, float] = OrderedDict()
        """When the newest refusal of each was told, or will be; the tenant refused last comes last."""

    def __len__(self) -> int:
        """Return of how many tenants something is remembered."""
        return len(self._due)

    def hold(self, tenant_id: TenantId, now: float) -> float:
        """Return for how many seconds one more refusal of the tenant is to be held."""
        unused = now - self._unused
        while self._due and next(iter(self._due.values())) <= unused:
            self._due.popitem(last=False)
        due = max(self._due.pop(tenant_id, unused), unused) + self._every
        self._due[tenant_id] = due = min(due, now + MAX_HELD.total_seconds())
        return max(0.0, due - now)


def rest_of(retry_after: timedelta, held: float) -> timedelta:
    """Return what to tell a caller that was held for so many seconds of the time until it may come again."""
    return max(retry_after - timedelta(seconds=held), min(retry_after, MIN_RETRY_AFTER))

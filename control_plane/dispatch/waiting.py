"""Of which tenants something waits in the queue, as far as this replica knows. Memory only.

A tenant of whom nothing waits may be given a place at once, whatever of others waits: it jumps over nobody
of its own, and its turn is before theirs (`executions/turns.py`).
"""

from collections.abc import Iterable

from shared.ids import TenantId


class WaitingTenants:
    """Told by newcomers that were not placed and by claims."""

    def __init__(self) -> None:
        # None: any may.
        self._known: set[TenantId] | None = None
        self._came: set[TenantId] | None = set()  # since the newest claim began

    def may_wait(self, tenant_id: TenantId) -> bool:
        """Whether something of the tenant may be waiting."""
        return any(some is None or tenant_id in some for some in (self._known, self._came))

    def add(self, tenants: Iterable[TenantId] | None) -> None:
        """Something of these will wait; None: of any."""
        self._came = _both(self._came, tenants)

    def look(self) -> None:
        """A claim looks at the queue: what comes from now on it may not see."""
        self._known, self._came = _both(self._known, self._came), set()

    def seen(self, tenants: Iterable[TenantId] | None) -> None:
        """The claim has left something of these at most; None: of any."""
        self._known = None if tenants is None else set(tenants)


def _both(known: set[TenantId] | None, more: Iterable[TenantId] | None) -> set[TenantId] | None:
    return None if known is None or more is None else known.union(more)

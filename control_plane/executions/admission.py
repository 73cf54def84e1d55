"""Whether there is room for one more execution: bounds on what waits, and when to come again. Memory only.

What waits is counted by Postgres each second, never for an accept; what this replica accepted since is added.
So each replica refuses too early rather than too late, and several may together go over a bound by what the
others of them accepted within the second.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NoReturn, Protocol

from shared.clock import Clock
from shared.errors import AgentFactoryError, ResourceExhaustedError
from shared.ids import TenantId
from shared.logs import get_logger

COUNT_EVERY: Final = timedelta(seconds=1)
"""Between two counts of what waits."""

MAX_RETRY_AFTER: Final = timedelta(seconds=30)
"""What a refused caller is told at most; also while nothing leaves the queue."""

_KEPT_FOR_SMALL: Final = 5
"""A fifth of the installation's bound is for tenants with less than their share of it waiting."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionBounds:
    """How many executions may wait for a node."""

    pending: int = 100_000
    """Of all tenants together."""
    pending_of_tenant: int = 20_000


class QueueCount(Protocol):
    """Counts what waits. Implemented by Postgres."""

    async def waiting(self, *, at_most: int) -> Mapping[TenantId, int]:
        """Return how many executions of each tenant wait for a node; of one tenant at most so many count.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """


class Admission:
    """The bounds of one replica. Used on one event loop only."""

    def __init__(self, *, counts: QueueCount, bounds: AdmissionBounds, clock: Clock) -> None:
        self._counts = counts
        self._bounds = bounds
        self._clock = clock
        self._counted: Mapping[TenantId, int] = {}
        self._all_counted = 0
        self._counted_at: float | None = None
        self._rate = 0.0  # executions that left the queue, per second
        self._entered: Counter[TenantId] = Counter()  # on their way to Postgres
        self._since: Counter[TenantId] = Counter()  # accepted, perhaps not counted yet
        self._late: Counter[TenantId] = Counter()  # those of them that came while it was being counted
        self._all_entered = self._all_since = 0
        self._refused: Counter[TenantId] = Counter()  # since the newest count

    def require(self, tenant_id: TenantId) -> None:
        """Return when one more execution of the tenant would be let in now; promises nothing.

        Raises:
            ResourceExhaustedError: As many wait as may; it says when to come again.
        """
        own = self._pending_of(tenant_id)
        if own >= self._bounds.pending_of_tenant:
            self._refuse(
                tenant_id,
                f"{self._bounds.pending_of_tenant} executions of tenant {tenant_id} wait already",
                sharers=len(self._counted),
            )
        free = self._bounds.pending - self._all_counted - self._all_since - self._all_entered
        kept = self._bounds.pending // _KEPT_FOR_SMALL
        if free <= 0 or (free <= kept and own >= self._share(tenant_id)):
            self._refuse(
                tenant_id, f"{self._bounds.pending - max(0, free)} executions wait already", sharers=1
            )

    def enter(self, tenant_id: TenantId) -> None:
        """Let one execution in: it counts as waiting until `left` says otherwise.

        Raises:
            ResourceExhaustedError: As `require`.
        """
        self.require(tenant_id)
        self._entered[tenant_id] += 1
        self._all_entered += 1

    def left(self, tenant_id: TenantId, *, waits: bool) -> None:
        """One that was let in waits for a node now, or does not: placed at once, refused, a repeat."""
        _take(self._entered, tenant_id)
        self._all_entered -= 1
        if waits:
            self._since[tenant_id] += 1
            self._late[tenant_id] += 1
            self._all_since += 1

    async def count(self) -> None:
        """Ask Postgres once.

        Raises:
            DatabaseUnavailableError: It does not answer; the newest count goes on to hold.
        """
        before = self._all_counted + self._all_since
        self._late.clear()
        counted = await self._counts.waiting(at_most=self._bounds.pending)
        now = self._clock.monotonic()
        if self._counted_at is not None and now > self._counted_at:
            self._rate = max(0.0, before - sum(counted.values())) / (now - self._counted_at)
        self._counted, self._all_counted, self._counted_at = counted, sum(counted.values()), now
        self._since, self._late = self._late, Counter()
        self._all_since = self._since.total()
        self._refused.clear()

    async def run(self) -> NoReturn:
        """Count each second until cancelled."""
        while True:
            try:
                async with asyncio.timeout(COUNT_EVERY.total_seconds()):
                    await self.count()
            except (AgentFactoryError, TimeoutError) as error:
                _log.warning("what waits was not counted", error=str(error) or "postgres is slow")
            await asyncio.sleep(COUNT_EVERY.total_seconds())

    def _share(self, tenant_id: TenantId) -> float:
        """Return a tenant's share of the installation's bound; alone it has half, so others find room."""
        tenants = len(self._counted.keys() | self._since.keys() | {tenant_id})
        return self._bounds.pending / max(2, tenants)

    def _pending_of(self, tenant_id: TenantId) -> int:
        return self._counted.get(tenant_id, 0) + self._since[tenant_id] + self._entered[tenant_id]

    def _refuse(self, tenant_id: TenantId, why: str, *, sharers: int) -> NoReturn:
        """Refuse, with the time until there is room for all that were refused since the newest count."""
        self._refused[tenant_id] += 1
        seconds = MAX_RETRY_AFTER.total_seconds()
        if self._rate > 0:
            ahead = self._refused[tenant_id] if sharers > 1 else self._refused.total()
            seconds = COUNT_EVERY.total_seconds() + ahead * max(1, sharers) / self._rate
        raise ResourceExhaustedError(
            why,
            hint="come again after the time that is told, add nodes, or ask the operator to raise the bound",
            retry_after=min(timedelta(seconds=seconds), MAX_RETRY_AFTER),
        )


def _take(counts: Counter[TenantId], tenant_id: TenantId) -> None:
    counts[tenant_id] -= 1
    if counts[tenant_id] <= 0:
        del counts[tenant_id]

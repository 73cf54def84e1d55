"""Whether one more execution is let in: bounds on what waits, quotas, and when to come again. Memory only.

Postgres counts each second, never for an accept; what this replica accepted since is added. So each replica
refuses too early rather than too late, and several may together go over a bound by what the others of them
accepted within the second.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import Final, NoReturn, Protocol

from control_plane.executions.domain import RunSpec
from control_plane.executions.encoding import capabilities_of_bytes
from shared.clock import Clock
from shared.errors import AgentFactoryError, LlmQuotaExhaustedError, ResourceExhaustedError
from shared.ids import TenantId
from shared.logs import get_logger

COUNT_EVERY: Final = timedelta(seconds=1)
"""Between two counts of what waits."""

BACKLOG: Final = timedelta(seconds=2)
"""As much work as slots do within two counts; more is a backlog,"""
MIN_BACKLOG: Final = 64
"""if it is more executions than this."""

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
    per_minute: int | None = None
    """Executions of a tenant that are accepted within any minute; None: as many as come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantQuota:
    """What Postgres says of one tenant; None: as for every tenant."""

    pending: int | None
    per_minute: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmBounds:
    """What every tenant may use of language models within a day (UTC), where nothing else is said of it."""

    tokens_per_day: int | None = None
    cost_micros_per_day: int | None = None


NO_LLM_BOUNDS: Final = LlmBounds()


class Fate(Enum):
    """What became of an execution that was let in."""

    WAITS = auto()
    PLACED = auto()
    NONE = auto()
    """It is not new: refused, or a repeat."""


class QueueCount(Protocol):
    """Counts executions. Implemented by Postgres."""

    async def quotas(self) -> Mapping[TenantId, TenantQuota]:
        """Return the tenants that have a quota of their own.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """

    async def accepted(self, at_most: Mapping[TenantId, int]) -> Mapping[TenantId, int]:
        """Return how many executions of these tenants were accepted within the last minute, up to so many.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """

    async def spent_on_models(self) -> Collection[TenantId]:
        """Return the tenants that have used up what they may of language models today.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """

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
        self._quotas: Mapping[TenantId, TenantQuota] = {}
        self._minute: Mapping[TenantId, int] = {}  # accepted within it, of those that have a quota for it
        self._new: Counter[TenantId] = Counter()  # accepted, perhaps not in it yet
        self._new_late: Counter[TenantId] = Counter()
        self._spent: Collection[TenantId] = ()  # those whose day of language models is over

    def require(self, tenant_id: TenantId) -> None:
        """Return when one more execution of the tenant would be let in now; promises nothing.

        Raises:
            ResourceExhaustedError: As many wait as may, or were accepted within a minute; it says when to
                come again.
        """
        self._require_quota(tenant_id)
        own = self._pending_of(tenant_id)
        quota = self._quotas.get(tenant_id)
        bound = self._bounds.pending_of_tenant if quota is None or quota.pending is None else quota.pending
        if own >= bound:
            self._refuse(
                tenant_id,
                f"{bound} executions of tenant {tenant_id} wait already",
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

    def require_models(self, run: RunSpec) -> None:
        """Return unless the run may ask language models and its tenant has used up what it may today.

        Raises:
            LlmQuotaExhaustedError: That is so; it says when the day is over.
        """
        if run.tenant_id not in self._spent or capabilities_of_bytes(run.capabilities).llm is None:
            return
        now = self._clock.now()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        raise LlmQuotaExhaustedError(
            f"tenant {run.tenant_id} has used up what it may of language models today",
            retry_after=midnight - now,
        )

    def left(self, tenant_id: TenantId, fate: Fate) -> None:
        """One that was let in is stored, or never will be."""
        _take(self._entered, tenant_id)
        self._all_entered -= 1
        if fate is not Fate.NONE and self._per_minute(tenant_id) is not None:
            self._new[tenant_id] += 1
            self._new_late[tenant_id] += 1
        if fate is Fate.WAITS:
            self._since[tenant_id] += 1
            self._late[tenant_id] += 1
            self._all_since += 1

    def has_backlog(self, tenant_id: TenantId) -> bool:
        """Whether enough of a tenant waits to keep all slots busy for a while: no more is urgent."""
        return self._pending_of(tenant_id) > MIN_BACKLOG + self._rate * BACKLOG.total_seconds()

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
        await self._count_minute()

    async def _count_minute(self) -> None:
        self._quotas = await self._counts.quotas()
        self._spent = await self._counts.spent_on_models()
        known = self._quotas.keys() | self._minute.keys() | self._new.keys()
        bounds = {one: bound for one in known if (bound := self._per_minute(one)) is not None}
        self._new_late.clear()
        self._minute = await self._counts.accepted(bounds) if bounds else {}
        self._new, self._new_late = self._new_late, Counter()

    async def run(self) -> NoReturn:
        """Count each second until cancelled."""
        while True:
            try:
                async with asyncio.timeout(COUNT_EVERY.total_seconds()):
                    await self.count()
            except (AgentFactoryError, TimeoutError) as error:
                _log.warning("what waits was not counted", error=str(error) or "postgres is slow")
            await asyncio.sleep(COUNT_EVERY.total_seconds())

    def _require_quota(self, tenant_id: TenantId) -> None:
        bound = self._per_minute(tenant_id)
        if bound is None:
            return
        if self._minute.get(tenant_id, 0) + self._new[tenant_id] + self._entered[tenant_id] < bound:
            return
        self._refused[tenant_id] += 1
        pause = timedelta(minutes=1) / bound * self._refused[tenant_id]
        raise ResourceExhaustedError(
            f"{bound} executions of tenant {tenant_id} were accepted within a minute",
            hint="come again after the time that is told, or ask the operator to raise the tenant's quota",
            retry_after=min(COUNT_EVERY + pause, MAX_RETRY_AFTER),
        )

    def _per_minute(self, tenant_id: TenantId) -> int | None:
        quota = self._quotas.get(tenant_id)
        return self._bounds.per_minute if quota is None or quota.per_minute is None else quota.per_minute

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

"""What tenants do, in Prometheus' form, with a bound on how many have series of their own. Never raises."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from shared.ids import TenantId

OTHER: Final = "other"
"""All tenants beyond the bound together. A tenant of this name is counted with them."""


class TenantMetrics:
    """The first tenants that do something have series of their own; those that come after them share one.

    For as long as the process lives: a series that moved to another tenant, or
    into the common one, would make every rate over it wrong.
    """

    def __init__(self, registry: CollectorRegistry, *, limit: int) -> None:
        """Register the series; with a limit of 0 there are none at all."""
        self._limit = limit
        self._named: set[TenantId] = set()
        if limit == 0:
            return
        self._executions = Counter(
            "af_tenant_executions",
            "Executions that ended, by tenant.",
            ["tenant", "outcome"],
            registry=registry,
        )
        self._denials = Counter(
            "af_tenant_policy_denials", "Decisions that said no, by tenant.", ["tenant"], registry=registry
        )
        self._ages = Gauge(
            "af_tenant_queue_age_seconds",
            "How long the oldest claimable execution of a tenant has waited for a node.",
            ["tenant"],
            registry=registry,
        )

    def ended(self, tenant_id: TenantId, outcome: str, count: int = 1) -> None:
        """So many executions of a tenant have ended."""
        if self._limit:
            self._executions.labels(self._label(tenant_id), outcome).inc(count)

    def denied(self, tenant_id: TenantId) -> None:
        """Policy said no to somebody of a tenant."""
        if self._limit:
            self._denials.labels(self._label(tenant_id)).inc()

    def queue_ages(self, ages: Mapping[TenantId, timedelta]) -> None:
        """So long have the oldest claimable executions waited, of all tenants with any."""
        if not self._limit:
            return
        seconds: dict[str, float] = defaultdict(float)
        for tenant_id in self._named:
            seconds[tenant_id] = 0
        for tenant_id, age in ages.items():
            label = self._label(tenant_id)
            seconds[label] = max(seconds[label], age.total_seconds())
        if OTHER not in seconds and len(self._named) == self._limit:
            seconds[OTHER] = 0
        for label, value in seconds.items():
            self._ages.labels(label).set(value)

    def _label(self, tenant_id: TenantId) -> str:
        if tenant_id not in self._named:
            if len(self._named) >= self._limit or tenant_id == OTHER:
                return OTHER
            self._named.add(tenant_id)
        return tenant_id

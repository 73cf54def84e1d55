"""Series by tenant: the bound on them, and that nothing is lost beyond it."""

from datetime import timedelta

from prometheus_client import CollectorRegistry

from control_plane.tenant_metrics import OTHER, TenantMetrics
from shared.ids import TenantId


def counted(limit: int) -> tuple[CollectorRegistry, TenantMetrics]:
    registry = CollectorRegistry()
    return registry, TenantMetrics(registry, limit=limit)


def samples(registry: CollectorRegistry, name: str) -> dict[str, float]:
    return {
        sample.labels["tenant"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == name
    }


def test_tenants_beyond_the_bound_share_a_series_and_are_all_counted():
    registry, metrics = counted(2)
    for number in range(5):
        metrics.ended(TenantId(f"t{number}"), "succeeded")
        metrics.denied(TenantId(f"t{number}"))
    metrics.ended(TenantId("t0"), "succeeded", 3)
    assert samples(registry, "af_tenant_executions_total") == {"t0": 4, "t1": 1, OTHER: 3}
    assert samples(registry, "af_tenant_policy_denials_total") == {"t0": 1, "t1": 1, OTHER: 3}


def test_at_the_bound_each_has_its_own():
    registry, metrics = counted(2)
    for name in ("t0", "t1", "t0"):
        metrics.denied(TenantId(name))
    assert samples(registry, "af_tenant_policy_denials_total") == {"t0": 2, "t1": 1}


def test_a_tenant_named_as_the_rest_takes_no_place():
    registry, metrics = counted(1)
    metrics.denied(TenantId(OTHER))
    metrics.denied(TenantId("t0"))
    metrics.denied(TenantId("t1"))
    assert samples(registry, "af_tenant_policy_denials_total") == {"t0": 1, OTHER: 2}


def test_the_rest_is_as_old_as_its_oldest_and_an_empty_queue_is_zero():
    registry, metrics = counted(1)
    ages = {TenantId(f"t{number}"): timedelta(seconds=number + 1) for number in range(3)}
    metrics.queue_ages(ages)
    assert samples(registry, "af_tenant_queue_age_seconds") == {"t0": 1, OTHER: 3}
    metrics.queue_ages({})
    assert samples(registry, "af_tenant_queue_age_seconds") == {"t0": 0, OTHER: 0}


def test_without_a_bound_there_is_nothing():
    registry, metrics = counted(0)
    metrics.ended(TenantId("t0"), "succeeded")
    metrics.denied(TenantId("t0"))
    metrics.queue_ages({TenantId("t0"): timedelta(seconds=1)})
    assert list(registry.collect()) == []

"""What /metrics says of caches is what they say of themselves."""

from datetime import timedelta

from prometheus_client import CollectorRegistry, generate_latest

from control_plane.metrics import ControlMetrics
from shared.cache import Cache, CacheBounds
from tests.fakes.clock import FakeClock


async def test_hits_misses_evictions_and_age_are_told_by_cache():
    clock, registry = FakeClock(), CollectorRegistry()
    kept = Cache[str, str](bounds=CacheBounds(entries=1, life=timedelta(minutes=1)), clock=clock)
    ControlMetrics(registry).watch_caches({"agents": kept.stats})

    async def value():
        return "value"

    for key in ("a", "a", "b"):
        await kept.get_or_load(key, value)
    clock.advance(timedelta(seconds=5))
    told = generate_latest(registry).decode()

    for line in ("hits_total", "evictions_total", "entries"):
        assert f'af_cache_{line}{{cache="agents"}} 1.0' in told
    assert 'af_cache_misses_total{cache="agents"} 2.0' in told
    assert 'af_cache_oldest_seconds{cache="agents"} 5.0' in told

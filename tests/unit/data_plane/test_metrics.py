"""What a node shows of itself."""

from prometheus_client import CollectorRegistry

from data_plane.metrics import NodeMetrics
from tests.fakes.clock import FakeClock


def test_what_others_count_is_read_when_somebody_asks():
    registry = CollectorRegistry()
    metrics = NodeMetrics(registry, FakeClock())

    def refresh() -> None:
        metrics.worker_events = {"spawned": 3}
        metrics.cache_events = {"hit": 7}

    metrics.refresh = refresh
    assert registry.get_sample_value("agentfactory_node_worker_events_total", {"event": "spawned"}) == 3
    assert registry.get_sample_value("agentfactory_node_artifact_cache_total", {"event": "hit"}) == 7


def test_recordings_show_what_compression_saves():
    registry = CollectorRegistry()
    metrics = NodeMetrics(registry, FakeClock())
    metrics.recorded(plain=0, packed=0)
    metrics.recorded(plain=1000, packed=100)
    of_form = {
        form: registry.get_sample_value("agentfactory_node_recording_bytes_total", {"form": form})
        for form in ("plain", "packed")
    }
    assert of_form == {"plain": 1000, "packed": 100}

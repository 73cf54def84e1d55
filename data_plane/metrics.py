"""The node's metrics, by name and unit. Counts and times; decides nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from data_plane.sandbox.domain import LayerState
from shared.clock import Clock

STAGE_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
)  # fmt: skip
"""Seconds: from a warm no-op to a compilation."""
CALL_BUCKETS: Final = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip
"""Seconds: from a line of the log to the longest that a server may take."""


class Stage(StrEnum):
    """The steps of one order on the node."""

    VERIFY = "verify"
    ARTIFACT = "artifact"
    INPUT = "input"
    RUN = "run"
    RECEIPT = "receipt"


@dataclass(slots=True)
class HostCallSeen:
    """One host call; whoever answers it fills in what it is told. The words are of the node's own making."""

    method: str
    result: str
    request_bytes: int
    response_bytes: int = 0


class _Refresher(Collector):
    """Comes first in the registry: brings the gauges up to date whenever they are read.

    It shows itself what others count already.
    """

    def __init__(self, metrics: "NodeMetrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        self._metrics.refresh()
        for name, text, by_event in (
            (
                "agentfactory_node_worker_events",
                "Workers since start, by what became of them",
                self._metrics.worker_events,
            ),
            (
                "agentfactory_node_artifact_cache",
                "Loads from the artifact cache since start",
                self._metrics.cache_events,
            ),
        ):
            counter = CounterMetricFamily(name, text, labels=["event"])
            for event, count in by_event.items():
                counter.add_metric([event], count)
            yield counter


class NodeMetrics:
    """One registry per process."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self.refresh: Callable[[], None] = _nothing
        """Called before the metrics are read; set by the node."""
        self.worker_events: Mapping[str, int] = {}
        self.cache_events: Mapping[str, int] = {}
        """Since the start, by what happened; brought up to date by `refresh`."""
        registry.register(_Refresher(self))
        self.stage_seconds = Histogram(
            "agentfactory_node_stage_seconds",
            "Time an order spent in one stage on this node",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._stages = {stage: self.stage_seconds.labels(stage) for stage in Stage}
        self.outcomes = Counter(
            "agentfactory_node_attempts", "Attempts by outcome", ["outcome"], registry=registry
        )
        self.limits = Counter(
            "agentfactory_node_limits", "Guests that were stopped, by the limit that fired", ["limit"],
            registry=registry,
        )  # fmt: skip
        self.rejections = Counter(
            "agentfactory_node_rejections", "Orders refused, by check and reason", ["check", "reason"],
            registry=registry,
        )  # fmt: skip
        self.signature_failures = Counter(
            "agentfactory_node_signature_failures",
            "Orders, keysets and templates whose signature did not verify",
            ["what"],
            registry=registry,
        )
        self.log_failures = Counter(
            "agentfactory_node_log_failures",
            "Answers of the transparency log that prove nothing, or that there are two of it",
            ["reason"],
            registry=registry,
        )
        self.log_size = Gauge(
            "agentfactory_node_log_size",
            "Leaves of the newest checkpoint that was verified",
            registry=registry,
        )
        self.log_forked = Gauge(
            "agentfactory_node_log_forked",
            "Whether two logs were seen: no orders are taken",
            registry=registry,
        )
        self.quarantines = Counter(
            "agentfactory_node_quarantines", "Modules quarantined for crashing workers", registry=registry
        )
        self.host_calls = Counter(
            "agentfactory_node_host_calls", "Host calls of guests", ["method", "result"], registry=registry
        )
        self.host_call_bytes = Counter(
            "agentfactory_node_host_call_bytes",
            "Bytes of host calls, as guests send and read them",
            ["method", "direction"],
            registry=registry,
        )
        self.host_call_seconds = Histogram(
            "agentfactory_node_host_call_seconds",
            "Time a guest waited for the answer to a host call",
            ["method"],
            buckets=CALL_BUCKETS,
            registry=registry,
        )
        self._recording_bytes = Counter(
            "agentfactory_node_recording_bytes",
            "Bytes of host calls that recordings keep, before and after they are compressed",
            ["form"],
            registry=registry,
        )
        self.llm_tokens = Counter(
            "agentfactory_node_llm_tokens",
            "Tokens of language models that runs were charged",
            registry=registry,
        )
        self.new_modules = Counter(
            "agentfactory_node_new_modules",
            "Modules that this node got ready to load, by where they were compiled: here or elsewhere",
            ["compiled"],
            registry=registry,
        )
        self.refused_artifacts = Counter(
            "agentfactory_node_refused_artifacts",
            "Artifacts compiled elsewhere that this node did not take: it compiled the module itself",
            ["reason"],
            registry=registry,
        )
        self.artifact_pieces = Counter(
            "agentfactory_node_artifact_pieces",
            "Pieces of artifacts compiled elsewhere, by whether they were fetched or here already (reused)",
            ["piece"],
            registry=registry,
        )
        self.lease_expiries = Counter(
            "agentfactory_node_lease_expiries", "Runs stopped because their lease ran out", registry=registry
        )
        self.sessions = Counter(
            "agentfactory_node_sessions", "Sessions opened since start", registry=registry
        )
        self.certificate_seconds = Gauge(
            "agentfactory_node_certificate_seconds",
            "How long this node's certificate counts yet; below 0: no more",
            registry=registry,
        )
        self.connected = Gauge("agentfactory_node_connected", "Whether a session is open", registry=registry)
        self.slots = Gauge("agentfactory_node_slots", "Slots of this node", registry=registry)
        self.free_slots = Gauge(
            "agentfactory_node_free_slots",
            "Orders that it wants now",
            registry=registry,
        )
        self.workers = Gauge("agentfactory_node_workers", "Sandbox workers", ["state"], registry=registry)
        self.sandbox_layers = Gauge(
            "agentfactory_node_sandbox_layer", "Whether a layer of the workers' jail holds here", ["layer"],
            registry=registry,
        )  # fmt: skip
        self.spool_bytes = Gauge(
            "agentfactory_node_spool_bytes", "Bytes of the receipt spool's files", registry=registry
        )
        self.spool_receipts = Gauge(
            "agentfactory_node_spool_receipts", "Receipts that nobody has acknowledged", registry=registry
        )
        self.keyset_version = Gauge(
            "agentfactory_node_keyset_version", "Version of the keyset in force", registry=registry
        )

        self._freshness_age = Gauge(
            "agentfactory_node_freshness_age_seconds",
            "Age of the newest statement of freshness; -1: there is none",
            registry=registry,
        )

    def module_compiled(self) -> None:
        """See `ModuleObserver.module_compiled`."""
        self.new_modules.labels("here").inc()

    def module_received(self) -> None:
        """See `ModuleObserver.module_received`."""
        self.new_modules.labels("elsewhere").inc()

    def pieces_received(self, *, fetched: int, reused: int) -> None:
        """See `ModuleObserver.pieces_received`."""
        self.artifact_pieces.labels("fetched").inc(fetched)
        self.artifact_pieces.labels("reused").inc(reused)

    def compiled_refused(self, reason: str) -> None:
        """See `ModuleObserver.compiled_refused`. The word is one of our errors'."""
        self.refused_artifacts.labels(reason).inc()

    def watch_freshness(self, age: Callable[[], float]) -> None:
        """Read the age whenever somebody asks for the metrics."""
        self._freshness_age.set_function(age)

    def show_layers(self, layers: Iterable[LayerState]) -> None:
        """Set which layers of the jail hold here; that does not change while the node runs."""
        for state in layers:
            self.sandbox_layers.labels(state.layer).set(state.active)

    @contextmanager
    def timed(self, stage: Stage, trace_id: str = "") -> Iterator[None]:
        """Observe how long the body takes, errors included; `trace_id` of a trace that shows it."""
        started = self._clock.monotonic()
        try:
            yield
        finally:
            exemplar = {"trace_id": trace_id} if trace_id else None
            self._stages[stage].observe(self._clock.monotonic() - started, exemplar)

    def recorded(self, *, plain: int, packed: int) -> None:
        """Count what a run's recording keeps of its calls."""
        if plain:
            self._recording_bytes.labels("plain").inc(plain)
            self._recording_bytes.labels("packed").inc(packed)

    @contextmanager
    def host_call(self, seen: HostCallSeen) -> Iterator[HostCallSeen]:
        """Count one host call and how long the body takes, as `seen` says of it at the end."""
        started = self._clock.monotonic()
        try:
            yield seen
        finally:
            self.host_calls.labels(seen.method, seen.result).inc()
            self.host_call_bytes.labels(seen.method, "request").inc(seen.request_bytes)
            self.host_call_bytes.labels(seen.method, "response").inc(seen.response_bytes)
            self.host_call_seconds.labels(seen.method).observe(self._clock.monotonic() - started)


def _nothing() -> None:
    """No node yet."""

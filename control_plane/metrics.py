"""What the control plane counts, in Prometheus' form. Every method is cheap and never raises."""

import asyncio  # noqa: TC003 - imports stay in one place
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from control_plane.dispatch.service import DispatchStats
from control_plane.executions.acceptor import Acceptor
from control_plane.executions.admission import Admission
from control_plane.executions.completions import Completions
from control_plane.executions.domain import Accepted, NewExecution
from control_plane.executions.lifecycle import Execution
from control_plane.executions.ports import ExecutionStore, Placer
from control_plane.executions.trails import ExecutionTrails
from control_plane.nodes.domain import NodeState
from control_plane.tenant_metrics import TenantMetrics
from shared.cache import CacheStats
from shared.certificates import seconds_left
from shared.clock import Clock
from shared.gathering import Gathering
from shared.ids import NodeId, TenantId
from shared.telemetry import sampled_trace_id

LATENCY_BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0,
)  # fmt: skip
"""Seconds: from a warm no-op to the longest run."""

POLICY_BUCKETS: Final = (0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Seconds: from a remembered answer to a server that hardly answers."""

STAGES: Final = ("accept", "claim", "sign", "node", "finish")
"""Of the way of one execution, in order."""


class ControlMetrics:
    """Implements dispatch's `Observer`, `RpcObserver`, and counts executions and denials."""

    def __init__(self, registry: CollectorRegistry, *, tenants: int = 0) -> None:
        """Register everything; so many tenants get series of their own."""
        self._tenants = TenantMetrics(registry, limit=tenants)
        self._executions = Counter("af_executions", "Executions that ended.", ["outcome"], registry=registry)
        self._end_to_end = Histogram(
            "af_execution_seconds",
            "From acceptance to the end of an execution.",
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        stages = Histogram(
            "af_stage_seconds",
            "One stage of the way of an execution.",
            ["stage"],
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._queue_depth = Gauge("af_queue_depth", "Executions that wait for a node.", registry=registry)
        self._queue_age = Gauge(
            "af_queue_age_seconds",
            "How long the oldest claimable execution has waited for a node.",
            registry=registry,
        )
        self._backup_age = Gauge(
            "af_backup_age_seconds",
            "How old the newest backup is; without any, how old the installation.",
            registry=registry,
        )
        self._signature_failures = Counter(
            "af_signature_failures", "Signatures that did not verify.", ["kind"], registry=registry
        )
        self._break_glass = Counter(
            "af_break_glass", "Calls let in by a token for emergencies.", registry=registry
        )
        self._policy_version = Gauge(
            "af_policy_version", "Of the policy in force; 0 came with the program.", registry=registry
        )
        self._policy_loaded = Gauge(
            "af_policy_loaded", "0: the policy in force cannot be loaded, all is denied.", registry=registry
        )
        self._policy_denials = Counter(
            "af_policy_denials", "Decisions that said no.", ["question", "reason"], registry=registry
        )
        self._policy_seconds = Histogram(
            "af_policy_seconds",
            "One decision, remembered ones too.",
            ["question"],
            registry=registry,
            buckets=POLICY_BUCKETS,
        )
        self._log_leaves = Counter("af_log_leaves", "Leaves that this replica integrated.", registry=registry)
        self._log_seconds = Histogram(
            "af_log_integration_seconds",
            "One group of leaves, from looking to its commit.",
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        self._log_size = Gauge(
            "af_log_size", "Leaves of the log when this replica integrated last.", registry=registry
        )
        self._receipts_missing = Gauge(
            "af_receipts_missing", "Numbers of nodes' receipts that ought to be there.", registry=registry
        )
        self._log_waiting = Gauge(
            "af_log_waiting_seconds",
            "How long the oldest recorded fact has waited for its place in the log.",
            registry=registry,
        )
        self._evidence_wrong = Gauge(
            "af_evidence_findings", "What the checks of the evidence found.", ["check"], registry=registry
        )
        self._template_quarantines = Counter(
            "af_template_quarantines", "Template versions on which two engines differed.", registry=registry
        )
        self._lease_expiries = Counter("af_lease_expiries", "Leases that ran out.", registry=registry)
        self._sessions_opened = Counter("af_sessions_opened", "Sessions that began.", registry=registry)
        self._sessions_closed = Counter("af_sessions_closed", "Sessions that ended.", registry=registry)
        self._node_states = Counter(
            "af_node_state_changes", "Nodes drained, quarantined or evicted.", ["state"], registry=registry
        )
        self._rpcs = Histogram(
            "af_rpc_seconds",
            "RPCs by method and status; a stream counts its whole life.",
            ["method", "code"],
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        self._rpc_cells: dict[tuple[str, str], Histogram] = {}
        self._registry = registry

    def watch_certificates(self, files: Mapping[str, Path], clock: Clock) -> None:
        """Show how long the certificates in these files count yet, by what they are."""
        left = Gauge(
            "af_certificate_seconds",
            "How long a certificate counts yet; below 0: no more, or it cannot be read.",
            ["certificate"],
            registry=self._registry,
        )
        for name, path in files.items():
            left.labels(name).set_function(partial(seconds_left, path, clock))

    def watch_dispatch(self, stats: Callable[[], DispatchStats]) -> None:
        """Read sessions and slots from dispatch whenever somebody asks for the metrics."""
        for name, text, read in (
            ("af_sessions", "Live sessions of this replica.", lambda now: now.sessions),
            ("af_slots", "Slots of the nodes of this replica.", lambda now: now.slots),
            ("af_slots_held", "Slots that hold an attempt.", lambda now: now.held_slots),
        ):
            gauge = Gauge(name, text, registry=self._registry)
            gauge.set_function(lambda read=read: float(read(stats())))  # type: ignore[misc]  # bound early

    def watch_caches(self, caches: Mapping[str, Callable[[], CacheStats]]) -> None:
        """Read what caches do whenever somebody asks for the metrics."""
        self._registry.register(CacheCollector(caches))

    def template_quarantined(self) -> None:
        """Two engines came to different results: see `StopObserver`."""
        self._template_quarantines.inc()

    def backup_age(self, age: timedelta) -> None:
        """The newest backup is so old."""
        self._backup_age.set(age.total_seconds())

    def queue_depth(self, count: int) -> None:
        """So many executions wait for a node, in all replicas."""
        self._queue_depth.set(count)

    def queue_ages(self, ages: Mapping[TenantId, timedelta]) -> None:
        """So long have the oldest claimable executions waited, in all replicas, of tenants that have any."""
        self._queue_age.set(max(ages.values(), default=timedelta(0)).total_seconds())
        self._tenants.queue_ages(ages)

    def ended(self, execution: Execution, trace_id: str = "") -> None:
        """An execution has ended; the change is committed. `trace_id` is of a trace that is kept."""
        self._executions.labels(str(execution.state)).inc()
        self._tenants.ended(execution.tenant_id, str(execution.state))
        if execution.ended_at is not None:
            seconds = (execution.ended_at - execution.created_at).total_seconds()
            self._end_to_end.observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def break_glass(self) -> None:
        """A call was let in by a token for emergencies."""
        self._break_glass.inc()

    def policy_in_force(self, *, version: int, loaded: bool) -> None:
        """See `PolicyObserver`."""
        self._policy_version.set(version)
        self._policy_loaded.set(loaded)

    def policy_decided(self, question: str, seconds: float) -> None:
        """See `PolicyObserver`."""
        self._policy_seconds.labels(question).observe(seconds)

    def policy_denied(self, question: str, reason: str, tenant_id: TenantId) -> None:
        """See `PolicyObserver`."""
        self._policy_denials.labels(question, reason).inc()
        self._tenants.denied(tenant_id)

    def log_integrated(self, leaves: int, seconds: float) -> None:
        """See `LogObserver.log_integrated`."""
        self._log_leaves.inc(leaves)
        self._log_seconds.observe(seconds)

    def log_size(self, tree_size: int) -> None:
        """See `LogObserver.log_size`."""
        self._log_size.set(tree_size)

    def receipts_missing(self, count: int) -> None:
        """See `EvidenceObserver.receipts_missing`."""
        self._receipts_missing.set(count)

    def log_waiting(self, seconds: float) -> None:
        """See `EvidenceObserver.log_waiting`."""
        self._log_waiting.set(seconds)

    def evidence_wrong(self, check: str, count: int) -> None:
        """See `EvidenceObserver.evidence_wrong`."""
        self._evidence_wrong.labels(str(check)).set(count)

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """See `RpcObserver.rpc`."""
        cell = self._rpc_cells.get((method, code))
        if cell is None:
            cell = self._rpc_cells[(method, code)] = self._rpcs.labels(method.rpartition(".")[2], code)
        cell.observe(seconds)

    def stage(self, name: str, seconds: float, trace_id: str = "") -> None:
        """See `Observer.stage`."""
        cell = self._stages.get(name)
        if cell is not None:
            cell.observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def signature_failure(self, kind: str) -> None:
        """See `Observer.signature_failure`."""
        self._signature_failures.labels(kind).inc()

    def lease_expired(self, count: int) -> None:
        """See `Observer.lease_expired`."""
        self._lease_expiries.inc(count)

    def swept(self, outcome: str, tenant_id: TenantId, count: int) -> None:
        """See `Observer.swept`."""
        self._executions.labels(outcome).inc(count)
        self._tenants.ended(tenant_id, str(outcome), count)

    def session_opened(self, node_id: NodeId) -> None:  # noqa: ARG002 - a label per node has no bound
        """See `Observer.session_opened`."""
        self._sessions_opened.inc()

    def session_closed(self, node_id: NodeId) -> None:  # noqa: ARG002
        """See `Observer.session_closed`."""
        self._sessions_closed.inc()

    def node_state(self, node_id: NodeId, state: NodeState) -> None:  # noqa: ARG002
        """See `Observer.node_state`."""
        self._node_states.labels(str(state)).inc()


class CacheCollector(Collector):
    """What caches have done and hold, read when somebody asks: nothing is counted twice on the hot path."""

    def __init__(self, caches: Mapping[str, Callable[[], CacheStats]]) -> None:
        self._caches = caches

    def collect(self) -> Iterable[Metric]:
        """See `Collector.collect`."""
        now = {name: read() for name, read in self._caches.items()}
        for name, text, value in _CACHE_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["cache"])
            for cache, stats in now.items():
                counter.add_metric([cache], value(stats))
            yield counter
        for name, text, value in _CACHE_GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["cache"])
            for cache, stats in now.items():
                gauge.add_metric([cache], value(stats))
            yield gauge


_CacheRows = tuple[tuple[str, str, Callable[[CacheStats], float]], ...]
_CACHE_COUNTERS: Final[_CacheRows] = (
    ("af_cache_hits", "Values that were there.", lambda one: one.hits),
    ("af_cache_misses", "Values that had to be read.", lambda one: one.misses),
    ("af_cache_evictions", "Values that left for want of room.", lambda one: one.evictions),
)
_CACHE_GAUGES: Final[_CacheRows] = (
    ("af_cache_entries", "Values that are held.", lambda one: one.entries),
    ("af_cache_bytes", "Of the values that are held, where they are weighed.", lambda one: one.size_bytes),
    (
        "af_cache_oldest_seconds",
        "Since the read of the value that is held for longest.",
        lambda one: one.oldest.total_seconds(),
    ),
)


class MeasuredAcceptor(Acceptor):
    """An `Acceptor` whose stage is measured: from asking to the commit that answers."""

    def __init__(
        self,
        *,
        store: ExecutionStore,
        placer: Placer,
        metrics: ControlMetrics,
        admission: Admission | None = None,
        gathering: Gathering | None = None,
    ) -> None:
        super().__init__(store=store, placer=placer, admission=admission, gathering=gathering)
        self._metrics = metrics

    def enqueue(self, item: NewExecution) -> "asyncio.Future[Accepted]":
        """See `Acceptor.enqueue`."""
        started = time.perf_counter()

        def measure(answer: "asyncio.Future[Accepted]") -> None:
            if not answer.cancelled() and answer.exception() is None:
                trace_id = sampled_trace_id(item.run.traceparent)
                self._metrics.stage("accept", time.perf_counter() - started, trace_id)

        answer = super().enqueue(item)
        answer.add_done_callback(measure)
        return answer


class MeasuredCompletions(Completions):
    """A `Completions` that counts ends."""

    def __init__(self, metrics: ControlMetrics, trails: ExecutionTrails) -> None:
        super().__init__()
        self._metrics = metrics
        self._trails = trails

    def complete(self, execution: Execution) -> None:
        """See `Completions.complete`."""
        if execution.state.is_terminal:
            self._metrics.ended(execution, self._trails.of(execution.execution_id).sampled_id)
        super().complete(execution)

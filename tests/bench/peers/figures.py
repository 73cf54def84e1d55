"""From visits to figures: medians over the repeats, the ratios to the peers, and the bars. No I/O."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.peers.visit import Visit
from tests.bench.report import Figure, median, spread

OURS = "agent-factory"
BARE = "agent-factory-bare"
ECHO = "echo"
Read = Callable[[Visit], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One thing that is read of each visit."""

    label: str
    unit: str
    read: Read


ALONE_P50 = Metric(label="1 in flight, p50", unit="ms", read=lambda visit: visit.alone_p50_ms)
LOADED = Metric(label="64 in flight", unit="/s", read=lambda visit: visit.loaded_per_s)
HALF_P95 = Metric(label="half load, open loop, p95", unit="ms", read=lambda visit: visit.half_p95_ms)
MEMORY = Metric(label="memory, sum of PSS", unit="MB", read=lambda visit: visit.total_memory_mb)
STREAMED = Metric(label="64 in flight, streamed", unit="/s", read=lambda visit: visit.streamed_per_s or 0.0)
METRICS = (
    ALONE_P50,
    Metric(label="1 in flight, p95", unit="ms", read=lambda visit: visit.alone_p95_ms),
    Metric(label="1 in flight, p99", unit="ms", read=lambda visit: visit.alone_p99_ms),
    LOADED,
    Metric(label="64 in flight, p95", unit="ms", read=lambda visit: visit.loaded_p95_ms),
    Metric(label="half load, open loop, p50", unit="ms", read=lambda visit: visit.half_p50_ms),
    HALF_P95,
    MEMORY,
    Metric(label="cold start", unit="s", read=lambda visit: visit.cold_start_s),
)
CLIENT = Metric(label="client at 64 in flight", unit="CPUs", read=lambda visit: visit.client_cpus)

AT_LEAST = (
    ("celery", 2.5),
    ("procrastinate", 3.5),
    ("pgqueuer", 1.4),
    ("nats", 1.5),
    (ECHO, 0.2),
    (BARE, 0.8),
)
"""Our executions/s at 64 in flight ÷ theirs."""
STREAMED_AT_LEAST = 0.5
ALONE_AT_MOST = 1.4
HALF_P95_MS = 20.0
MEMORY_MB = 320.0


QUIET_CPUS = 0.2
"""More than this used by others, in the middle of the visits, and the figures are not worth much."""


class Visits:
    """All visits of a run, by peer."""

    def __init__(self, visits: Sequence[Visit]) -> None:
        self._by_peer: dict[str, list[Visit]] = {}
        for visit in visits:
            self._by_peer.setdefault(visit.peer, []).append(visit)

    @property
    def peers(self) -> list[str]:
        """In the order in which they were first visited."""
        return list(self._by_peer)

    def all(self) -> list[Visit]:
        return [visit for visits in self._by_peer.values() for visit in visits]

    def values(self, peer: str, metric: Metric) -> list[float]:
        return [metric.read(visit) for visit in self._by_peer[peer]]

    def middle(self, peer: str, metric: Metric) -> float:
        return median(self.values(peer, metric))

    def has(self, *peers: str) -> bool:
        return all(peer in self._by_peer for peer in peers)


def bars(visits: Visits) -> list[Figure]:
    """Return the figures that have a bar, as far as what they compare was visited."""
    if not visits.has(OURS):
        return []
    figures = [_at_least(visits, LOADED, peer, least) for peer, least in AT_LEAST if visits.has(peer)]
    if visits.has(ECHO):
        figures.append(_at_least(visits, STREAMED, ECHO, STREAMED_AT_LEAST))
    if visits.has("pgqueuer"):
        figures += [_alone(visits), _half(visits)]
    return [*figures, _memory(visits)]


def plain(visits: Visits) -> list[Figure]:
    """Return every figure of every peer, without bars."""
    figures = [
        _figure(visits, peer, metric, figure=f"{peer}: {metric.label}")
        for peer in visits.peers
        for metric in (*METRICS, CLIENT)
    ]
    syncs = [visit.fdatasync_p50_us for visit in visits.all()]
    disk = Figure(
        figure="fdatasync of 8 KiB, p50",
        value=median(syncs),
        unit="µs",
        repeats=len(syncs),
        spread=spread(syncs),
    )
    others = [visit.others_cpus for visit in visits.all()]
    machine = Figure(
        figure="used by others meanwhile",
        value=median(others),
        unit="CPUs",
        repeats=len(others),
        spread=spread(others),
    )
    return [*figures, disk, machine]


def _figure(
    visits: Visits,
    peer: str,
    metric: Metric,
    *,
    figure: str,
    reference: str | None = None,
    reference_value: float | None = None,
    bar: str | None = None,
    bar_ok: bool | None = None,
) -> Figure:
    values = visits.values(peer, metric)
    return Figure(
        figure=figure,
        value=median(values),
        unit=metric.unit,
        reference=reference,
        reference_value=reference_value,
        bar=bar,
        bar_ok=bar_ok,
        repeats=len(values),
        spread=spread(values),
    )


def _at_least(visits: Visits, metric: Metric, peer: str, least: float) -> Figure:
    theirs = visits.middle(peer, LOADED)
    return _figure(
        visits,
        OURS,
        metric,
        figure=f"{metric.label} ÷ {peer}",
        reference=peer,
        reference_value=theirs,
        bar=f"≥ {least:g} times",
        bar_ok=visits.middle(OURS, metric) >= least * theirs,
    )


def _alone(visits: Visits) -> Figure:
    theirs = visits.middle("pgqueuer", ALONE_P50)
    return _figure(
        visits,
        OURS,
        ALONE_P50,
        figure=f"{ALONE_P50.label} ÷ pgqueuer",
        reference="pgqueuer",
        reference_value=theirs,
        bar=f"≤ {ALONE_AT_MOST:g} times",
        bar_ok=visits.middle(OURS, ALONE_P50) <= ALONE_AT_MOST * theirs,
    )


def _half(visits: Visits) -> Figure:
    theirs = visits.middle("pgqueuer", HALF_P95)
    return _figure(
        visits,
        OURS,
        HALF_P95,
        figure=HALF_P95.label,
        reference="pgqueuer",
        reference_value=theirs,
        bar=f"≤ {HALF_P95_MS:g} ms and ≤ pgqueuer's",
        bar_ok=visits.middle(OURS, HALF_P95) <= min(HALF_P95_MS, theirs),
    )


def _memory(visits: Visits) -> Figure:
    return _figure(
        visits,
        OURS,
        MEMORY,
        figure="memory of control plane + node + Postgres at 64 in flight",
        bar=f"≤ {MEMORY_MB:g} MB",
        bar_ok=visits.middle(OURS, MEMORY) <= MEMORY_MB,
    )

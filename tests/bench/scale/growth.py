"""What grows with nodes, and with replicas: cost per execution at the same load, the idle system taken off."""

from collections.abc import Sequence

from tests.bench.report import Figure, measured, median, spread
from tests.bench.scale.costs import Cost  # noqa: TC001 - imports stay in one place
from tests.bench.scale.world import Measured, World, running_world, say

MAX_GROWTH = 1.2
"""Cost per execution with many nodes ÷ with few, and with two replicas ÷ with one (issue: at most 20 % more)."""


FULL_CALLS = 2_000
"""Executions by which the most that replicas bear is measured."""


def grown(
    figure: str, values: Sequence[float], unit: str, *, beside: tuple[str, Sequence[float]], barred: bool
) -> Figure:
    """Return the median beside that of a smaller system; where barred, it may be so much more."""
    return measured(
        figure,
        values,
        unit,
        beside=beside,
        bar=f"≤ {MAX_GROWTH} times" if barred else None,
        bar_ok=median(values) <= MAX_GROWTH * median(beside[1]) if barred else None,
    )


async def measure_nodes(
    world: World, counts: Sequence[int], *, rate: float, rounds: int, idle_seconds: float, seconds: float
) -> list[Measured]:
    """Visit every count once a round, up and down in turn, so that a slow minute meets few and many alike."""
    found = []
    for turn in range(rounds):
        for count in counts if turn % 2 == 0 else reversed(counts):
            one = await world.measure(count, rate=rate, idle_seconds=idle_seconds, seconds=seconds)
            say_measured(f"round {turn + 1} of {rounds}: {count:,} nodes", one)
            found.append(one)
    return found


def say_measured(what: str, one: Measured) -> None:
    say(
        f"{what}: {one.cost.control_plane_us:,.0f} µs of control plane, {one.cost.postgres_us:,.0f} µs of Postgres,"
        f" p95 {one.p95_ms:.1f} ms; idle {one.idle.control_plane * 1e3:.1f} ms/s;"
        f" others used {one.loaded.others_cpus:.1f} CPUs"
    )


def node_figures(
    found: Sequence[Measured], statements: dict[int, float], few: int, many: int
) -> list[Figure]:
    """Return a line per count and measure; those at `many` beside those at `few` carry the bar."""
    counts = sorted({one.nodes for one in found})
    return [
        *(line for count in counts for line in _lines(found, count, few=few, many=many)),
        *_statement_figures(statements, few, many),
        *_idle_figures(found, counts),
    ]


def _lines(found: Sequence[Measured], count: int, *, few: int, many: int) -> list[Figure]:
    mine = [one for one in found if one.nodes == count]
    beside = [one for one in found if one.nodes == few]
    figures = []
    for name, label, unit in (
        ("control_plane_us", "control plane CPU", "µs"),
        ("postgres_us", "Postgres CPU", "µs"),
        ("wal_bytes", "WAL", "bytes"),
        ("transactions", "transactions", ""),
        ("rows_written", "rows written", ""),
    ):
        values = [float(getattr(one.cost, name)) for one in mine]
        reference = median([float(getattr(one.cost, name)) for one in beside])
        barred = count == many and name in {"control_plane_us", "wal_bytes"}
        figures.append(
            Figure(
                figure=f"{count:,} nodes: {label} per execution",
                value=median(values),
                unit=unit,
                reference=f"{few} nodes" if count != few else None,
                reference_value=reference if count != few else None,
                bar=f"≤ {MAX_GROWTH} times" if barred else None,
                bar_ok=median(values) <= MAX_GROWTH * reference if barred else None,
                repeats=len(values),
                spread=spread(values),
            )
        )
    latency = [one.p95_ms for one in mine]
    figures.append(
        Figure(
            figure=f"{count:,} nodes: p95, open loop",
            value=median(latency),
            unit="ms",
            repeats=len(latency),
            spread=spread(latency),
        )
    )
    return figures


def _statement_figures(statements: dict[int, float], few: int, many: int) -> list[Figure]:
    return [
        Figure(
            figure=f"{count:,} nodes: statements per execution",
            value=value,
            unit="",
            reference=f"{few} nodes" if count == many else None,
            reference_value=statements[few] if count == many else None,
            bar=f"≤ {MAX_GROWTH} times" if count == many else None,
            bar_ok=value <= MAX_GROWTH * statements[few] if count == many else None,
        )
        for count, value in statements.items()
    ]


def _idle_figures(found: Sequence[Measured], counts: Sequence[int]) -> list[Figure]:
    """Return what one more idle node takes each second: the slope between the least and the most of them."""
    least, most = counts[0], counts[-1]
    figures = []
    for name, label, unit, scale in (
        ("control_plane", "control plane CPU", "µs/s", 1e6),
        ("postgres", "Postgres CPU", "µs/s", 1e6),
        ("wal_bytes", "WAL", "bytes/s", 1.0),
    ):
        low, high = (
            median([float(getattr(one.idle, name)) for one in found if one.nodes == count])
            for count in (least, most)
        )
        slope = (high - low) / max(1, most - least) * scale
        figures.append(Figure(figure=f"an idle node: {label}", value=slope, unit=unit))
    return figures


async def measure_replicas(
    nodes: int, *, rate: float, rounds: int, idle_seconds: float, seconds: float
) -> list[Figure]:
    """Return two replicas beside one, in turn: cost per execution at one load, the most they bear, doubles."""
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    full: tuple[list[float], list[float]] = ([], [])
    twice, other = 0, 0
    async with (
        running_world(nodes=nodes) as one_replica,
        running_world(nodes=nodes, replicas=2) as two_replicas,
    ):
        worlds = (one_replica, two_replicas)
        for _ in range(rounds):
            for number, world in enumerate(worlds):
                one = await world.measure(nodes, rate=rate, idle_seconds=idle_seconds, seconds=seconds)
                full[number].append(await world.fill(FULL_CALLS))
                say_measured(f"replicas: {number + 1}, {nodes} nodes", one)
                say(f"replicas: {number + 1}, {full[number][-1]:,.0f} executions/s with 64 in flight")
                costs[number].append(one.cost)
        for world in worlds:
            doubles = await world.doubles()
            twice, other = twice + doubles[0], other + doubles[1]
    alone, both = costs
    figures = [
        grown(
            f"two replicas: {label} per execution",
            [float(getattr(one, name)) for one in both],
            unit,
            beside=("one replica", [float(getattr(one, name)) for one in alone]),
            barred=barred,
        )
        for label, unit, name, barred in (
            ("control plane CPU", "µs", "control_plane_us", True),
            ("Postgres CPU", "µs", "postgres_us", False),
            ("WAL", "bytes", "wal_bytes", False),
        )
    ]
    return [
        *figures,
        measured("two replicas: executions/s, 64 in flight", full[1], "/s", beside=("one replica", full[0])),
        Figure(figure="two replicas: accepted twice", value=twice, unit="", bar="0", bar_ok=twice == 0),
        Figure(figure="two replicas: did not succeed", value=other, unit="", bar="0", bar_ok=other == 0),
    ]

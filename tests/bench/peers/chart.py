"""The picture for the docs: throughput at 64 in flight and latency, ours and theirs. Draws, decides nothing."""

from pathlib import Path

import matplotlib as mpl

from tests.bench.peers.figures import ALONE_P50, BARE, ECHO, HALF_P95, LOADED, OURS, STREAMED, Metric, Visits
from tests.bench.report import median

LABELS = {
    OURS: "Agent Factory",
    ECHO: "grpc.aio echo (reference)",
    "celery": "Celery + Redis, AOF always",
    "celery-everysec": "Celery + Redis, AOF everysec",
    "procrastinate": "procrastinate",
    "pgqueuer": "pgqueuer, batched",
    "nats": "NATS JetStream, sync always",
    "temporal": "Temporal dev server",
}
STREAM_LABEL = "Agent Factory, streamed"
PANELS = (
    ("executions per second, 64 in flight\nmore is better", LOADED),
    ("p50 in ms, 1 in flight\nless is better", ALONE_P50),
    ("p95 in ms, open loop at half of the rate\nless is better", HALF_P95),
)
INK, GRID = "#1f2430", "#d8dde6"
OURS_COLOUR, PEER_COLOUR = "#1f6feb", "#6b7686"
WIDTH_INCHES = 13.0
DOTS_PER_INCH = 100
WHOLE_NUMBERS_FROM = 100

Row = tuple[str, list[float]]


def draw(visits: Visits, path: Path) -> None:
    """Write the chart as a PNG: the median of each peer as a dot, all its repeats as a line through it.

    Dots, because the axes are logarithmic: the length of a bar would say nothing there.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of the drawing that needs no screen

    height = 1.2 + 0.34 * (len(visits.peers) + 1)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(WIDTH_INCHES, height), layout="constrained")
    for axis, (title, metric) in zip(axes, PANELS, strict=True):
        rows = _rows(visits, metric)
        rows.sort(key=lambda row: median(row[1]), reverse=metric is not LOADED)
        for place, (label, values) in enumerate(rows):
            colour = OURS_COLOUR if label.startswith(LABELS[OURS]) else PEER_COLOUR
            middle = median(values)
            axis.plot([min(values), max(values)], [place, place], color=colour, linewidth=2, alpha=0.5)
            axis.plot([middle], [place], "o", color=colour, markersize=7)
            axis.annotate(
                _short(middle),
                (max(values), place),
                (7, -3),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
        axis.set_title(title, fontsize=9, color=INK)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.margins(x=0.2, y=0.08)
        axis.grid(axis="x", color=GRID, linewidth=0.7)
        axis.tick_params(labelsize=8, colors=INK, length=0, which="both")
        for spine in axis.spines.values():
            spine.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)


def _rows(visits: Visits, metric: Metric) -> list[Row]:
    rows = [(LABELS[peer], visits.values(peer, metric)) for peer in visits.peers if peer != BARE]
    if metric is LOADED and visits.has(OURS):
        rows.append((STREAM_LABEL, visits.values(OURS, STREAMED)))
    return rows


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= WHOLE_NUMBERS_FROM else f"{value:.1f}"

"""The picture for the docs: throughput at 64 in flight and latency, ours and theirs. Draws, decides nothing."""

from pathlib import Path

import matplotlib as mpl

from tests.bench.peers.figures import ALONE_P50, HALF_P95, LOADED, OURS, STREAMED, Metric, Visits

INK = "#1f2430"
OURS_COLOUR = "#1f6feb"
PEER_COLOUR = "#9aa4b2"
WIDTH_INCHES = 12.0
DOTS_PER_INCH = 110


def draw(visits: Visits, path: Path) -> None:
    """Write the chart as a PNG."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of the drawing that needs no screen

    panels = (
        ("executions per second, 64 in flight", LOADED, False),
        ("p50 in ms, 1 in flight", ALONE_P50, True),
        ("p95 in ms, open loop at half of the rate", HALF_P95, True),
    )
    height = 1.4 + 0.42 * (len(visits.peers) + 1)
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH_INCHES, height), layout="constrained")
    for axis, (title, metric, smaller_is_better) in zip(axes, panels, strict=True):
        rows = _rows(visits, metric)
        rows.sort(key=lambda row: row[1], reverse=smaller_is_better)
        labels = [label for label, _ in rows]
        values = [value for _, value in rows]
        colours = [OURS_COLOUR if label.startswith(OURS) else PEER_COLOUR for label in labels]
        drawn = axis.barh(labels, values, color=colours)
        axis.bar_label(drawn, labels=[_short(value) for value in values], padding=3, color=INK, fontsize=8)
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xscale("log")
        axis.margins(x=0.18)
        axis.tick_params(labelsize=8, colors=INK)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)


def _rows(visits: Visits, metric: Metric) -> list[tuple[str, float]]:
    rows = [(peer, visits.middle(peer, metric)) for peer in visits.peers]
    if metric is LOADED and visits.has(OURS):
        rows.append((f"{OURS}, streamed", visits.middle(OURS, STREAMED)))
    return rows


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

"""What dashboards and rules ask for is what our processes show: by name, kind and labels."""

import re
from collections.abc import Iterator, Mapping

import pytest
import yaml

from tests.tools import dashboards
from tests.tools.shown_metrics import ROOT, Shown, shown_by, shown_metrics

RULES = ROOT / "helm" / "agent-factory" / "files" / "rules.yaml"
SERIES = re.compile(r"\b((?:af|agentfactory)_[a-z_]+)\b(?!:)(?:\{([^}]*)\})?")
OF_THE_SERVER = {"instance", "job", "pod", "namespace"}
"""Labels that Prometheus gives each series."""


def asked() -> Iterator[str]:
    for name, (_, panels) in dashboards.DASHBOARDS.items():
        for panel in panels:
            for legend, query in panel.queries.items():
                yield pytest.param(f"{query} {legend_labels(legend)}", id=f"{name}: {panel.title}: {legend}")
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield pytest.param(rule["expr"], id=rule.get("alert") or rule["record"])


def legend_labels(legend: str) -> str:
    """Return what a legend shows, as one more clause of its query."""
    return f"by ({', '.join(re.findall(r'{{([a-z_]+)}}', legend))})"


def problems(query: str, metrics: Mapping[str, Shown]) -> list[str]:
    """Return what a query names that nobody shows."""
    series = {one: labels for name, shown in metrics.items() for one, labels in shown.series(name).items()}
    named = SERIES.findall(query)
    wrong = [f"there is no {name}" for name, _ in named if name not in series]
    for name, chosen in named:
        known = series.get(name)
        labels = set(re.findall(r"([a-z_]+)\s*[=!]", chosen)) if known is not None else set()
        wrong += [f"{name} has no {label}" for label in sorted(labels - (known or set()) - OF_THE_SERVER)]
    by = {label.strip() for found in re.findall(r"by \(([^)]*)\)", query) for label in found.split(",")} - {
        ""
    }
    shown = OF_THE_SERVER.union(*(series.get(name, ()) for name, _ in named))
    return wrong + [f"nothing is by {label}" for label in sorted(by - shown)]


@pytest.mark.parametrize("query", list(asked()))
def test_what_is_asked_for_is_shown(query):
    if SERIES.search(query):
        assert problems(query, shown_metrics()) == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ('sum by (event) (rate(af_x_total{event="a"}[5m]))', []),
        ("max(af_x)", ["there is no af_x"]),
        ("rate(af_y_total[5m])", ["there is no af_y_total"]),
        ('rate(af_x_total{result="a"}[5m])', ["af_x_total has no result"]),
        ("sum by (result) (rate(af_x_total[5m]))", ["nothing is by result"]),
        ("sum by (le, stage) (rate(af_z_bucket[5m]))", []),
        ("sum by (le) (rate(af_z_count[5m]))", ["nothing is by le"]),
    ],
)
def test_what_nobody_shows_is_found(query, found):
    metrics = shown_by(
        """
ROWS = (("af_x", "x"), ("af_w", "w"))
def make():
    for name, text in ROWS:
        CounterMetricFamily(name, text, labels=["event"])
    Gauge("af_y", "y", registry=registry)
    Histogram("af_z", "z", ["stage"])
"""
    )
    assert problems(query, metrics) == found

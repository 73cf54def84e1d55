"""The metrics that our processes show, read from the sources that make them: name, kind, labels. Reads only."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PLANES: Final = ("control_plane", "data_plane", "shared")
KINDS: Final = {
    "Counter": "counter",
    "CounterMetricFamily": "counter",
    "Gauge": "gauge",
    "GaugeMetricFamily": "gauge",
    "Histogram": "histogram",
}
ENDINGS: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
"""Of the series of a kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One metric."""

    kind: str
    labels: frozenset[str]

    def series(self, name: str) -> dict[str, frozenset[str]]:
        """Return the series that a server keeps of it, with the labels that they have from us."""
        return {
            name + ending: self.labels | {"le"} if ending == "_bucket" else self.labels
            for ending in ENDINGS[self.kind]
        }


@cache
def shown_metrics() -> Mapping[str, Shown]:
    """Return every metric of gateway, control plane and node, by its name."""
    found: dict[str, Shown] = {}
    for plane in PLANES:
        for path in sorted((ROOT / plane).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if "prometheus_client" in source:
                found |= shown_by(source)
    return found


def shown_by(source: str) -> dict[str, Shown]:
    """Return the metrics that a module makes, one by one or in a loop over rows that begin with their names."""
    tree = ast.parse(source)
    found = {str(first.value): one for first, one in _made(tree) if isinstance(first, ast.Constant)}
    rows = {name: value for name, value in _assigned(tree) if isinstance(value, ast.Tuple)}
    for loop in (node for node in ast.walk(tree) if isinstance(node, ast.For)):
        over = rows.get(loop.iter.id) if isinstance(loop.iter, ast.Name) else loop.iter
        for first, one in _made(loop):
            if isinstance(first, ast.Name):
                found |= dict.fromkeys(_names(over), one)
    return found


def _made(tree: ast.AST) -> Iterator[tuple[ast.expr, Shown]]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if not (isinstance(call.func, ast.Name) and call.func.id in KINDS and call.args):
            continue
        given = [
            *call.args[2:3],
            *(one.value for one in call.keywords if one.arg in {"labels", "labelnames"}),
        ]
        lists = [one.elts for one in given if isinstance(one, ast.List | ast.Tuple)]
        labels = frozenset(str(one.value) for some in lists for one in some if isinstance(one, ast.Constant))
        yield call.args[0], Shown(kind=KINDS[call.func.id], labels=labels)


def _assigned(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from ((one.id, node.value) for one in node.targets if isinstance(one, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value


def _names(rows: ast.expr | None) -> list[str]:
    if not isinstance(rows, ast.Tuple):
        return []
    firsts = [row.elts[0] for row in rows.elts if isinstance(row, ast.Tuple) and row.elts]
    return [one.value for one in firsts if isinstance(one, ast.Constant) and isinstance(one.value, str)]

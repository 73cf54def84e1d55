"""The form every bench reports in: a table on the terminal, build/bench/NAME.json, exit 1 when a bar is missed."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

TIMES = "×"  # noqa: RUF001 - the sign of a ratio
RESULTS = Path(__file__).resolve().parents[2] / "build" / "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure beside its reference of the same run.

    ``bar`` is the text of the promise, None where the figure is only shown. ``spread`` is (maximum - minimum) /
    median over the repeats.
    """

    figure: str
    value: float
    unit: str
    reference: str | None = None
    reference_value: float | None = None
    bar: str | None = None
    bar_ok: bool | None = None
    repeats: int = 1
    spread: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.reference_value if self.reference_value else None


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Return (maximum - minimum) / median: what one should not read into a difference."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measured(
    figure: str,
    values: Sequence[float],
    unit: str,
    *,
    beside: tuple[str, Sequence[float]] | None = None,
    at_most: float | None = None,
    bar: str | None = None,
    bar_ok: bool | None = None,
) -> Figure:
    """Return the median of the repeats, with their spread.

    `beside` names a reference and its repeats. `at_most` is a bar in the figure's own unit; any other is given as
    `bar` and `bar_ok`.
    """
    value = median(values)
    if at_most is not None:
        bar, bar_ok = f"≤ {at_most:g} {unit}", value <= at_most
    return Figure(
        figure=figure,
        value=value,
        unit=unit,
        reference=beside[0] if beside else None,
        reference_value=median(beside[1]) if beside else None,
        bar=bar,
        bar_ok=bar_ok,
        repeats=len(values),
        spread=spread(values),
    )


def publish(name: str, figures: Sequence[Figure], *, also: Sequence[Figure] = ()) -> int:
    """Print and store the figures; return 1 when a bar is missed, else 0. Those of `also` are only stored."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(figure), "ratio": figure.ratio} for figure in (*figures, *also)]
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    table = Table(title=name)
    for column in ("figure", "value", "beside it", "ratio", "bar", ""):
        table.add_column(column, justify="left" if column in {"figure", "bar"} else "right")
    for figure in figures:
        digits = 2 if figure.unit == TIMES else 1  # a ratio is judged by its second digit
        beside = (
            f"{figure.reference} {figure.reference_value:,.{digits}f}"
            if figure.reference_value is not None
            else ""
        )
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
        mark = {None: "", True: "ok", False: "[red]missed[/red]"}[figure.bar_ok]
        value = f"{figure.value:,.{digits}f} {figure.unit}"
        table.add_row(figure.figure, value, beside, ratio, figure.bar or "", mark)
    Console(width=150, file=sys.stdout).print(table)
    missed = [figure.figure for figure in figures if figure.bar_ok is False]
    for figure in missed:
        sys.stderr.write(f"bar missed: {figure}\n")
    return 1 if missed else 0

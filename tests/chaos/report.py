"""The table of `make chaos` and build/chaos.json. A fault without a row fails as one with a missed bar does."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from tests.chaos.row import Row
from tests.e2e.stack import ROOT

RESULT = ROOT / "build" / "chaos.json"


def publish(rows: Sequence[Row], expected: Sequence[str]) -> int:
    """Print and store the rows; return 1 when one failed or is missing, else 0."""
    store(rows)
    Console(width=170, file=sys.stdout).print(table(rows))
    missing = [name for name in expected if name not in {row.fault for row in rows}]
    for row in rows:
        for failure in row.failures:
            sys.stdout.write(f"{row.fault}: {failure}\n")
        if row.failures:
            sys.stdout.writelines(f"{row.fault}:   {note}\n" for note in row.notes)
    for name in missing:
        sys.stdout.write(f"{name}: has no row\n")
    sys.stdout.flush()
    return 1 if missing or not all(row.ok for row in rows) else 0


def store(rows: Sequence[Row]) -> None:
    """Write what is known so far: a run that is broken off leaves its rows."""
    found = [{**asdict(row), "ok": row.ok} for row in rows]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> Table:
    found = Table(title="what was survived")
    columns = ["fault", "acknowledged", "lost", "twice", "stale", "receipts missing", "unsigned"]
    columns += [
        "p95 before",
        "p95 (ms)",
        "slowest",
        "noticed (s)",
        "recovered (s)",
        "others (cores)",
        "proof",
        "",
    ]
    for column in columns:
        found.add_column(column, justify="left" if column in {"fault", "proof"} else "right")
    for row in rows:
        found.add_row(
            row.says,
            str(row.acknowledged),
            *(
                str(count)
                for count in (
                    row.lost,
                    row.accepted_twice,
                    row.stale_accepted,
                    row.receipts_missing,
                    row.orders_unsigned,
                )
            ),
            *(_number(value) for value in (row.p95_before_ms, row.p95_ms, row.slowest_ms)),
            *(_number(value) for value in (row.detection_seconds, row.recovery_seconds, row.others_cores)),
            row.proof,
            "ok" if row.ok else "[red]failed[/red]",
        )
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

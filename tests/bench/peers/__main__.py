"""Agent Factory beside job queues, on one machine in one run: ``python -m tests.bench.peers [--quick] [NAME …]``.

Visits every peer once in each round, in an order that turns by one each time, so that a slow minute of the machine
meets all of them. Exits 1 when a bar is missed and when a peer cannot run; none is ever left out silently.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.errors import UnavailableError
from tests.bench.peers import figures, servers
from tests.bench.peers.figures import METRICS, Visits
from tests.bench.peers.peer import MODULES, NEEDS
from tests.bench.peers.visit import Visit, read
from tests.bench.report import RESULTS, median, publish, spread

REPEATS = 3
VISIT_TIMEOUT = timedelta(minutes=5)
DOCS_CHART = Path(__file__).resolve().parents[3] / "docs" / "peers.png"


def require(names: Sequence[str]) -> None:
    """Find out before the first minute is spent whether every named peer can run here.

    Raises:
        UnavailableError: One cannot; the message says what is missing.
    """
    wanted = {"matplotlib", *(module for name in names for module in NEEDS.get(name, ()))}
    missing = sorted(module for module in wanted if find_spec(module) is None)
    if missing:
        raise UnavailableError(
            f"these packages are missing: {', '.join(missing)}", hint="run make bench-peers"
        )
    for name in names:
        servers.require(name)


def visit(name: str, folder: Path, *, quick: bool) -> Visit:
    """Visit a peer in a process of its own.

    Raises:
        UnavailableError: It could not be measured; why was printed.
    """
    out = folder / "visit.json"
    command = [sys.executable, "-m", "tests.bench.peers.visit", name, str(out)]
    try:
        subprocess.run(
            [*command, "--quick"] if quick else command, check=True, timeout=VISIT_TIMEOUT.total_seconds()
        )
    except subprocess.SubprocessError as error:
        raise UnavailableError(f"{name} could not be measured, so there is no result: {error}") from error
    return read(out)


def visit_all(names: Sequence[str], *, repeats: int, quick: bool) -> Visits:
    found = []
    with tempfile.TemporaryDirectory(prefix="agentfactory-peers-") as folder:
        for turn in range(repeats):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                started = time.monotonic()
                one = visit(name, Path(folder), quick=quick)
                found.append(one)
                sys.stdout.write(
                    f"· round {turn + 1} of {repeats}: {name}: {one.loaded_per_s:,.0f}/s,"
                    f" p50 {one.alone_p50_ms:.1f} ms; others used {one.others_cpus:.1f} CPUs ({time.monotonic() - started:.0f} s)\n"
                )
                sys.stdout.flush()
    return Visits(found)


def show(visits: Visits) -> None:
    """Print a line for each peer: medians over the rounds, and how far the throughputs lie apart."""
    table = Table(title="peers: medians")
    table.add_column("peer", no_wrap=True)
    for metric in METRICS:
        table.add_column(f"{metric.label}, {metric.unit}", justify="right")
    table.add_column("spread of the rate", justify="right")
    for peer in sorted(visits.peers, key=lambda peer: -visits.middle(peer, figures.LOADED)):
        cells = [f"{visits.middle(peer, metric):,.1f}" for metric in METRICS]
        table.add_row(peer, *cells, f"{spread(visits.values(peer, figures.LOADED)):.0%}")
    Console(width=150, file=sys.stdout).print(table)
    sync = median([visit.fdatasync_p50_us for visit in visits.all()])
    sys.stdout.write(f"fdatasync of 8 KiB on this disk, p50: {sync:,.0f} µs\n")
    busy = median([visit.others_cpus for visit in visits.all()])
    if busy > figures.QUIET_CPUS:
        sys.stderr.write(
            f"others kept {busy:.1f} CPUs busy meanwhile: these figures say little, repeat them on a quiet machine\n"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(MODULES)}")
    parser.add_argument("--quick", action="store_true", help="short loops, one round")
    parser.add_argument("--repeats", type=int, help=f"rounds (default {REPEATS}, quick 1)")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(MODULES))
    if unknown:
        parser.error(f"no peer {unknown[0]!r}; there are {', '.join(MODULES)}")
    names = given.names or list(MODULES)
    try:
        require(names)
        repeats = given.repeats or (1 if given.quick else REPEATS)
        visits = visit_all(names, repeats=repeats, quick=given.quick)
    except UnavailableError as error:
        sys.stderr.write(f"{error}{f' ({error.hint})' if error.hint else ''}\n")
        return 1
    show(visits)
    whole = not given.quick and repeats >= REPEATS and set(names) == set(MODULES)
    name = "peers" if whole else "peers-part"
    code = publish(name, figures.bars(visits), also=figures.plain(visits))
    # Late: it needs a package that only the environment of the peers has, and `require` says so first.
    from tests.bench.peers import chart  # noqa: PLC0415

    chart.draw(visits, DOCS_CHART if whole else RESULTS / f"{name}.png")
    return code


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.chaos.soak [--minutes N]``: constant load, and no process that grows.

Memory is what a process and its children have for themselves (USS); of a node that is the node and its sandbox
workers, of Postgres the server and its backends. After a warm-up a straight line is laid through the samples: what it
rises by over the rest of the run has a bound, for memory, the number of processes and open files. Open files of
Postgres are shown and not judged. Writes build/soak.json; exits 1 when something grew or was lost.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import psutil
from rich.console import Console
from rich.table import Table

from tests.chaos.facts import read_facts
from tests.chaos.judge import judge
from tests.chaos.load import Ledger, constant_load
from tests.chaos.row import latencies, p95_ms
from tests.chaos.run import borne, quiet
from tests.chaos.world import Needs, World, running_world
from tests.e2e.stack import ROOT

RESULT = ROOT / "build" / "soak.json"
DEFAULT_MINUTES = 30.0
RATE = 40.0
EVERY_SECONDS = 5.0
WARM_UP_SHARE = 0.25
"""Caches and ledgers fill; what nodes remember of orders is forgotten after two minutes."""
MIN_SAMPLES = 10
MAX_GROWTH_MIB = 4.0
MAX_GROWTH_SHARE = 0.05
"""The larger of the two counts: a process of 60 MiB may rise by 4, Postgres by a twentieth."""
MAX_FILES_GROWTH = 6.0
"""A node keeps a connection to each control plane that it had a session with, and there are four nodes."""
MAX_PROCESSES_GROWTH = 1.0
"""A connection that is never given back is a backend of Postgres more; a worker that is never ended one of a node."""
POSTGRES = "postgres"
FALSE_ALARM = "evidence is not whole"
"""What the check of the evidence writes to a control plane's log, each minute; nothing is wrong here."""
MAX_BORNE_P95_MS = 1000.0
"""Of calls that take 40 ms: above it work piles up, and growth says nothing about leaks."""
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One process and its children at one moment."""

    at: float
    memory_mib: float
    files: int
    processes: int = 1


@dataclass(slots=True, kw_only=True)
class Growth:
    """What one process did over the whole run, warm-up left out."""

    process: str
    samples: int
    memory_mib: float
    memory_growth_mib: float
    files: float
    files_growth: float
    processes: float
    processes_growth: float
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures


def take_sample(pid: int) -> Sample:
    """Read memory and open files of a process and of what it has started."""
    memory, files, processes = 0, 0, 0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            memory += process.memory_full_info().uss
            files += process.num_fds()
            processes += 1
        except psutil.NoSuchProcess:
            continue  # a worker that was replaced meanwhile
    return Sample(at=time.monotonic(), memory_mib=memory / MIB, files=files, processes=processes)


def growth(process: str, samples: Sequence[Sample]) -> Growth:
    """Lay a line through the samples and say what it rises by, and whether that is too much."""
    times = [sample.at for sample in samples]
    memory = [sample.memory_mib for sample in samples]
    files = [float(sample.files) for sample in samples]
    processes = [float(sample.processes) for sample in samples]
    found = Growth(
        process=process,
        samples=len(samples),
        memory_mib=round(statistics.fmean(memory), 1),
        memory_growth_mib=round(rise(times, memory), 2),
        files=round(statistics.fmean(files), 1),
        files_growth=round(rise(times, files), 2),
        processes=round(statistics.fmean(processes), 1),
        processes_growth=round(rise(times, processes), 2),
    )
    bound = max(MAX_GROWTH_MIB, MAX_GROWTH_SHARE * found.memory_mib)
    if len(samples) < MIN_SAMPLES:
        found.failures.append(f"only {len(samples)} samples")
    if found.memory_growth_mib > bound:
        found.failures.append(f"memory grew by {found.memory_growth_mib} MiB, bound {bound:.1f}")
    if found.processes_growth > MAX_PROCESSES_GROWTH:
        found.failures.append(f"processes grew by {found.processes_growth}, bound {MAX_PROCESSES_GROWTH:g}")
    # A backend of Postgres keeps a descriptor of every relation and index that it has touched, for as long as it
    # lives, up to max_files_per_process (1000): that is a cache that fills for hours, as each first meets its rarer
    # statements. What could leak there is a backend, and that is counted; our own processes cache no file.
    if process != POSTGRES and found.files_growth > MAX_FILES_GROWTH:
        found.failures.append(f"open files grew by {found.files_growth}, bound {MAX_FILES_GROWTH:g}")
    return found


def rise(times: Sequence[float], values: Sequence[float]) -> float:
    """Return by how much the line of least squares rises from the first to the last sample."""
    if len(set(times)) < 2:
        return 0.0
    return statistics.linear_regression(times, values).slope * (times[-1] - times[0])


async def watch(world: World, seconds: float) -> dict[str, list[Sample]]:
    """Sample every process until the time is over; returns what came after the warm-up."""
    started = time.monotonic()
    samples: dict[str, list[Sample]] = {name: [] for name in world.processes}
    while (gone := time.monotonic() - started) < seconds:
        for name, child in world.processes.items():
            sample = await asyncio.to_thread(take_sample, child.pid)
            if gone >= seconds * WARM_UP_SHARE:
                samples[name].append(sample)
        await asyncio.sleep(EVERY_SECONDS)
    return samples


async def soak(minutes: float) -> int:
    ledger = Ledger()
    async with running_world(Needs()) as world, world.clients() as clients:
        # Beyond what this machine bears beside its other work, the queue grows and nothing can be flat.
        rate = await borne(clients, ledger, RATE, seconds=EVERY_SECONDS)
        started = time.time()
        async with constant_load(clients, ledger, rate=rate):
            samples = await watch(world, minutes * 60)
        await quiet(world)
        await world.stop_nodes()
        verdict = judge(ledger.calls, await read_facts(world))
        alarms = sum(child.spec.log.read_text().count(FALSE_ALARM) for child in world.processes.values())
    rows = [growth(name, found) for name, found in samples.items()]
    p95 = p95_ms(latencies(ledger), started, time.time())
    summary = {
        "minutes": minutes,
        "rate_per_second": rate,
        "p95_ms": p95,
        "verdict": asdict(verdict),
        "refusals": dict(ledger.refusals),
        "false_alarms": alarms,
        "processes": [{**asdict(row), "ok": row.ok} for row in rows],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show(rows, minutes)
    sys.stdout.write(
        f"{verdict.acknowledged} acknowledged at {rate:g}/s, lost {verdict.lost}, twice {verdict.accepted_twice}, "
        f"stale {verdict.stale_accepted}, receipts missing {verdict.receipts_missing}, "
        f"unsigned {verdict.orders_unsigned}, "
        f"p95 {p95} ms, refusals {sum(ledger.refusals.values())}, false alarms {alarms}\n"
    )
    if (p95 or 0.0) >= MAX_BORNE_P95_MS:
        sys.stdout.write(
            "this machine did not bear the load beside its other work: what grew may be the queue\n"
        )
    clean = verdict.is_clean and not ledger.refusals and alarms == 0
    return 0 if clean and all(row.ok for row in rows) else 1


def show(rows: Sequence[Growth], minutes: float) -> None:
    table = Table(title=f"{minutes:g} minutes of load")
    for column in ("process", "memory (MiB)", "grew by", "open files", "grew by", "processes", "grew by", ""):
        table.add_column(column, justify="left" if column == "process" else "right")
    for row in rows:
        table.add_row(
            row.process,
            f"{row.memory_mib:.1f}",
            f"{row.memory_growth_mib:+.2f}",
            f"{row.files:.1f}",
            f"{row.files_growth:+.2f}",
            f"{row.processes:.1f}",
            f"{row.processes_growth:+.2f}",
            "ok" if row.ok else "[red]" + "; ".join(row.failures) + "[/red]",
        )
    Console(width=150, file=sys.stdout).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    return asyncio.run(soak(parser.parse_args().minutes))


if __name__ == "__main__":
    sys.exit(main())

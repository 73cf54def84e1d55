"""The promises of the sandbox's speed: compute, warm runs, replaced workers, busy neighbours, memory, many agents.

``python -m tests.bench.sandbox`` measures all of them, ``… sandbox workers`` only those of the named parts.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import wasmtime

from data_plane.sandbox.domain import RunRequest, RunResult
from data_plane.sandbox.pool import WorkerPool
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.limits import Limits
from shared.outcomes import LimitName, Outcome
from tests.bench.agents import many_agents
from tests.bench.engine import HELLO, compile_module, opener_of, pool_of, worker_report
from tests.bench.kernels.build import build, kernel_names
from tests.bench.kernels.measure import time_kernels
from tests.bench.kernels.promise import figures_of
from tests.bench.report import Figure, measured, median, publish, quantile

REPEATS: Final = 5
SPIN: Final = '(module (memory (export "memory") 1) (func (export "_start") (loop br 0)))'
KILLS: Final = 30
"""Killed and replaced workers of one repeat."""
ANY_WALL: Final = RunRequest()
SHORT_WALL: Final = RunRequest(limits=Limits(wall_ms=20))
LONG_WALL: Final = RunRequest(limits=Limits(wall_ms=200))
SHORT_RUNS: Final = 5000
"""The promise says 1,000, but those are over before a loop has met its limit twice."""
NEIGHBOUR_REPEATS: Final = 7
CORES: Final = len(os.sched_getaffinity(0))

Run = Callable[[], Awaitable[RunResult]]


class Modules:
    """Compiled modules in a folder, each opened anew for every load."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    async def runner(self, pool: WorkerPool, text: str, request: RunRequest = ANY_WALL) -> Run:
        """Return a function that runs the module of this text once."""
        module = bytes(wasmtime.wat2wasm(text))
        self._count += 1
        artifact = await compile_module(module, self._folder, f"module-{self._count}")

        def run() -> Awaitable[RunResult]:
            return pool.run(
                tenant_id=TenantId("bench"),
                module_digest=sha256_digest(module),
                artifact=opener_of(artifact),
                request=request,
            )

        return run


async def succeed(run: Run) -> None:
    result = await run()
    assert result.outcome is Outcome.SUCCEEDED, result


async def be_killed(run: Run) -> RunResult:
    result = await run()
    assert result.limit is LimitName.WALL_MS, result
    return result


async def warm_runs(folder: Path) -> list[Figure]:
    """A blocking client beside a warm worker: request in to outcome out."""
    artifact = await compile_module(bytes(wasmtime.wat2wasm(HELLO)), folder, "hello")
    reports = [worker_report(artifact) for _ in range(REPEATS)]
    p50 = [report["round_trip_us_p50"] for report in reports]
    resident = [report["idle_resident_bytes"] / 2**20 for report in reports]
    return [
        measured("warm run of hello, request in to outcome out: p50", p50, "µs", at_most=100),
        measured("idle memory per worker, after its runs", resident, "MiB", at_most=12),
    ]


def _ends(wall_ms: int) -> RunRequest:
    return RunRequest(limits=Limits(wall_ms=wall_ms))


async def replaced_workers(folder: Path) -> list[Figure]:
    """What a kill costs: the next run on a new worker, without a spare and with one; and how late the kill came."""
    fresh: list[float] = []
    spared: list[float] = []
    late, late_inside = [], []
    for spares, times in ((0, fresh), (1, spared)):
        # With one warm worker at most, each run of one module ends the worker of the other: the run after a kill
        # never finds an old process to go on with.
        async with pool_of(1, spares=spares, max_warm_workers=1) as pool:
            modules = Modules(folder)
            hello = await modules.runner(pool, HELLO)
            spin = await modules.runner(pool, SPIN, SHORT_WALL)
            for _ in range(REPEATS):
                kills = [await kill_and_go_on(spin, hello) for _ in range(KILLS)]
                times.append(quantile([kill.next_ms for kill in kills], 0.5))
                late.append(max(kill.late_ms for kill in kills))
                late_inside.append(quantile([kill.late_inside_ms for kill in kills], 0.5))
    return [
        measured(
            "killed worker: from its outcome to the end of the next run in a new process, no spare, p50",
            fresh,
            "ms",
            beside=("with a spare", spared),
            at_most=15,
        ),
        measured(
            f"runaway guest, how late its outcome is (start of its worker included), slowest of {KILLS}",
            late,
            "ms",
            beside=("worker's clock, p50", late_inside),
            at_most=20,
        ),
    ]


class Kill(NamedTuple):
    """One runaway guest and the run after it."""

    next_ms: float
    late_ms: float
    late_inside_ms: float


async def kill_and_go_on(spin: Run, hello: Run) -> Kill:
    started = time.perf_counter()
    result = await be_killed(spin)
    killed = time.perf_counter()
    await succeed(hello)
    wall = SHORT_WALL.limits.wall
    return Kill(
        next_ms=(time.perf_counter() - killed) * 1e3,
        late_ms=(killed - started - wall.total_seconds()) * 1e3,
        late_inside_ms=(result.resources.wall - wall).total_seconds() * 1e3,
    )


async def busy_neighbours(folder: Path) -> list[Figure]:
    """Two workers looping for ever beside short runs on two others, and the same short runs alone."""
    losses, alone_rates, beside_rates = [], [], []
    async with pool_of(4) as pool:
        modules = Modules(folder)
        hello = await modules.runner(pool, HELLO)
        spin = await modules.runner(pool, SPIN, LONG_WALL)
        await short_rate(hello)
        after = await short_rate(hello)
        for _ in range(NEIGHBOUR_REPEATS):
            before = after
            beside, taken = await rate_beside_loops(hello, spin)
            after = await short_rate(hello)
            # What else the machine does shows, so the short runs alone are looked at on both sides.
            alone = (before + after) / 2
            losses.append(100 * (1 - beside / (alone * (1 - taken))))
            alone_rates.append(alone)
            beside_rates.append(beside)
    return [
        Figure(
            figure=f"{SHORT_RUNS:,} short runs on two workers, two others looping: throughput lost beyond their CPU",
            value=median(losses),
            unit="%",
            bar="≤ 15 %",
            bar_ok=median(losses) <= 15,
            repeats=NEIGHBOUR_REPEATS,
        ),
        measured("the same: short runs beside the loops", beside_rates, "/s", beside=("alone", alone_rates)),
    ]


async def short_rate(run: Run) -> float:
    """Return short runs per second, two at a time."""

    async def some() -> None:
        for _ in range(SHORT_RUNS // 2):
            await succeed(run)

    started = time.perf_counter()
    await asyncio.gather(some(), some())
    return SHORT_RUNS / (time.perf_counter() - started)


async def rate_beside_loops(run: Run, spin: Run) -> tuple[float, float]:
    """Return short runs per second beside two loops, and the share of all cores that the loops took meanwhile."""
    over = asyncio.Event()
    cpu = timedelta(0)

    async def loop() -> None:
        nonlocal cpu
        while not over.is_set():
            cpu += (await be_killed(spin)).resources.cpu

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(loop())
        rate = await short_rate(run)
        over.set()
    # The last loops end a little after the short runs, so their time is set against the whole.
    return rate, cpu.total_seconds() / (CORES * (time.perf_counter() - started))


async def kernels(_: Path) -> list[Figure]:
    built = [build(name) for name in kernel_names()]
    return figures_of(await time_kernels(built))


PARTS: Final = {
    "kernels": kernels,
    "runs": warm_runs,
    "workers": replaced_workers,
    "neighbours": busy_neighbours,
    "agents": many_agents,
}


async def measure(names: list[str]) -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            figures += await PARTS[name](Path(folder))
    return figures


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    unknown = set(names) - set(PARTS)
    if unknown:
        sys.stderr.write(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}\n")
        return 2
    loads = os.getloadavg()
    code = publish("sandbox", asyncio.run(measure(names)))
    sys.stdout.write(
        f"load averages before {loads[0]:.1f}, after {os.getloadavg()[0]:.1f} on {CORES} cores\n"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())

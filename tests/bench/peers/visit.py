"""One visit: one peer, freshly installed, is started, measured once and stopped, by a client process of its own.

`python -m tests.bench.peers.visit NAME OUT.json [--quick]`. Fresh data each time, so that no peer carries a history
and each repeat has a cold start of its own.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import AgentFactoryError
from tests.bench.peers import job, memory
from tests.bench.peers.load import LONGEST, Submit, many_in_flight, one_in_flight, open_loop, schedule
from tests.bench.peers.machine import Used
from tests.bench.peers.peer import MODULES, Peer, System, make
from tests.bench.report import quantile

IN_FLIGHT = 64
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
FILE_BYTES = 1024 * 1024
BLOCK_BYTES = 8192
START_SECONDS = 90.0
WATCH_SECONDS = 0.5
SLACK_SECONDS = 60.0
"""For the last jobs of a loop, beyond the time that it measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to look. Seconds, where nothing else is said."""

    warm_up_jobs: int = 50
    alone_jobs: int = 400
    alone: float = 5.0
    warm_up: float = 1.5
    loaded: float = 8.0
    half: float = 6.0
    syncs: int = 200


THOROUGH = Effort()
QUICK = Effort(warm_up_jobs=10, alone_jobs=50, alone=2.0, warm_up=1.0, loaded=3.0, half=2.0, syncs=50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What one visit found: milliseconds, jobs per second, megabytes (10^6) of PSS under load."""

    peer: str
    durable: bool
    cold_start_s: float
    alone_p50_ms: float
    alone_p95_ms: float
    alone_p99_ms: float
    loaded_per_s: float
    loaded_p95_ms: float
    half_p50_ms: float
    half_p95_ms: float
    memory_mb: dict[str, float]
    """By process tree, at 64 in flight."""
    fdatasync_p50_us: float
    client_cpus: float
    """What the client used at 64 in flight: near 1 it, not the peer, would be the bound."""
    others_cpus: float
    """CPUs that others kept busy meanwhile."""
    jobs: int
    """All that were sent; every one came back right."""
    streamed_per_s: float | None = None

    @property
    def total_memory_mb(self) -> float:
        return sum(self.memory_mb.values())


def read(path: Path) -> Visit:
    return Visit(**json.loads(path.read_text(encoding="utf-8")))


async def visit(name: str, folder: Path, effort: Effort) -> Visit:
    """Measure one peer.

    Raises:
        WrongResultError: It answered wrongly once.
        UnavailableError: A server that it needs cannot be had.
    """
    peer = make(name, folder)
    async with AsyncExitStack() as kept:
        await peer.prepare(kept)
        sync_us = await asyncio.to_thread(fdatasync_us, folder, effort.syncs)
        async with AsyncExitStack() as running:
            return await watched(peer, _start_and_measure(name, peer, running, effort, sync_us))


async def watched(peer: Peer, work: Coroutine[Any, Any, Visit]) -> Visit:
    """Return what `work` returns.

    Raises:
        UnavailableError: A process of the peer ended meanwhile; without it the work would wait in vain.
    """
    task = asyncio.create_task(work)
    while not (await asyncio.wait({task}, timeout=WATCH_SECONDS))[0]:
        ended = [child for child in peer.children if not child.is_running]
        if ended:
            task.cancel()
            raise ended[0].died()
    return task.result()


async def _start_and_measure(
    name: str, peer: Peer, running: AsyncExitStack, effort: Effort, sync_us: float
) -> Visit:
    jobs = job.bodies()
    started = time.perf_counter()
    async with asyncio.timeout(START_SECONDS):
        system = await peer.start(running)
        await one_in_flight(system.submit, jobs, count=1, seconds=0)
    cold_start = time.perf_counter() - started
    return await _measure(name, peer, system, jobs, effort, cold_start, sync_us)


async def _measure(
    name: str,
    peer: Peer,
    system: System,
    jobs: Iterator[bytes],
    effort: Effort,
    cold_start: float,
    sync_us: float,
) -> Visit:
    async with asyncio.timeout(effort.alone * 2 + SLACK_SECONDS):
        await one_in_flight(system.submit, jobs, count=effort.warm_up_jobs, seconds=effort.alone)
        alone = await one_in_flight(system.submit, jobs, count=effort.alone_jobs, seconds=effort.alone)
    used: dict[str, int] = {}

    async def look() -> None:
        used.update(await asyncio.to_thread(memory.trees_bytes, system.roots))

    roots = tuple(system.roots.values())
    before = Used.now(roots)

    async def loaded(submit: Submit) -> tuple[float, float]:
        async with asyncio.timeout(effort.warm_up + effort.loaded * LONGEST + SLACK_SECONDS):
            found = await many_in_flight(
                submit,
                jobs,
                in_flight=IN_FLIGHT,
                warm_up=effort.warm_up,
                seconds=effort.loaded,
                under_load=look,
            )
        return found.rate, quantile(found.took, 0.95) * 1e3

    client = time.process_time(), time.perf_counter()
    rate, loaded_p95 = await loaded(system.submit)
    client_cpus = (time.process_time() - client[0]) / (time.perf_counter() - client[1])
    async with asyncio.timeout(effort.half + SLACK_SECONDS):
        half = await open_loop(system.submit, jobs, schedule(rate / 2, effort.half))
    others = Used.now(roots).others_since(before)
    memory_mb = {tree: size / 1e6 for tree, size in used.items()}
    streamed = (await loaded(system.streamed))[0] if system.streamed is not None else None
    return Visit(
        peer=name,
        durable=peer.durable,
        cold_start_s=cold_start,
        alone_p50_ms=quantile(alone, 0.5) * 1e3,
        alone_p95_ms=quantile(alone, 0.95) * 1e3,
        alone_p99_ms=quantile(alone, 0.99) * 1e3,
        loaded_per_s=rate,
        loaded_p95_ms=loaded_p95,
        half_p50_ms=quantile(half, 0.5) * 1e3,
        half_p95_ms=quantile(half, 0.95) * 1e3,
        memory_mb=memory_mb,
        fdatasync_p50_us=sync_us,
        client_cpus=client_cpus,
        others_cpus=others,
        jobs=job.number_of(next(jobs)),
        streamed_per_s=streamed,
    )


def fdatasync_us(folder: Path, count: int) -> float:
    """Return the median of overwriting 8 KiB of an existing file and syncing it, in microseconds."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        for number in range(count):
            started = time.perf_counter()
            os.pwrite(file.fileno(), os.urandom(BLOCK_BYTES), number * BLOCK_BYTES % FILE_BYTES)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1e6)
    return quantile(times, 0.5)


def require_disk(folder: Path) -> None:
    """Raise AssertionError when a folder lies in memory, where nothing is durable and every figure flatters."""
    resolved = folder.resolve()
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [fields for fields in mounts if resolved.is_relative_to(fields[1])]
    kind = max(above, key=lambda fields: len(fields[1]))[2]
    if kind in IN_MEMORY:
        raise AssertionError(f"{folder} is {kind}: set TMPDIR to a folder on a disk")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers.visit", description=__doc__)
    parser.add_argument("name", choices=MODULES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentfactory-peers-") as name:
        folder = Path(name)
        # Postgres runs as a user of its own where this runs as root, and must get through.
        folder.chmod(0o711)
        require_disk(folder)
        try:
            found = asyncio.run(visit(given.name, folder, QUICK if given.quick else THOROUGH))
        except BaseException as error:
            show_logs(folder / "logs")
            if isinstance(error, AgentFactoryError):
                hint = f" ({error.hint})" if error.hint else ""
                sys.stderr.write(f"{given.name}: {error}{hint}\n")
                return 1
            raise
    given.out.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    return 0


def show_logs(logs: Path) -> None:
    for log in sorted(logs.glob("*.log")):
        sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")


if __name__ == "__main__":
    sys.exit(main())

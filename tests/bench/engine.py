"""What a run costs in the engine and in a worker, beside wasmtime-py running the same bytes in the same process run."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import wasmtime
from agentfactory_engine import worker_path

from data_plane.sandbox.cgroup import open_groups
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import RunRequest
from data_plane.sandbox.engine import read_engines
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.ports import ArtifactOpener
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.manifest import Profile
from tests.bench.report import Figure, measured, median, publish, quantile

REPEATS = 5
RUNS = 2000
HELLO = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "hello, world\\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 8))
    (i32.store (i32.const 4) (i32.const 13))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 24)))))
"""
NOOP = '(module (memory (export "memory") 1) (func (export "_start")))'

DATA_BYTES = 12 * 2**20
"""As much as a saved Python agent has."""


def large() -> bytes:
    """Return a module of which a run reads and writes one page of many."""
    text = f"""
    (module
      (memory (export "memory") 224)
      (data (i32.const 1024) "{"x" * DATA_BYTES}")
      (func (export "_start") (i32.store (i32.const 4096) (i32.load (i32.const 8192)))))
    """
    return bytes(wasmtime.wat2wasm(text))


def wasmtime_run_cpu_us(module_bytes: bytes) -> float:
    """Return the CPU microseconds of one run in a fresh store, instance and WASI context."""
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, module_bytes)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()

    def once() -> None:
        store = wasmtime.Store(engine)
        wasi = wasmtime.WasiConfig()
        wasi.stdout_file = "/dev/null"
        store.set_wasi(wasi)
        start = linker.instantiate(store, module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)

    for _ in range(100):
        once()
    started = time.thread_time()
    for _ in range(RUNS):
        once()
    return (time.thread_time() - started) / RUNS * 1e6


async def compile_module(module_bytes: bytes, folder: Path, name: str) -> Path:
    source, artifact = folder / f"{name}.wasm", folder / f"{name}.artifact"
    source.write_bytes(module_bytes)
    with source.open("rb") as module_file, artifact.open("wb") as artifact_file:
        await WorkerCompiler(worker_path=worker_path()).compile(
            module_fd=module_file.fileno(), artifact_fd=artifact_file.fileno()
        )
    return artifact


def worker_report(artifact: Path, *given: Path, runs: int = RUNS) -> dict[str, float]:
    """Return what the worker says of runs that are given the content of a file."""
    done = subprocess.run(
        [worker_path(), "bench", str(artifact), str(runs), *map(str, given)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    report: dict[str, float] = json.loads(done.stdout)
    return report


@asynccontextmanager
async def pool_of(
    slots: int, *, spares: int = 1, max_warm_workers: int | None = None
) -> AsyncIterator[WorkerPool]:
    engine = (await read_engines(worker_path()))[Profile.DEFAULT]
    groups, _ = open_groups()  # as a node has them
    async with WorkerPool(
        worker_path=worker_path(),
        engine=engine,
        slots=slots,
        spares=spares,
        max_warm_workers=max_warm_workers,
        groups=groups,
    ) as pool:
        yield pool
    if groups is not None:
        groups.close()


def opener_of(artifact: Path) -> ArtifactOpener:
    """Return what opens a compiled module anew for every load."""

    async def opener() -> int:
        return os.open(artifact, os.O_RDONLY | os.O_CLOEXEC)

    return opener


async def asyncio_round_trips_us(artifact: Path, digest_of: bytes) -> list[float]:
    """Return the times of warm runs as the node's event loop sees them."""
    request = RunRequest()
    digest = sha256_digest(digest_of)
    times = []
    opener = opener_of(artifact)
    async with pool_of(1) as pool:
        for _ in range(RUNS):
            started = time.perf_counter()
            await pool.run(
                tenant_id=TenantId("default"), module_digest=digest, artifact=opener, request=request
            )
            times.append((time.perf_counter() - started) * 1e6)
    return times[100:]


async def measure(folder: Path) -> list[Figure]:
    hello, noop = wasmtime.wat2wasm(HELLO), wasmtime.wat2wasm(NOOP)
    hello_artifact = await compile_module(bytes(hello), folder, "hello")
    noop_artifact = await compile_module(bytes(noop), folder, "noop")
    large_artifact = await compile_module(large(), folder, "large")
    ours, theirs, blocking, p99, spawn, resident, seen, mapped = [], [], [], [], [], [], [], []
    for _ in range(REPEATS):
        # In turn, so that a slower minute of the machine meets both.
        ours.append(worker_report(hello_artifact)["engine_run_cpu_us_median"])
        theirs.append(wasmtime_run_cpu_us(bytes(hello)))
        mapped.append(worker_report(large_artifact)["engine_run_cpu_us_median"])
        warm = worker_report(noop_artifact)
        blocking.append(warm["round_trip_us_p50"])
        p99.append(warm["round_trip_us_p99"])
        spawn.append(warm["spawn_to_ready_us_p50"] / 1000)
        resident.append(warm["idle_resident_bytes"] / 2**20)
        seen.append(await asyncio_round_trips_us(noop_artifact, bytes(noop)))
    ratio = median(ours) / median(theirs)
    asyncio_p50 = [quantile(times, 0.5) for times in seen]
    return [
        measured(
            "one run of hello, fresh instance, engine only: CPU",
            ours,
            "µs",
            beside=("wasmtime-py", theirs),
            bar="≤ 40 µs and ≤ half of wasmtime-py",
            bar_ok=median(ours) <= 40 and ratio <= 0.5,
        ),
        measured("one run of a module with 12 MiB of data, engine only: CPU", mapped, "µs"),
        measured(
            "request to a warm worker and back, no-op, blocking client: p50", blocking, "µs", at_most=100
        ),
        measured("the same: p99", p99, "µs"),
        measured(
            "the same as the asyncio node sees it: p50", asyncio_p50, "µs", beside=("blocking", blocking)
        ),
        measured("worker: spawn to ready, p50", spawn, "ms", at_most=10),
        measured("worker: resident memory when idle", resident, "MiB", at_most=12),
    ]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        return publish("engine", asyncio.run(measure(Path(folder))))


if __name__ == "__main__":
    sys.exit(main())

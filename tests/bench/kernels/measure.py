"""Runs the kernels natively, in the sandbox and in wasmtime-py, in turn, and compares times and results."""

import asyncio
import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import wasmtime
from agentfactory_engine import worker_path

from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import RunRequest
from data_plane.sandbox.engine import read_engines
from data_plane.sandbox.pool import WorkerPool
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.limits import MAX_LIMITS, Limits
from shared.manifest import Profile
from shared.outcomes import Outcome
from tests.bench.kernels.build import Kernel

REPEATS: Final = 15
"""The promise says 7; more of them cost seconds, and keep a busy machine out of the minimum on every side."""
RUN_TIMEOUT: Final = 60
PATIENT: Final = Limits(wall_ms=RUN_TIMEOUT * 1000, cpu_ms=RUN_TIMEOUT * 1000, fuel=MAX_LIMITS.fuel)
_FIXED: Final[dict[Profile, dict[str, Any]]] = {
    profile: {"seed": bytes(32), "clock": datetime(2026, 1, 2, tzinfo=UTC)}
    for profile in (Profile.DETERMINISTIC, Profile.PORTABLE)
}


class ResultsDifferError(AssertionError):
    """A kernel left other bits behind than its native build did."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run of a kernel printed."""

    checksum: str
    nanoseconds: int
    cpu: timedelta = timedelta(0)
    """Of the whole run as the sandbox counts it: under a repeatable profile a kernel cannot time itself."""

    @classmethod
    def parse(cls, text: bytes, cpu: timedelta = timedelta(0)) -> "Answer":
        checksum, nanoseconds = text.decode("ascii").split()
        return cls(checksum, int(nanoseconds), cpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The least times of one kernel, in milliseconds, measured inside the kernel."""

    name: str
    native_ms: float
    sandbox_ms: float
    wasmtime_ms: float
    interleaved_ms: float
    profiles: Mapping[Profile, float] = field(default_factory=dict)
    """CPU time of the run under each profile, in milliseconds."""

    def cost_of(self, profile: Profile) -> float:
        """Return how much more CPU time the run takes under a profile than under the default one."""
        return self.profiles[profile] / self.profiles[Profile.DEFAULT]

    @property
    def ratio(self) -> float:
        return self.sandbox_ms / self.native_ms

    @property
    def wasmtime_ratio(self) -> float:
        return self.wasmtime_ms / self.native_ms

    @property
    def interleaved_ratio(self) -> float:
        return self.interleaved_ms / self.native_ms


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def least_ms(answers: Iterable[Answer]) -> float:
    return min(answer.nanoseconds for answer in answers) / 1e6


def same_results(name: str, *sides: Sequence[Answer]) -> None:
    """Check that every run of every side left the same bits.

    Raises:
        ResultsDifferError: One did not; the message names the kernel.
    """
    checksums = {answer.checksum for side in sides for answer in side}
    if len(checksums) != 1:
        raise ResultsDifferError(f"kernel {name} leaves {len(checksums)} different results: {checksums}")


def run_native(kernel: Kernel) -> Answer:
    done = subprocess.run([kernel.native], check=True, capture_output=True, timeout=RUN_TIMEOUT)
    return Answer.parse(done.stdout)


class Peer:
    """The kernel in wasmtime-py: compiled once, a fresh store for each run."""

    def __init__(self, kernel: Kernel, folder: Path) -> None:
        self._engine = wasmtime.Engine()
        self._module = wasmtime.Module(self._engine, kernel.module.read_bytes())
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._output = folder / "wasmtime.out"

    def run(self) -> Answer:
        store = wasmtime.Store(self._engine)
        wasi = wasmtime.WasiConfig()
        wasi.stdout_file = str(self._output)
        store.set_wasi(wasi)
        start = self._linker.instantiate(store, self._module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        try:
            start(store)
        except wasmtime.ExitTrap as ended:
            if ended.code != 0:
                raise
        del store, wasi
        return Answer.parse(self._output.read_bytes())


class Sandboxed:
    """The kernel in a pool's worker, as a node runs it."""

    def __init__(self, pool: WorkerPool, module: Path, artifact: Path, profile: Profile) -> None:
        self._pool = pool
        self._request = RunRequest(limits=PATIENT, profile=profile, **_FIXED.get(profile, {}))
        self._digest = sha256_digest(module.read_bytes())
        self._artifact = artifact

    @classmethod
    async def compile(
        cls, pool: WorkerPool, module: Path, folder: Path, profile: Profile = Profile.DEFAULT
    ) -> "Sandboxed":
        artifact = folder / f"{module.stem}.{profile}"
        with module.open("rb") as module_file, artifact.open("wb") as artifact_file:
            await WorkerCompiler(worker_path=worker_path()).compile(
                module_fd=module_file.fileno(), artifact_fd=artifact_file.fileno(), profile=profile
            )
        return cls(pool, module, artifact, profile)

    async def run(self) -> Answer:
        result = await self._pool.run(
            tenant_id=TenantId("bench"),
            module_digest=self._digest,
            artifact=self._open,
            request=self._request,
        )
        assert result.outcome is Outcome.SUCCEEDED, result
        return Answer.parse(result.stdout, result.resources.cpu)

    async def _open(self) -> int:
        return os.open(self._artifact, os.O_RDONLY | os.O_CLOEXEC)


class Contest:
    """One kernel on every side, and what its runs printed so far."""

    def __init__(
        self,
        kernel: Kernel,
        sandboxed: Mapping[Profile, Sandboxed],
        peer: Peer,
        interleaved: Sandboxed,
    ) -> None:
        self._kernel = kernel
        self._sandboxed = sandboxed
        self._peer = peer
        self._interleaved = interleaved
        self._answers: list[list[Answer]] = []
        self._of_profiles: list[dict[Profile, Answer]] = []

    @classmethod
    async def prepare(cls, pool: WorkerPool, kernel: Kernel, folder: Path) -> "Contest":
        return cls(
            kernel,
            {profile: await Sandboxed.compile(pool, kernel.module, folder, profile) for profile in Profile},
            Peer(kernel, folder),
            await Sandboxed.compile(pool, kernel.interleaved, folder),
        )

    async def run(self) -> None:
        """Run every side once, one right after the other."""
        native = await asyncio.to_thread(run_native, self._kernel)
        ours = {profile: await sandboxed.run() for profile, sandboxed in self._sandboxed.items()}
        theirs = await asyncio.to_thread(self._peer.run)
        self._answers.append([native, ours[Profile.DEFAULT], theirs, await self._interleaved.run()])
        self._of_profiles.append(ours)

    def timing(self) -> Timing:
        """Return the least time of each side.

        Raises:
            ResultsDifferError: The sides disagree about the result.
        """
        same_results(self._kernel.name, *self._answers, *(tuple(one.values()) for one in self._of_profiles))
        native, ours, theirs, interleaved = (least_ms(side) for side in zip(*self._answers, strict=True))
        return Timing(
            name=self._kernel.name,
            native_ms=native,
            sandbox_ms=ours,
            wasmtime_ms=theirs,
            interleaved_ms=interleaved,
            profiles={
                profile: min(one[profile].cpu for one in self._of_profiles) / timedelta(milliseconds=1)
                for profile in Profile
            },
        )


async def time_kernels(kernels: Sequence[Kernel], *, repeats: int = REPEATS) -> list[Timing]:
    """Measure all kernels in rounds, so that a slow second of the machine spoils one run of each and no kernel."""
    engines = await read_engines(worker_path())
    with tempfile.TemporaryDirectory() as folder:
        async with WorkerPool(
            worker_path=worker_path(), engine=engines[Profile.DEFAULT], engines=engines, slots=1
        ) as pool:
            contests = [await Contest.prepare(pool, kernel, Path(folder)) for kernel in kernels]
            for _ in range(repeats):
                for contest in contests:
                    await contest.run()
    return [contest.timing() for contest in contests]

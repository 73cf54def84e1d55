"""Random modules and the guests of the tests, each run twice under every repeatable profile and compared.

By hand, without a bound: `python -m tests.integration.sandbox.random_guests [SECONDS [FIRST [WORKER]]]`. What differs is
named by the number that makes it again. WORKER is another build of the same engine to compare with, for instance one that
gives every module an image.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agentfactory_engine import worker_path

from data_plane.artifacts.memory import memory_file
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import EngineInfo, RunRequest, RunResult
from data_plane.sandbox.engine import read_engines
from data_plane.sandbox.pool import WorkerPool
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.limits import Limits
from shared.manifest import Profile
from shared.outcomes import LimitName

ROOT: Final = Path(__file__).parents[3]
CRATE: Final = ROOT / "tests" / "guests" / "random"
REPEATABLE: Final = (Profile.DETERMINISTIC, Profile.PORTABLE)
AT_ONCE: Final = 50
"""Modules that are made by one call of the generator."""
LIMITS: Final = Limits(fuel=2_000_000, memory_bytes=256 * 1024 * 1024, table_elements=100_000)
_NEVER_COMPARED: Final = frozenset({LimitName.WALL_MS, LimitName.CPU_MS})


class DifferenceError(Exception):
    """The same run was not the same twice."""


@dataclass(slots=True)
class Counts:
    """What was compared."""

    modules: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


class Twice:
    """Two pools that share nothing but the binary, and not even that where another is named."""

    def __init__(self, engines: Mapping[Profile, EngineInfo], pools: tuple[WorkerPool, WorkerPool]) -> None:
        self.engines = engines
        self._pools = pools
        self.counts = Counts()

    async def compare(self, module: bytes, *args: str, stdin: bytes = b"x" * 100) -> None:
        """Compile the module and run it on both pools under each repeatable profile.

        Raises:
            DifferenceError: The artifact, outcome, output, log or fuel differ between the pools.
        """
        said = [await self._of_profile(module, profile, args, stdin) for profile in REPEATABLE]
        outcome, limit = said[0][:2]
        self.counts.modules += 1
        name = str(limit or outcome)
        self.counts.outcomes[name] = self.counts.outcomes.get(name, 0) + 1

    async def _of_profile(
        self, module: bytes, profile: Profile, args: tuple[str, ...], stdin: bytes
    ) -> tuple[object, ...]:
        artifacts = [await _compile(module, profile) for _ in self._pools]
        try:
            if len({sha256_digest(os.pread(fd, 1 << 28, 0)) for fd in artifacts}) != 1:
                raise DifferenceError(f"{profile}: the same module compiles to two artifacts")
            request = RunRequest(
                args=("guest", *args),
                env=(("B", "1"), ("A", "2")),
                stdin=stdin,
                limits=LIMITS,
                profile=profile,
                seed=bytes(range(32)),
                clock=datetime(2026, 1, 2, tzinfo=UTC),
            )
            runs = zip(self._pools, artifacts, strict=True)
            first, second = [_said(await _run(pool, module, fd, request)) for pool, fd in runs]
        finally:
            for artifact in artifacts:
                os.close(artifact)
        if first != second:
            raise DifferenceError(f"{profile}: {_short(first)} is not {_short(second)}")
        return first


def _short(said: tuple[object, ...]) -> str:
    return repr(said)[:300]


def _said(result: RunResult) -> tuple[object, ...]:
    """Return all of a run that must be the same again."""
    if result.limit in _NEVER_COMPARED:
        raise DifferenceError(f"the run ended by {result.limit}: fuel bounds it too loosely")
    used = result.resources
    return (
        result.outcome,
        result.limit,
        result.exit_code,
        result.trap,
        used.fuel,
        used.peak_memory_bytes,
        used.random_bytes,
        result.stdout,
        result.stderr,
    )


async def _run(pool: WorkerPool, module: bytes, artifact: int, request: RunRequest) -> RunResult:
    async def opener() -> int:
        return os.dup(artifact)

    return await pool.run(
        tenant_id=TenantId("random"), module_digest=sha256_digest(module), artifact=opener, request=request
    )


async def _compile(module: bytes, profile: Profile) -> int:
    source, artifact = memory_file("module", module), os.memfd_create("artifact")
    try:
        await WorkerCompiler(worker_path=worker_path()).compile(
            module_fd=source, artifact_fd=artifact, profile=profile
        )
    except BaseException:
        os.close(artifact)
        raise
    finally:
        os.close(source)
    return artifact


@asynccontextmanager
async def twice(other_worker: str | None = None) -> AsyncIterator[Twice]:
    engines = await read_engines(worker_path())
    pools = tuple(
        WorkerPool(
            worker_path=path,
            engine=engines[Profile.DEFAULT],
            engines=engines,
            slots=1,
            max_warm_workers=1,
        )
        for path in (worker_path(), other_worker or worker_path())
    )
    async with pools[0], pools[1]:
        yield Twice(engines, (pools[0], pools[1]))


def build_generator(cargo_environment: Mapping[str, str]) -> Path:
    """Build the generator, a crate of its own, and return its path."""
    target = Path(cargo_environment["CARGO_TARGET_DIR"])
    command = ["cargo", "build", "--locked", "--quiet"]
    subprocess.run(
        [*command, "--manifest-path", str(CRATE / "Cargo.toml")],
        check=True,
        env={**os.environ, **cargo_environment},
    )
    return target / "debug" / "agentfactory-random-guests"


async def compare_random(
    generator: Path, *, first: int, seconds: float, other_worker: str | None = None
) -> Counts:
    """Compare the modules from number `first` on until the time is over.

    Raises:
        DifferenceError: One of them differs; the message names it.
    """
    ends_at = time.monotonic() + seconds
    async with twice(other_worker) as comparison:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for start in range(first, 2**63, AT_ONCE):
                subprocess.run([generator, str(start), str(AT_ONCE), folder], check=True)
                for number in range(start, start + AT_ONCE):
                    if time.monotonic() >= ends_at:
                        return comparison.counts
                    path = folder / f"{number}.wasm"
                    try:
                        await comparison.compare(path.read_bytes())
                    except Exception as error:
                        raise DifferenceError(f"module {number}: {error!r}") from error
                    path.unlink()
    raise AssertionError


def main() -> None:
    """Compare until the time is over, and say what was compared."""
    from tests.tools.stages import cargo_environment  # noqa: PLC0415 - the tests do not need it

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else float("inf")
    first = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() // 1_000_000
    other = sys.argv[3] if len(sys.argv) > 3 else None
    generator = build_generator(cargo_environment())
    sys.stdout.write(f"from module {first} on\n")
    sys.stdout.write(
        f"{asyncio.run(compare_random(generator, first=first, seconds=seconds, other_worker=other))}\n"
    )


if __name__ == "__main__":
    main()

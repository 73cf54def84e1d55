"""Real worker processes and real modules, compiled once per session."""

import asyncio
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
import wasmtime
from agentfactory_engine import worker_path

from cli.guests.wasm import unsigned
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import EngineInfo, RunRequest, RunResult
from data_plane.sandbox.engine import read_engines
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.process import User, WorkerProcess
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.limits import Limits
from shared.manifest import Profile

GUESTS = Path(__file__).parents[2] / "guests"
TENANT = TenantId("tenant-a")

Run = Callable[..., Coroutine[None, None, RunResult]]


class Artifacts:
    """Compiles modules into a folder; the same module only once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.opened = 0

    async def of(self, module: bytes, profile: Profile = Profile.DEFAULT) -> Path:
        path = self._folder / f"{hashlib.sha256(module).hexdigest()}-{profile}"
        if not path.exists():
            (self._folder / "module.wasm").write_bytes(module)
            module_fd = os.open(self._folder / "module.wasm", os.O_RDONLY)
            artifact_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                await WorkerCompiler(worker_path=worker_path()).compile(
                    module_fd=module_fd, artifact_fd=artifact_fd, profile=profile
                )
            except BaseException:
                path.unlink()
                raise
            finally:
                os.close(module_fd)
                os.close(artifact_fd)
        return path

    def opener(self, path: Path) -> Callable[[], Coroutine[None, None, int]]:
        async def open_artifact() -> int:
            self.opened += 1
            return os.open(path, os.O_RDONLY)

        return open_artifact


def inside(process: WorkerProcess) -> int:
    """The worker behind its monitor, by the number it has out here."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (pid,) = map(int, children)
    return pid


def wat(text: str) -> bytes:
    """A module from its text; it exports what every agent must, unless the text does."""
    return bytes(wasmtime.wat2wasm(text))


def saying(module: bytes, pages: Iterable[int], *, cut: int = 0) -> bytes:
    """The module, and in it which pages its runs write; of the section's last bytes `cut` are missing."""
    content = b"\x12agentfactory.pages" + b"".join(struct.pack("<I", page) for page in pages)
    content = content[: len(content) - cut]
    return module + b"\0" + unsigned(len(content)) + content


@pytest.fixture(scope="session")
def probe() -> bytes:
    return (GUESTS / "probe.wasm").read_bytes()


@pytest.fixture(scope="session")
def engines() -> Mapping[Profile, EngineInfo]:
    return asyncio.run(read_engines(worker_path()))


@pytest.fixture(scope="session")
def engine(engines: Mapping[Profile, EngineInfo]) -> EngineInfo:
    return engines[Profile.DEFAULT]


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def artifacts(artifact_folder: Path) -> Artifacts:
    return Artifacts(artifact_folder)


@pytest.fixture
async def pool(engine: EngineInfo, engines: Mapping[Profile, EngineInfo]) -> AsyncIterator[WorkerPool]:
    # Directories of the tests belong to whoever runs them.
    async with WorkerPool(
        worker_path=worker_path(), engine=engine, engines=engines, slots=2, user=User.OWN
    ) as running:
        yield running


@pytest.fixture
def run(pool: WorkerPool, artifacts: Artifacts, probe: bytes) -> Run:
    """Run the probe (or another module) once: ``await run("exit", "3", wall=…, stdin=…)``."""

    async def run_once(
        *args: str, module: bytes | None = None, tenant: TenantId = TENANT, **options: object
    ) -> RunResult:
        code = probe if module is None else module
        limits = Limits(**{name: options.pop(name) for name in list(options) if name in Limits.__slots__})
        profile = options.setdefault("profile", Profile.DEFAULT)
        if profile is not Profile.DEFAULT:
            options = {"seed": bytes(32), "clock": datetime(2026, 1, 2, tzinfo=UTC), **options}
        streams = {name: options.pop(name) for name in ("sink", "feed", "calls") if name in options}
        return await pool.run(
            tenant_id=tenant,
            module_digest=sha256_digest(code),
            artifact=artifacts.opener(await artifacts.of(code, profile)),
            request=RunRequest(args=("probe", *args), limits=limits, **options),
            stdin=streams.get("feed"),
            sink=streams.get("sink"),
            host_calls=streams.get("calls"),
        )

    return run_once

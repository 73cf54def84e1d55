"""Replays in the sandbox that nodes use: the worker binary that the receipt names, jailed as ever.

Binaries are kept by digest in a folder, so that a receipt can be replayed after the engine was upgraded.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from data_plane.replay.recording import PlayedCalls
from data_plane.sandbox.cgroup import open_groups
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import EngineInfo, RunRequest, RunResult
from data_plane.sandbox.engine import read_engines
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.scratch import ScratchFolders
from shared.digests import Digest, sha256_digest
from shared.errors import InvalidInputError, NotFoundError, PackageAlteredError, UnavailableError
from shared.ids import TenantId
from shared.manifest import Profile
from shared.receipts import EngineIdentity

MAX_WORKERS: Final = 64
"""Of one archive; each is asked what it is."""
MAX_WORKER_BYTES: Final = 256 * 1024 * 1024
_MODE: Final = 0o755
_TENANT: Final = TenantId("replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEngine:
    """Implements `ReplayEngine` by one worker binary."""

    path: str
    engines: Mapping[Profile, EngineInfo]

    @classmethod
    async def open(cls, path: str) -> Self:
        """Ask a binary what it is.

        Raises:
            UnavailableError, WorkerCrashedError: As `read_engines`.
        """
        return cls(path=path, engines=await read_engines(path))

    def engine(self, profile: Profile) -> EngineInfo:
        """See `ReplayEngine.engine`."""
        return self.engines[profile]

    def is_of(self, wanted: EngineIdentity) -> bool:
        """Whether a receipt of this engine, under one of its profiles, would name it so."""
        named = {(one.name, one.version, one.config_digest) for one in self.engines.values()}
        return (wanted.name, wanted.version, wanted.config_digest) in named

    async def run(self, module: bytes, request: RunRequest, calls: PlayedCalls) -> RunResult:
        """See `ReplayEngine.run`."""
        groups, _ = open_groups()
        async with AsyncExitStack() as stack:
            if groups is not None:
                stack.callback(groups.close)
            artifact_fd = await self._compiled(module, request.profile, stack)

            async def artifact() -> int:
                return os.dup(artifact_fd)

            folders = None
            if request.scratch:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentfactory-replay-"))
                folders = ScratchFolders(Path(folder))
            pool = await stack.enter_async_context(
                WorkerPool(
                    worker_path=self.path,
                    engine=self.engines[Profile.DEFAULT],
                    engines=self.engines,
                    slots=1,
                    spares=0,
                    scratch=folders,
                    groups=groups,
                )
            )
            return await pool.run(
                tenant_id=_TENANT,
                module_digest=sha256_digest(module),
                artifact=artifact,
                request=request,
                host_calls=calls,
            )

    async def _compiled(self, module: bytes, profile: Profile, stack: AsyncExitStack) -> int:
        module_fd, artifact_fd = os.memfd_create("module"), os.memfd_create("artifact")
        stack.callback(os.close, module_fd)
        stack.callback(os.close, artifact_fd)
        with os.fdopen(os.dup(module_fd), "wb") as file:
            file.write(module)
        os.lseek(module_fd, 0, os.SEEK_SET)
        compiler = WorkerCompiler(worker_path=self.path)
        await compiler.compile(module_fd=module_fd, artifact_fd=artifact_fd, profile=profile)
        return artifact_fd


async def find_worker(wanted: EngineIdentity | None, *, installed: str, archive: Path) -> WorkerEngine:
    """Return the worker that the receipt names: the installed one, or one of the archive by its digest.

    An archived file is run only when its content is the one that its name says.

    Raises:
        NotFoundError: None of them is that engine; the message names it.
        PackageAlteredError: A file of the archive is not the one of its name.
    """
    current = await WorkerEngine.open(installed)
    if wanted is None or current.is_of(wanted):
        return current
    files = await asyncio.to_thread(archived, archive)
    for path in files:
        found = await WorkerEngine.open(str(path))
        if found.is_of(wanted):
            return found
    raise NotFoundError(
        f"no worker is {wanted.name} {wanted.version} of configuration {wanted.config_digest}: neither the"
        f" installed one nor the {len(files)} in {archive}",
        hint="put the worker of that release there with 'agentfactory sandbox archive'",
    )


def archived(archive: Path) -> list[Path]:
    """Return the worker binaries of an archive, each the one of its name.

    Raises:
        PackageAlteredError: A file is not.
        InvalidInputError: There are more than 64.
    """
    files = sorted(archive.glob("sha256-*")) if archive.is_dir() else []
    if len(files) > MAX_WORKERS:
        raise InvalidInputError(f"{archive} holds {len(files)} workers, the bound is {MAX_WORKERS}")
    for path in files:
        if _name_of(_read(path)) != path.name:
            raise PackageAlteredError(f"{path} is not the worker of its name: remove it")
    return files


def archive_worker(path: Path, archive: Path) -> Digest:
    """Keep a worker binary under its digest; one that is there stays.

    Raises:
        InvalidInputError: It cannot be read, or has more than 256 MiB.
        UnavailableError: The archive cannot be written.
    """
    content = _read(path)
    place = archive / _name_of(content)
    try:
        archive.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            # Under its name it is whole, or not there.
            with tempfile.NamedTemporaryFile(dir=archive, prefix=".new-", delete=False) as file:
                file.write(content)
            Path(file.name).chmod(_MODE)
            shutil.move(file.name, place)
    except OSError as error:
        raise UnavailableError(f"cannot write {place}: {error.strerror}") from error
    return sha256_digest(content)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_WORKER_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_WORKER_BYTES:
        raise InvalidInputError(f"{path} has more than {MAX_WORKER_BYTES} bytes")
    return content


def _name_of(content: bytes) -> str:
    return sha256_digest(content).replace(":", "-")

"""Compiles modules in jailed worker processes, one process for each. Python never compiles."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from data_plane.sandbox import messages
from data_plane.sandbox.cgroup import OutOfMemory, WorkerGroups, check_demand, compile_bounds
from data_plane.sandbox.domain import DEFAULT_COMPILE_LIMITS, CompiledArtifact, CompileLimits, Layer
from data_plane.sandbox.frames import FrameKind, encode
from data_plane.sandbox.link import Link
from data_plane.sandbox.process import Ended, ExitCode, Mode, WorkerProcess
from shared.errors import ModuleInvalidError, ResourceExhaustedError, WorkerCrashedError
from shared.manifest import Profile

logger = logging.getLogger(__name__)

WALL_GRACE: Final = timedelta(seconds=1)
_END_PATIENCE: Final = timedelta(seconds=1)


class WorkerCompiler:
    """The compiler on real processes, at most ``max_concurrent`` at once; others wait."""

    def __init__(
        self,
        *,
        worker_path: str,
        max_concurrent: int = 1,
        require: Sequence[Layer] = (),
        groups: WorkerGroups | None = None,
    ) -> None:
        check_demand(require, groups)
        self._worker_path = worker_path
        self._require = tuple(require)
        self._groups = groups
        self._free = asyncio.Semaphore(max_concurrent)

    async def compile(
        self,
        *,
        module_fd: int,
        artifact_fd: int,
        profile: Profile = Profile.DEFAULT,
        limits: CompileLimits = DEFAULT_COMPILE_LIMITS,
    ) -> CompiledArtifact:
        """See ``Compiler.compile``."""
        async with self._free:
            process = await self._start(limits)
            link = await Link.open(process.socket)
            try:
                async with asyncio.timeout((limits.wall + WALL_GRACE).total_seconds()):
                    payload = messages.compile_payload(limits, profile)
                    link.send(encode(FrameKind.LOAD, payload), (module_fd, artifact_fd))
                    return await self._outcome(process, link, limits)
            except TimeoutError as error:
                raise ModuleInvalidError(f"module does not compile within {limits.wall}") from error
            finally:
                process.kill()
                link.close()
                await process.wait()

    async def _start(self, limits: CompileLimits) -> WorkerProcess:
        if self._groups is None:
            return WorkerProcess.start(self._worker_path, Mode.COMPILE, self._require)
        return await WorkerProcess.start_in_group(
            self._groups, compile_bounds(limits), self._worker_path, Mode.COMPILE, self._require
        )

    async def _outcome(self, process: WorkerProcess, link: Link, limits: CompileLimits) -> CompiledArtifact:
        frames = await link.receive()
        if frames is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_PATIENCE.total_seconds()):
                    await process.wait()
            process.kill()
            raise _error_of(await process.wait(), limits)
        if len(frames) != 1 or frames[0].kind is not FrameKind.OUTCOME:
            raise WorkerCrashedError("compile worker sent something else than one outcome")
        return messages.compiled_of(messages.parse_outcome(frames[0].payload))


def _error_of(ended: Ended, limits: CompileLimits) -> Exception:
    """A module that takes the compiler down with it is the module's fault, as long as a limit did it."""
    if ended.code == ExitCode.ALARM:
        return ModuleInvalidError(f"module does not compile within {limits.wall}")
    if ended.code == ExitCode.CPU_LIMIT:
        return ModuleInvalidError(f"module does not compile within {limits.cpu} of CPU time")
    if ended.code == ExitCode.ABORTED or ended.out_of_memory is OutOfMemory.GROUP:
        return ModuleInvalidError(f"module does not compile within {limits.memory_bytes} bytes of memory")
    if ended.out_of_memory is OutOfMemory.MACHINE:
        return ResourceExhaustedError("this machine had no memory left for the compiler")
    logger.error("compile worker crashed", extra={"how": str(ended), "last_words": ended.last_words})
    return WorkerCrashedError(f"compile worker {ended}")

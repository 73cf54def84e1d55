"""One worker, for one module and tenant: loaded once, run again and again, killed when it must be.

Chooses no worker for a run; that is the pool's part.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path  # noqa: TC003 - imports stay in one place
from typing import Final

from data_plane.sandbox import look, messages
from data_plane.sandbox.calls import CallAnswerer
from data_plane.sandbox.cgroup import GroupBounds, OutOfMemory, WorkerGroups, with_layer
from data_plane.sandbox.claims import check_claims
from data_plane.sandbox.domain import (
    MAX_INPUT_BYTES,
    EngineInfo,
    Layer,
    LayerState,
    RunRequest,
    RunResult,
    Stream,
)
from data_plane.sandbox.frames import END_OF_STDIN, Frame, FrameKind, encode, encode_stdin
from data_plane.sandbox.link import Link
from data_plane.sandbox.ports import ArtifactOpener, HostCalls, OutputSink
from data_plane.sandbox.process import Ended, ExitCode, Mode, User, WorkerProcess
from shared.errors import InvalidInputError, ResourceExhaustedError, WorkerCrashedError
from shared.limits import Limits
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from shared.resources import ResourcesUsed

logger = logging.getLogger(__name__)

LOAD_TIMEOUT: Final = timedelta(seconds=10)
"""From the first frame of a run that loads, added to the run's own time."""
REAP_TIMEOUT: Final = timedelta(seconds=5)
"""How long a killed process may take to be gone."""
NO_GROUP: Final = LayerState(layer=Layer.CGROUP, active=False, detail="this sandbox uses no cgroups")
_PROCESSES: Final = 2
"""Of one worker: the monitor and itself."""
_END_PATIENCE: Final = timedelta(seconds=1)
_OUTPUT_SLACK_BYTES: Final = 64 * 1024
"""What a worker may send beyond its run's limits before it counts as broken."""
_STREAMS: Final = {1: Stream.STDOUT, 2: Stream.STDERR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is to do; see ``Sandbox.run``."""

    artifact: ArtifactOpener
    request: RunRequest
    stdin: AsyncIterator[bytes] | None = None
    sink: OutputSink | None = None
    host_calls: HostCalls | None = None


@dataclass(slots=True)
class _Collected:
    """Output of one run, gathered or passed on."""

    sink: OutputSink | None
    max_bytes: int
    parts: dict[Stream, bytearray] = field(
        default_factory=lambda: {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    )
    seen_bytes: int = 0

    async def take(self, payload: bytes) -> None:
        stream = _STREAMS.get(payload[0]) if payload else None
        if stream is None:
            raise WorkerCrashedError("worker sent output of an unknown stream")
        self.seen_bytes += len(payload) - 1
        if self.seen_bytes > self.max_bytes:
            raise WorkerCrashedError(f"worker sent more than the {self.max_bytes} bytes its run may write")
        if self.sink is None:
            self.parts[stream] += memoryview(payload)[1:]
        else:
            await self.sink(stream, payload[1:])


class Worker:
    """A worker process and its link. After an error, a trap or a kill it is not used again."""

    def __init__(
        self,
        *,
        process: WorkerProcess,
        link: Link,
        engines: Mapping[Profile, EngineInfo],
        wall_grace: timedelta,
        require: Sequence[Layer] = (),
    ) -> None:
        self.process = process
        self._link = link
        self._engines = engines
        self._engine = engines[Profile.DEFAULT]
        """The one of its first run's profile, for its life."""
        self._wall_grace = wall_grace
        self._require = tuple(require)
        self._loaded = False
        self.layers: tuple[LayerState, ...] = ()
        """The walls around it, once it is loaded; those that can be seen from outside have been."""
        self._group_state = NO_GROUP
        self._was_seen = False
        self.runs = 0
        """How often it was asked to run."""
        self.kept_at = 0
        """How many workers its pool had parted with when it was last used: the pool's to set."""
        self.scratch: Path | None = None
        """The folder that its guests write to, once one did: the pool's to empty."""
        self._killed_for_wall = False
        self._reusable = True

    @classmethod
    async def start(
        cls,
        worker_path: str,
        *,
        engines: Mapping[Profile, EngineInfo],
        wall_grace: timedelta,
        require: Sequence[Layer] = (),
        user: User = User.NOBODY,
        groups: WorkerGroups | None = None,
        bounds: GroupBounds | None = None,
    ) -> "Worker":
        """Start a process that has not loaded anything yet.

        Raises:
            UnavailableError: The process cannot be started.
        """
        if groups is None or bounds is None:
            process = WorkerProcess.start(worker_path, Mode.RUN, require, user)
        else:
            process = await WorkerProcess.start_in_group(groups, bounds, worker_path, Mode.RUN, require, user)
        link = await Link.open(process.socket)
        worker = cls(process=process, link=link, engines=engines, wall_grace=wall_grace, require=require)
        if groups is not None and bounds is not None:
            worker._group_state = groups.state
        return worker

    @property
    def is_reusable(self) -> bool:
        """Whether it may run again: it lives, its last guest ended by itself, and nothing came after that."""
        return self._reusable and self._link.is_quiet and not self.process.ended.done()

    @property
    def is_loaded(self) -> bool:
        """Whether it holds a module, and so is bound to it."""
        return self._loaded

    async def run(self, job: Job) -> RunResult:
        """Run once; load first if this is the first run. See ``Sandbox.run``."""
        if not self._reusable:
            raise WorkerCrashedError("worker was to be discarded, not to run again")
        self._engine = self._engines[job.request.profile]
        limits = job.request.limits
        collected = _Collected(
            sink=job.sink, max_bytes=limits.output_bytes + limits.log_bytes + _OUTPUT_SLACK_BYTES
        )
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        descriptors: list[int] = []
        timer: asyncio.TimerHandle | None = None
        calls = CallAnswerer(job.host_calls, self._link, limits)
        try:
            first = await self._first_bytes(job, descriptors)
            patience = limits.wall + self._wall_grace + (timedelta(0) if self._loaded else LOAD_TIMEOUT)
            timer = loop.call_later(patience.total_seconds(), self._kill_for_wall)
            # The last guest may have left input unread, which the worker is still passing over.
            await self._link.drain()
            # From here on a guest may be running; only an outcome makes the worker usable again.
            self._reusable = False
            self.runs += 1
            self._link.send(first, descriptors)
            _close(descriptors)
            outcome = await self._converse(collected, calls, job.stdin)
            if outcome is None or self._killed_for_wall:
                # An outcome that came when the time was long over is no outcome.
                result = await self._result_without_outcome(collected, started_at)
            else:
                elapsed = timedelta(seconds=loop.time() - started_at)
                result = self._result(outcome, collected, calls, limits, elapsed)
        finally:
            if timer is not None:
                timer.cancel()
            _close(descriptors)
            if not self._reusable:
                self.process.kill()
            await calls.aclose()
        return result

    def kill(self) -> None:
        """End the process; whoever waits for its run learns that it is gone."""
        self._reusable = False
        self.process.kill()

    async def aclose(self) -> None:
        """Kill, reap and close. Returns when the process is gone.

        Raises:
            WorkerCrashedError: The kernel did not end it in time.
        """
        self.kill()
        self._link.close()
        try:
            async with asyncio.timeout(REAP_TIMEOUT.total_seconds()):
                await self.process.wait()
        except TimeoutError as error:
            raise WorkerCrashedError(f"worker {self.process.pid} is still there after SIGKILL") from error

    async def _first_bytes(self, job: Job, descriptors: list[int]) -> bytes:
        """Return all that can be said at once: load, run and input, so that a warm run is one system call."""
        request = job.request
        frames: list[bytes] = []
        if not self._loaded:
            frames.append(encode(FrameKind.LOAD, messages.load_payload(self._engine, request.roots)))
            descriptors.append(await job.artifact())
            descriptors.extend(_open_directory(path) for path, _ in request.roots)
        try:
            frames.append(encode(FrameKind.RUN, messages.run_payload(request)))
            descriptors.extend(_open_directory(preopen.host_path) for preopen in request.preopens)
        except ValueError as error:
            raise InvalidInputError(f"run cannot be requested: {error}") from error
        if job.stdin is None:
            frames += encode_stdin(request.stdin)
            frames.append(END_OF_STDIN)
        return b"".join(frames)

    async def _converse(
        self, collected: _Collected, calls: CallAnswerer, stdin: AsyncIterator[bytes] | None
    ) -> messages.RawOutcome | None:
        if stdin is None:
            return await self._until_outcome(collected, calls)
        try:
            async with asyncio.TaskGroup() as group:
                feeder = group.create_task(self._feed(stdin))
                outcome = await self._until_outcome(collected, calls)
                feeder.cancel()
        except BaseExceptionGroup as errors:
            # Callers know the errors of a run, not how many tasks it has; the first one ended the others.
            raise errors.exceptions[0] from None
        return outcome

    async def _feed(self, stdin: AsyncIterator[bytes]) -> None:
        fed_bytes = 0
        try:
            async for chunk in stdin:
                fed_bytes += len(chunk)
                if fed_bytes > MAX_INPUT_BYTES:
                    raise InvalidInputError(f"input has more than {MAX_INPUT_BYTES} bytes")
                for frame in encode_stdin(chunk):
                    self._link.send(frame)
                    await self._link.drain()
        finally:
            # The worker waits for the end of the input even when its guest did not read it all.
            with suppress(WorkerCrashedError):
                self._link.send(END_OF_STDIN)

    async def _until_outcome(self, collected: _Collected, calls: CallAnswerer) -> messages.RawOutcome | None:
        while (frames := await self._frames()) is not None:
            for index, frame in enumerate(frames):
                if frame.kind is FrameKind.OUTPUT and self._loaded:
                    await collected.take(frame.payload)
                elif frame.kind is FrameKind.HOST_CALL and self._loaded:
                    calls.begin(frame.payload)
                elif frame.kind is FrameKind.READY and not self._loaded:
                    self._loaded = True
                    self.layers = with_layer(messages.ready_layers(frame.payload), self._group_state)
                    in_group = self._is_in_group()
                    seen = look.confirm(self.process.pid, self.layers, self._require)
                    self._was_seen = in_group and seen
                elif frame.kind is FrameKind.OUTCOME and (
                    index == len(frames) - 1 or _ends_a_late_call(frame.payload)
                ):
                    return self._parse_outcome(frame.payload)
                else:
                    raise WorkerCrashedError(f"worker sent {_name(frame)} where it was not due")
        return None

    async def _frames(self) -> list[Frame] | None:
        try:
            return await self._link.receive()
        except WorkerCrashedError:
            if self._killed_for_wall:
                return None  # it was killed while it spoke, so the last frame is a part
            raise

    def _parse_outcome(self, payload: bytes) -> messages.RawOutcome:
        try:
            return messages.parse_outcome(payload)
        except InvalidInputError:
            # The worker refused the request before any guest began: it still stands.
            self._reusable = True
            raise

    def _result(
        self,
        outcome: messages.RawOutcome,
        collected: _Collected,
        calls: CallAnswerer,
        limits: Limits,
        elapsed: timedelta,
    ) -> RunResult:
        result = messages.result_of(
            outcome,
            stdout=bytes(collected.parts[Stream.STDOUT]),
            stderr=bytes(collected.parts[Stream.STDERR]),
            engine=self._engine,
        )
        check_claims(
            result,
            limits=limits,
            seen_bytes=collected.seen_bytes,
            seen_calls=(calls.calls, calls.bytes),
            elapsed=elapsed,
        )
        if not self._was_seen and result.outcome is not Outcome.KILLED:
            raise WorkerCrashedError(f"worker {self.process.pid} was gone before it could be looked at")
        self._reusable = result.outcome in {Outcome.SUCCEEDED, Outcome.FAILED}
        return result

    async def _result_without_outcome(self, collected: _Collected, started_at: float) -> RunResult:
        """The worker closed its socket and said nothing: its end tells why."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            # A process that closed its socket is ending; killing it first would hide why.
            async with asyncio.timeout(_END_PATIENCE.total_seconds()):
                await self.process.wait()
        self.process.kill()
        ended = await self.process.wait()
        limit = self._limit_that_ended(ended)
        if limit is None:
            self._raise_if_starved(ended)
            logger.error(
                "worker crashed",
                extra={"worker_pid": self.process.pid, "how": str(ended), "last_words": ended.last_words},
            )
            raise WorkerCrashedError(f"worker {self.process.pid} {ended}")
        return RunResult(
            outcome=Outcome.KILLED,
            limit=limit,
            stdout=bytes(collected.parts[Stream.STDOUT]),
            stderr=bytes(collected.parts[Stream.STDERR]),
            resources=ResourcesUsed(
                wall=timedelta(seconds=loop.time() - started_at),
                output_bytes=len(collected.parts[Stream.STDOUT]),
                log_bytes=len(collected.parts[Stream.STDERR]),
            ),
            engine=self._engine,
        )

    def _is_in_group(self) -> bool:
        group = self.process.group
        return group is None or group.holds(_PROCESSES)

    def _raise_if_starved(self, ended: Ended) -> None:
        """Not the module's fault: it ends so when it asks for what its limits allow and the machine lacks."""
        if ended.code == ExitCode.ABORTED or ended.out_of_memory is OutOfMemory.MACHINE:
            raise ResourceExhaustedError(
                f"this machine had no memory or disk left for worker {self.process.pid}, which {ended}"
            )

    def _limit_that_ended(self, ended: Ended) -> LimitName | None:
        if not self._loaded:
            return None  # no guest ran yet, so none of its limits can have fired
        if ended.code == ExitCode.WALL_LIMIT or self._killed_for_wall:
            return LimitName.WALL_MS
        if ended.code == ExitCode.CPU_LIMIT:
            return LimitName.CPU_MS
        if ended.out_of_memory is OutOfMemory.GROUP:
            return LimitName.MEMORY_BYTES
        return None

    def _kill_for_wall(self) -> None:
        self._killed_for_wall = True
        self.process.kill()


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _open_directory(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInputError(f"directory {path} cannot be opened: {error.strerror}") from error


def _ends_a_late_call(payload: bytes) -> bool:
    """Whether the run waited too long for a host call.

    The answer may still come: the worker refuses it in a frame behind its outcome, and is killed anyway.
    """
    try:
        outcome = messages.parse_outcome(payload)
    except (InvalidInputError, WorkerCrashedError):
        return False
    return (outcome.get("outcome"), outcome.get("limit")) == (Outcome.KILLED, LimitName.HOST_CALL_MS)


def _name(frame: Frame) -> str:
    return f"frame {frame.kind.name}"

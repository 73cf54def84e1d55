"""Which worker runs what: bound to one tenant and module for life, bounded in number, a spare ready.

Implements design.md, rule 14. Never says whether something may run, and never looks into what runs.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from data_plane.sandbox.cgroup import WorkerGroups, check_demand, run_bounds
from data_plane.sandbox.domain import EngineInfo, Layer, Preopen, RunRequest, RunResult, SandboxStats
from data_plane.sandbox.idle import IDLE_LOOK, IdleWatch
from data_plane.sandbox.ports import ArtifactOpener, HostCalls, OutputSink
from data_plane.sandbox.process import User
from data_plane.sandbox.scratch import GUEST_PATH, ScratchFolders, empty_folder, max_entries
from data_plane.sandbox.worker import Job, Worker
from shared.digests import Digest
from shared.errors import ResourceExhaustedError, UnavailableError, WorkerCrashedError
from shared.ids import TenantId
from shared.limits import MAX_LIMITS
from shared.manifest import Profile

logger = logging.getLogger(__name__)

WARM_WORKERS_PER_SLOT: Final = 4
MAX_WAITING_PER_SLOT: Final = 64
"""Runs that may wait for each slot; the node's own queue is much shorter."""
DEFAULT_WALL_GRACE: Final = timedelta(seconds=1)
"""After its wall-clock limit a worker ends itself; this much later it is killed from outside."""
REMOVAL_PAUSE: Final = timedelta(seconds=1)
"""Before a worker's folder that could not be removed is tried again, once."""

SPARE_DELAY: Final = timedelta(milliseconds=50)
"""How long after a kill the next spare is started: that takes milliseconds of a processor, and right then
those belong to the next runs. A run that finds no spare meanwhile starts a worker itself."""
STALE_AFTER: Final = 4
"""A worker that was not used while so many times as many others went as are kept at all is the next to go."""


class _Binding(NamedTuple):
    """What a worker serves, for its life."""

    tenant_id: TenantId
    module_digest: Digest
    profile: Profile
    roots: tuple[tuple[str, bool], ...]
    """Directories that it was locked to, and whether it may write there."""
    scratch: bool
    """Whether to a folder of its own as well."""
    vouched_by: str = ""
    """The compiler key on whose word its code was loaded, at most; empty: on this node's own."""


class WorkerPool:
    """The sandbox on real worker processes. An async context manager: leaving it kills every worker."""

    def __init__(
        self,
        *,
        worker_path: str,
        engine: EngineInfo,
        engines: Mapping[Profile, EngineInfo] | None = None,
        slots: int,
        max_warm_workers: int | None = None,
        spares: int = 1,
        wall_grace: timedelta = DEFAULT_WALL_GRACE,
        require: Sequence[Layer] = (),
        user: User = User.NOBODY,
        idle_look: timedelta = IDLE_LOOK,
        scratch: ScratchFolders | None = None,
        groups: WorkerGroups | None = None,
        max_memory_bytes: int = MAX_LIMITS.memory_bytes,
    ) -> None:
        if slots < 1 or spares < 0:
            raise ValueError(f"a pool has at least one slot and no negative spares, not {slots} and {spares}")
        check_demand(require, groups)
        self._worker_path = worker_path
        self._engines = dict(engines or {}) | {engine.profile: engine}
        self._slots = slots
        self._max_warm = max(
            slots, WARM_WORKERS_PER_SLOT * slots if max_warm_workers is None else max_warm_workers
        )
        self._spare_target = spares
        self._wall_grace = wall_grace
        self._require = tuple(require)
        self._user = user
        self._idle_look = idle_look
        self._scratch = scratch
        self._groups = groups
        # A worker outlives its runs, so its group has the bound of the greatest of them.
        self._bounds = run_bounds(max_memory_bytes)
        self._removals: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(slots)
        self._waiting = 0
        self._busy: dict[Worker, _Binding] = {}
        # Least recently used first; a binding may have several idle workers, the last of them the warmest.
        self._idle: OrderedDict[_Binding, list[Worker]] = OrderedDict()
        self._spares: deque[Worker] = deque()
        # Killed and not reaped yet; leaving the pool waits for them too.
        self._ending: set[Worker] = set()
        self._refill: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._closed = True
        self._runs = self._warm_hits = self._spawned = self._crashed = self._discarded = 0
        self._evicted = 0

    async def __aenter__(self) -> Self:
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.clear)
        self._closed = False
        for _ in range(self._spare_target):
            await self._add_spare()
        self._watch = asyncio.create_task(self._look_after_idle())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._refill is not None:
            # It ends by itself. Cancelled, it would leave a process that nobody reaps.
            await asyncio.wait([self._refill])
        idle = [worker for workers in self._idle.values() for worker in workers]
        workers = {*self._busy, *self._spares, *self._ending, *idle}
        self._idle.clear()
        self._spares.clear()
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.aclose())
        if self._removals:
            await asyncio.wait(self._removals)
        if self._scratch is not None:
            try:
                await asyncio.to_thread(self._scratch.close)
            except (OSError, ResourceExhaustedError) as problem:
                logger.warning("scratch not removed", extra={"error": str(problem)})

    async def run(
        self,
        *,
        tenant_id: TenantId,
        module_digest: Digest,
        artifact: ArtifactOpener,
        request: RunRequest,
        stdin: AsyncIterator[bytes] | None = None,
        sink: OutputSink | None = None,
        host_calls: HostCalls | None = None,
        vouched_by: str = "",
    ) -> RunResult:
        """See ``Sandbox.run``.

        Raises:
            ResourceExhaustedError: Too many runs wait for a slot already.
            UnavailableError: The pool is closed, has no engine of that profile, or no process can be started.
        """
        if self._closed:
            raise UnavailableError("sandbox is closed")
        if request.profile not in self._engines:
            raise UnavailableError(f"profile {request.profile} is not offered by this sandbox")
        if self._free.locked() and self._waiting >= MAX_WAITING_PER_SLOT * self._slots:
            raise ResourceExhaustedError(
                f"{self._waiting} runs wait for the {self._slots} slots of this sandbox"
            )
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            binding = _Binding(
                tenant_id, module_digest, request.profile, request.roots, request.scratch, vouched_by
            )
            job = Job(artifact=artifact, request=request, stdin=stdin, sink=sink, host_calls=host_calls)
            return await self._run_in_slot(binding, job)
        finally:
            self._free.release()

    def retire(self, keys: Collection[str]) -> None:
        """See ``Sandbox.retire``."""
        for binding in [one for one in self._idle if one.vouched_by in keys]:
            for worker in self._idle.pop(binding):
                self._discard(worker)
        for worker, binding in self._busy.items():
            if binding.vouched_by in keys:
                worker.kill()

    def stats(self) -> SandboxStats:
        """See ``Sandbox.stats``."""
        return SandboxStats(
            slots=self._slots,
            busy=len(self._busy),
            warm=self._warm_count(),
            spares=len(self._spares),
            runs=self._runs,
            warm_hits=self._warm_hits,
            spawned=self._spawned,
            crashed=self._crashed,
            discarded=self._discarded,
        )

    async def _run_in_slot(self, binding: _Binding, job: Job) -> RunResult:
        self._runs += 1
        worker = self._take_idle(binding)
        if worker is None:
            worker = self._take_spare() or await self._spawn()
        else:
            self._warm_hits += 1
        self._busy[worker] = binding
        self._evict_beyond_bound()
        try:
            if job.request.scratch:
                return await self._run_with_scratch(worker, job)
            return await worker.run(job)
        except WorkerCrashedError:
            self._crashed += 1
            raise
        finally:
            del self._busy[worker]
            self._put_back(binding, worker)

    async def _run_with_scratch(self, worker: Worker, job: Job) -> RunResult:
        request = job.request
        if self._scratch is None:
            raise UnavailableError("this sandbox has no folder for scratch")
        with self._scratch.promised(request.limits.scratch_bytes):
            if worker.scratch is None:
                worker.scratch = self._scratch.make()
            folder = Preopen(host_path=str(worker.scratch), guest_path=GUEST_PATH, writable=True)
            request = replace(request, preopens=(*request.preopens, folder))
            try:
                return await worker.run(replace(job, request=request))
            finally:
                if worker.is_reusable:
                    await self._empty_scratch(worker, worker.scratch, request)

    async def _empty_scratch(self, worker: Worker, folder: Path, request: RunRequest) -> None:
        """Leave nothing to the next run; a worker of which something is left has no next run."""
        bound = max_entries(request.limits.scratch_inodes)
        try:
            await asyncio.to_thread(empty_folder, folder, max_entries=bound)
        except (OSError, ResourceExhaustedError) as error:
            worker.kill()
            logger.warning(
                "scratch not emptied", extra={"worker_pid": worker.process.pid, "error": str(error)}
            )
        except BaseException:
            worker.kill()
            raise

    def _take_idle(self, binding: _Binding) -> Worker | None:
        idle = self._idle.get(binding, [])
        found = None
        while idle and found is None:
            worker = idle.pop()
            # One that was killed while nobody used it is gone already; its process has been reaped.
            found = worker if worker.is_reusable else None
        if not idle:
            self._idle.pop(binding, None)
        return found

    def _take_spare(self) -> Worker | None:
        while self._spares:
            worker = self._spares.popleft()
            if worker.is_reusable:
                return worker
        return None

    async def _spawn(self) -> Worker:
        worker = await Worker.start(
            self._worker_path,
            engines=self._engines,
            wall_grace=self._wall_grace,
            require=self._require,
            user=self._user,
            groups=self._groups,
            bounds=self._bounds,
        )
        self._spawned += 1
        return worker

    def _put_back(self, binding: _Binding, worker: Worker) -> None:
        delay = timedelta(0)
        if worker.is_reusable and worker.is_loaded and not self._closed:
            worker.kept_at = self._evicted
            self._idle.setdefault(binding, []).append(worker)
            self._idle.move_to_end(binding)
        elif worker.is_reusable and not self._closed:
            # The run ended before anything was loaded: it is as good as a new one.
            self._spares.append(worker)
        else:
            self._discard(worker)
            delay = SPARE_DELAY
        self._evict_beyond_bound()
        if (
            len(self._spares) < self._spare_target
            and (self._refill is None or self._refill.done())
            and not self._closed
        ):
            self._refill = asyncio.create_task(self._refill_later(delay))

    def _evict_beyond_bound(self) -> None:
        while self._idle and self._warm_count() > self._max_warm:
            worker = self._least_promising()
            self._forget(worker)
            self._evicted += 1
            self._discard(worker)

    def _least_promising(self) -> Worker:
        """Return the idle worker to part with: a stale one, else the newest that ran once, else the oldest.

        The oldest alone would let more agents in turn than workers are kept all push each other out.
        """
        idle = [worker for workers in self._idle.values() for worker in workers]
        if self._evicted - idle[0].kept_at > STALE_AFTER * self._max_warm:
            return idle[0]
        return next((worker for worker in reversed(idle) if worker.runs == 1), idle[0])

    async def _look_after_idle(self) -> None:
        watch = IdleWatch()
        while True:
            await asyncio.sleep(self._idle_look.total_seconds())
            idle = [worker for workers in self._idle.values() for worker in workers]
            for worker in watch.misbehaving([*idle, *self._spares]):
                logger.warning(
                    "idle worker used CPU time or spoke, and was ended",
                    extra={"worker_pid": worker.process.pid},
                )
                self._forget(worker)
                self._discard(worker)

    def _forget(self, worker: Worker) -> None:
        """Take an idle worker or a spare out of every list."""
        if worker in self._spares:
            self._spares.remove(worker)
        for binding, workers in list(self._idle.items()):
            if worker in workers:
                workers.remove(worker)
            if not workers:
                del self._idle[binding]

    def _discard(self, worker: Worker) -> None:
        self._discarded += 1
        self._ending.add(worker)
        worker.process.ended.add_done_callback(lambda _: self._has_ended(worker))
        worker.kill()

    def _has_ended(self, worker: Worker) -> None:
        self._ending.discard(worker)
        if worker.scratch is not None and not self._closed:
            # Only now that nobody writes there any more.
            removal = asyncio.create_task(self._remove_scratch(worker.scratch))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def _remove_scratch(self, folder: Path) -> None:
        assert self._scratch is not None
        try:
            await asyncio.to_thread(self._scratch.remove, folder)
        except (OSError, ResourceExhaustedError):
            # The process behind the monitor may have been ending still.
            await asyncio.sleep(REMOVAL_PAUSE.total_seconds())
            try:
                await asyncio.to_thread(self._scratch.remove, folder)
            except (OSError, ResourceExhaustedError) as error:
                # It is tried again when the pool is left, and when the node starts again.
                logger.warning("scratch not removed", extra={"folder": str(folder), "error": str(error)})

    def _warm_count(self) -> int:
        return len(self._busy) + sum(len(idle) for idle in self._idle.values())

    async def _refill_later(self, delay: timedelta) -> None:
        try:
            await asyncio.sleep(delay.total_seconds())
            while len(self._spares) < self._spare_target and not self._closed:
                await self._add_spare()
        except UnavailableError as error:
            # A run that finds no spare starts a worker itself, and its caller learns what is wrong.
            logger.warning("spare worker not started", extra={"error": str(error)})

    async def _add_spare(self) -> None:
        if len(self._spares) < self._spare_target and not self._closed:
            self._spares.append(await self._spawn())

"""The disk of a simulated node: a real spool folder, whose writes take time and may be torn by a kill."""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from data_plane.receipts import spool as spool_module
from data_plane.receipts.segments import SegmentStore
from data_plane.receipts.spool import Spool
from tests.simulation.chance import Chance
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.watch import Watch

SYNC_SECONDS = 0.001
MAX_SYNC_SECONDS = 5.0
SEGMENT_BYTES = 1024 * 1024
SPOOL_BYTES = 64 * 1024 * 1024
"""More than a life writes; the reservations of four orders fit several times."""


class Disk:
    """One node's disk over all boots of the node."""

    def __init__(
        self, folder: Path, node_id: str, *, loop: VirtualLoop, chance: Chance, watch: Watch
    ) -> None:
        self.folder = folder
        self.slow = 1.0
        self.is_full = False
        self.crash_point: Callable[[], None] | None = None
        """Called, once, when the next write is about to end."""
        self._node_id = node_id
        self._loop = loop
        self._chance = chance
        self._watch = watch
        self._store: _Store | None = None
        self._worker: _Worker | None = None

    def open_spool(self, process: Process) -> Spool:
        """Open the spool as a node that starts does."""
        store, recovered = _Store.open(self.folder / "spool", segment_bytes=SEGMENT_BYTES)
        store.disk = self
        self._store = store
        for entry in recovered.entries:
            self._watch.receipt_written(self._node_id, entry.sequence, entry.hash)
        made = _Threads(_Worker(self, process))
        with patch.object(spool_module, "ThreadPoolExecutor", made):
            spool = Spool(store, recovered, bound_bytes=SPOOL_BYTES)
        self._worker = made.worker
        return spool

    def kill(self) -> None:
        """The process died: what was being written is there, is not there, or is there in part."""
        assert self._worker is not None
        self._worker.kill()
        self.store.close()

    @property
    def store(self) -> "_Store":
        """The open files."""
        assert self._store is not None
        return self._store

    # --- used by its parts

    def sync_seconds(self) -> float:
        return min(self._chance.latency(SYNC_SECONDS * self.slow), MAX_SYNC_SECONDS)

    def happens(self, probability: float) -> bool:
        return self._chance.happens(probability)

    def whole(self, low: int, high: int) -> int:
        return self._chance.whole(low, high)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        self._loop.at(delay, call)

    def written(self, store: "_Store", sequences: range) -> None:
        """Receipts are synchronised: they are there for good."""
        for sequence in sequences:
            self._watch.receipt_written(self._node_id, sequence, store.entry(sequence).hash)


class _Store(SegmentStore):
    """The real files, which may be closed twice: by the kernel after a kill, and by what is left of the node."""

    disk: Disk | None = None
    _is_closed = False

    @classmethod
    def open(cls, folder: Path, *, segment_bytes: int) -> tuple[Self, Any]:
        return super().open(folder, segment_bytes=segment_bytes)

    def free_bytes(self) -> int:
        return 0 if self.disk is not None and self.disk.is_full else super().free_bytes()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            super().close()

    @property
    def place(self) -> tuple[int, int]:
        """How many segments there are and where the newest ends."""
        return len(self._segments), self._segments[-1].end

    def tear(self, cut: int) -> None:
        """Lose what follows `cut` of the newest write."""
        segment = self._segments[-1]
        os.pwrite(segment.descriptor, bytes(segment.end - cut), cut)


class _Worker:
    """The spool's thread: one job after the other, each as long as a write and a synchronisation."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._jobs: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._is_dead = False
        self._is_busy = False
        self._tears = False

    def submit(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if not self._is_dead:
            self._jobs.append((future, lambda: self._do(work, arguments, named)))
            self._next()
        return future

    def shutdown(self) -> None:
        """Do what waits, then end."""
        while self._jobs and not self._is_dead:
            self._do_first()

    def kill(self) -> None:
        """Of what waits, the first may have happened, in part or whole; nobody is told."""
        self._is_dead = True
        jobs, self._jobs = self._jobs, []
        if not jobs or self._disk.happens(0.5):
            return
        store = self._disk.store
        segments, start = store.place
        self._tears = self._disk.happens(0.5)
        with contextlib.suppress(Exception):  # nobody is left to be told
            jobs[0][1]()
        if self._tears and store.place[0] == segments and store.place[1] > start:
            store.tear(self._disk.whole(start, store.place[1] - 1))

    def _next(self) -> None:
        if self._jobs and not self._is_busy and not self._is_dead:
            self._is_busy = True
            self._disk.later(self._disk.sync_seconds(), self._first_is_done)

    def _first_is_done(self) -> None:
        self._is_busy = False
        crash, self._disk.crash_point = self._disk.crash_point, None
        if crash is not None and self._jobs and not self._is_dead:
            crash()
        if self._jobs and not self._is_dead:
            self._do_first()
            self._next()

    def _do_first(self) -> None:
        future, job = self._jobs.pop(0)
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 - handed over, as a thread would
            self._process.soon(future.set_exception, error)
        else:
            self._process.soon(future.set_result, result)

    def _do(self, work: Callable[..., Any], arguments: Any, named: Any) -> Any:
        store = self._disk.store
        before = store._head.sequence
        result = work(*arguments, **named)
        if not self._tears:
            self._disk.written(store, range(before + 1, store._head.sequence + 1))
        return result


class _Threads:
    """Stands in for `ThreadPoolExecutor` while a spool is made."""

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker

    def __call__(self, **_: Any) -> _Worker:
        return self.worker

"""The receipt spool: segment files under one folder, held by one process. Never signs, never sends.

Appends are grouped: while one group is written and synchronised, the next one forms, and a lone receipt waits
for nobody. A group is one write and one fdatasync on the spool's own thread. Segments are filled with zeros
when they are made, so the room is really there and an append changes no file size.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from data_plane.receipts.domain import SpooledBody, SpooledReceipt, SpoolHead
from data_plane.receipts.ports import ReceiptDraft
from data_plane.receipts.records import MAX_RECORD_BYTES
from data_plane.receipts.segments import (
    DEFAULT_SEGMENT_BYTES,
    Entry,
    Recovered,
    SegmentStore,
)
from shared.errors import NotFoundError, SpoolCorruptError, SpoolFullError
from shared.gathering import Gathering
from shared.logs import get_logger

logger = get_logger(__name__)

MAX_GROUP: Final = 256
"""Receipts that share one write and one fdatasync."""

MAX_PENDING: Final = 4096
"""Receipts that wait for their group; beyond it the node has more trouble than receipts."""

HEADROOM_BYTES: Final = 2 * 1024 * 1024
"""Room that orders cannot reserve: rejections still get their receipts when the spool is full."""

KEPT_IN_MEMORY_BYTES: Final = 16 * 1024 * 1024
"""Newest receipts that are sent without being read back from the disk."""

MIN_FREE_BYTES: Final = 64 * 1024 * 1024
"""Free space of the file system that is left alone."""


class SpoolReservation:
    """Room for one receipt; see `Reservation`."""

    def __init__(self, spool: "Spool", size_bytes: int) -> None:
        self._spool = spool
        self._size_bytes = size_bytes

    def release(self) -> None:
        """Give the room back."""
        self._spool._give_back(self._size_bytes)  # noqa: SLF001 - one class in two parts
        self._size_bytes = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    draft: ReceiptDraft
    done: "asyncio.Future[SpooledReceipt]" = field(repr=False)


class Spool:
    """A `ReceiptSpool` on a folder. Used from one event loop."""

    def __init__(
        self,
        store: SegmentStore,
        recovered: Recovered,
        *,
        bound_bytes: int,
        gathering: Gathering | None = None,
    ) -> None:
        self._store = store
        self._gathering = gathering
        self._bound_bytes = bound_bytes
        self._reserved_bytes = 0
        self._entries: OrderedDict[int, Entry] = OrderedDict(
            (entry.sequence, entry) for entry in recovered.entries
        )
        self._recent: OrderedDict[int, SpooledReceipt] = OrderedDict()
        self._recent_bytes = 0
        self._head = recovered.head
        self._pending: list[_Waiting] = []
        self._writing = False
        self._closed = False
        self._failure: SpoolCorruptError | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        bound_bytes: int,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        gathering: Gathering | None = None,
    ) -> Self:
        """Lock and recover the spool in `folder`, making it when it is not there. Blocks while it reads.

        Raises:
            SpoolLockedError: Another process holds it.
            SpoolCorruptError: Segments contradict themselves beyond a torn tail.
            DiskFullError: There is no room for the first segment.
        """
        store, recovered = SegmentStore.open(folder, segment_bytes=segment_bytes)
        return cls(store, recovered, bound_bytes=bound_bytes, gathering=gathering)

    @property
    def head(self) -> SpoolHead:
        """The newest receipt that is on the disk for good."""
        return self._head

    @property
    def used_bytes(self) -> int:
        """Bytes of the spool's files."""
        return self._store.used_bytes

    def reserve(self, size_bytes: int) -> SpoolReservation:
        """Take room for one receipt with bodies of `size_bytes`; see `ReceiptSpool`.

        Raises:
            SpoolFullError: The bound, or the disk, has no such room; or the spool has failed.
        """
        if self._failure is not None:
            raise SpoolFullError("the receipt spool has failed and takes nothing any more")
        needed = size_bytes + MAX_RECORD_BYTES
        wanted = self._reserved_bytes + needed
        if self._store.used_bytes + wanted > self._bound_bytes - HEADROOM_BYTES:
            raise SpoolFullError(
                f"receipt spool holds {self._store.used_bytes} bytes and {self._reserved_bytes} reserved, "
                f"{needed} more pass its bound of {self._bound_bytes}"
            )
        free = self._store.free_bytes()
        if free - wanted < MIN_FREE_BYTES:
            raise SpoolFullError(f"the file system of the receipt spool has {free} bytes left")
        self._reserved_bytes = wanted
        return SpoolReservation(self, needed)

    async def append(self, draft: ReceiptDraft) -> SpooledReceipt:
        """Number, sign and store one receipt; see `ReceiptSpool`.

        Raises:
            SpoolFullError: Nothing is reserved for it and nothing is left beside what is; or too many wait.
            DiskFullError: The disk is full.
            SpoolCorruptError: The disk failed, now or before.
        """
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise SpoolFullError("the receipt spool is closed")
        if len(self._pending) >= MAX_PENDING:
            raise SpoolFullError(f"{MAX_PENDING} receipts wait for the disk already")
        waiting = _Waiting(draft=draft, done=asyncio.get_running_loop().create_future())
        self._pending.append(waiting)
        self._idle.clear()
        if not self._writing:
            self._write_when_gathered()
        # A cancelled caller ends this future and nothing else: the receipt is written all the same.
        return await waiting.done

    def unacknowledged(self) -> list[int]:
        """Return the numbers that nobody has acknowledged, oldest first."""
        return list(self._entries)

    def hash_of(self, sequence: int) -> bytes | None:
        """Return the hash of that receipt, or None when the spool does not know it any more."""
        if sequence == self._head.sequence:
            return self._head.hash
        entry = self._entries.get(sequence)
        return None if entry is None else entry.hash

    async def read(self, sequence: int) -> SpooledReceipt:
        """Return one receipt, from memory when it is a recent one.

        Raises:
            NotFoundError: It is acknowledged, or was never written.
            SpoolCorruptError: The disk does not give back what was written.
        """
        recent = self._recent.get(sequence)
        if recent is not None:
            return recent
        entry = self._entries.get(sequence)
        if entry is None:
            raise NotFoundError(f"receipt {sequence} is not in the spool")
        return await asyncio.to_thread(self._store.read, entry)

    async def read_body(self, body: SpooledBody) -> bytes:
        """Return the content of a body that has a file of its own.

        Raises:
            NotFoundError: Its receipt is acknowledged.
        """
        if body.inline is not None:
            return body.inline
        return await asyncio.to_thread(self._store.read_body, body)

    def acknowledge(self, sequences: Iterable[int]) -> None:
        """Forget receipts that the control plane has for good. Unknown numbers are no error."""
        gone = [entry for sequence in sequences if (entry := self._entries.pop(sequence, None)) is not None]
        for entry in gone:
            self._forget_recent(entry.sequence)
        if gone and self._failure is None and not self._closed:
            self._thread.submit(self._store.drop, gone).add_done_callback(_log_failure)

    async def close(self) -> None:
        """Write what waits, then unlock the folder. Closing again changes nothing."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        await asyncio.to_thread(self._thread.shutdown)
        self._store.close()

    def _write_when_gathered(self) -> None:
        """Write what is pending once nobody else is about to add to it, or it fills a group."""
        if self._gathering is None:
            self._write_next_group()
            return
        self._gathering.open(self._write_next_group)
        if len(self._pending) >= MAX_GROUP:
            self._gathering.close()

    def _write_next_group(self) -> None:
        group, self._pending = self._pending[:MAX_GROUP], self._pending[MAX_GROUP:]
        self._writing = True
        loop = asyncio.get_running_loop()
        drafts = [waiting.draft for waiting in group]
        written = self._thread.submit(self._store.append, drafts, unreserved_bound=self._unreserved_bound)
        written.add_done_callback(
            lambda result: loop.call_soon_threadsafe(self._group_written, group, result)
        )

    def _group_written(
        self, group: list[_Waiting], written: "Future[list[SpooledReceipt | Exception]]"
    ) -> None:
        error = written.exception()
        outcomes = written.result() if error is None else [_fatal(error)] * len(group)
        for waiting, outcome in zip(group, outcomes, strict=True):
            self._settle(waiting, outcome)
        self._writing = False
        if not self._pending:
            self._idle.set()
        elif self._closed:
            self._write_next_group()
        else:
            self._write_when_gathered()

    def _settle(self, waiting: _Waiting, outcome: SpooledReceipt | Exception) -> None:
        if isinstance(outcome, SpooledReceipt):
            self._remember(outcome)
        elif isinstance(outcome, SpoolCorruptError):
            self._failure = outcome
        if waiting.done.cancelled():
            return
        if isinstance(outcome, SpooledReceipt):
            waiting.done.set_result(outcome)
        else:
            waiting.done.set_exception(outcome)

    def _remember(self, receipt: SpooledReceipt) -> None:
        entry = self._store.entry(receipt.sequence)
        self._entries[receipt.sequence] = entry
        self._head = SpoolHead(sequence=receipt.sequence, hash=entry.hash)
        self._recent[receipt.sequence] = receipt
        self._recent_bytes += receipt.size_bytes
        while self._recent_bytes > KEPT_IN_MEMORY_BYTES:
            self._forget_recent(next(iter(self._recent)))

    def _forget_recent(self, sequence: int) -> None:
        receipt = self._recent.pop(sequence, None)
        if receipt is not None:
            self._recent_bytes -= receipt.size_bytes

    @property
    def _unreserved_bound(self) -> int:
        """Up to where receipts without a reservation may fill it: never the room of orders that run."""
        if not self._reserved_bytes:
            return self._bound_bytes
        return self._bound_bytes - self._reserved_bytes - self._store.segment_bytes

    def _give_back(self, size_bytes: int) -> None:
        self._reserved_bytes -= size_bytes


def _fatal(error: BaseException) -> SpoolCorruptError:
    # After a failed fsync nobody knows what the disk holds: the kernel may have dropped the dirty pages.
    failure = SpoolCorruptError(f"the receipt spool cannot be written: {error}")
    failure.__cause__ = error
    return failure


def _log_failure(dropped: "Future[None]") -> None:
    error = dropped.exception()
    if error is not None:
        # Harmless: what stays is dropped at the next start, when the control plane acknowledges it again.
        logger.warning("acknowledged receipts could not be removed from the spool", exc_info=error)

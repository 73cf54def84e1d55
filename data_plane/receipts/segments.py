"""The files of the spool: makes, recovers, appends, reads and removes them. Knows nothing of event loops.

Layout: ``lock``; ``<first sequence, 20 digits>.segment``; ``bodies/<hash>`` for outputs and logs
above 64 KiB.
`append` and `drop` are called from one thread; `read`, `read_body` and `entry` from any.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from data_plane.files import sync_folder, write_all
from data_plane.receipts.body_files import BodyFiles, disk_full, file_name
from data_plane.receipts.domain import (
    EMPTY_HEAD,
    MAX_ENVELOPE_BYTES,
    Body,
    SpooledBody,
    SpooledReceipt,
    SpoolHead,
)
from data_plane.receipts.ports import ReceiptDraft
from data_plane.receipts.records import (
    MAX_RECORD_BYTES,
    SEGMENT_HEADER_BYTES,
    decode_record,
    decode_segment_header,
    encode_record,
    encode_segment_header,
    read_records,
)
from shared.errors import (
    DiskFullError,
    InternalError,
    NotFoundError,
    SpoolCorruptError,
    SpoolFullError,
    SpoolLockedError,
)
from shared.logs import get_logger

logger = get_logger(__name__)

DEFAULT_SEGMENT_BYTES: Final = 2 * 1024 * 1024
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OPEN: Final = os.O_RDWR | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a receipt lies, and its hash."""

    sequence: int
    hash: bytes
    segment: int
    """First sequence of its segment."""
    offset: int
    length: int
    files: tuple[str, ...]
    """Bodies of its own."""


@dataclass(slots=True, kw_only=True)
class _Segment:
    first: int
    path: Path
    descriptor: int
    end: int
    """Where the next record goes."""
    live: set[int] = field(default_factory=set)
    """Records in it that nobody has acknowledged."""
    dropped: set[str] = field(default_factory=set)
    """Files of acknowledged records: their marks go with the segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What was in the folder."""

    head: SpoolHead
    entries: tuple[Entry, ...]


class SegmentStore:
    """The spool's folder, locked."""

    def __init__(self, folder: Path, *, lock: int, segment_bytes: int) -> None:
        if segment_bytes < SEGMENT_HEADER_BYTES + MAX_RECORD_BYTES:
            raise ValueError(f"a segment of {segment_bytes} bytes cannot hold the largest record")
        self._folder = folder
        self._bodies = BodyFiles(folder / "bodies")
        self._lock = lock
        self.segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._entries: dict[int, Entry] = {}
        self._head = EMPTY_HEAD
        self._segment_bytes_used = 0

    @classmethod
    def open(cls, folder: Path, *, segment_bytes: int) -> tuple[Self, Recovered]:
        """Lock the folder and recover what is in it; see `Spool.open` for what is raised."""
        (folder / "bodies").mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise SpoolLockedError(f"receipt spool {folder} is in use by another process") from error
        store = cls(folder, lock=lock, segment_bytes=segment_bytes)
        try:
            return store, store._recover()
        except BaseException:
            store.close()
            raise

    def append(
        self, drafts: Sequence[ReceiptDraft], *, unreserved_bound: int
    ) -> list[SpooledReceipt | Exception]:
        """Write a group; a draft that cannot be built or stored gets its error, the others go on.

        A draft without a reservation does not make the files grow beyond `unreserved_bound`.

        Raises:
            OSError: The disk failed in a way that leaves its content unknown.
        """
        outcomes: list[SpooledReceipt | Exception] = []
        buffer: list[bytes] = []
        for draft in drafts:
            try:
                receipt, record = self._prepare(draft)
                if draft.reservation is None:
                    self._require_room(draft, len(record), unreserved_bound)
                segment = self._segment_for(len(record), buffer)
                files = self._bodies.write(_with_files(draft))
            except (DiskFullError, SpoolFullError, InternalError) as error:
                outcomes.append(error)
                continue
            self._place(receipt, record, files, segment, buffer)
            outcomes.append(receipt)
        self._flush(buffer)
        return outcomes

    def entry(self, sequence: int) -> Entry:
        """Return where a receipt lies that `append` returned."""
        return self._entries[sequence]

    def read(self, entry: Entry) -> SpooledReceipt:
        """Return the receipt at `entry`; see `Spool.read` for what is raised."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path(entry.segment), os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, entry.length, entry.offset)
            finally:
                os.close(descriptor)
            receipt = decode_record(data, sequence=entry.sequence)
            if receipt is None:
                raise SpoolCorruptError(f"receipt {entry.sequence} is damaged on the disk")
            return receipt
        raise NotFoundError(f"receipt {entry.sequence} is not in the spool any more")

    def read_body(self, body: SpooledBody) -> bytes:
        """Return a body that has a file; see `Spool.read_body` for what is raised."""
        return self._bodies.read(body)

    def drop(self, entries: Iterable[Entry]) -> None:
        """Forget acknowledged receipts: their bodies at once, a segment when all of its receipts are."""
        gone = list(entries)
        self._bodies.drop([name for entry in gone for name in entry.files])
        for entry in gone:
            self._let_go(entry)
        # The newest segment stays: it carries the head of the chain.
        for segment in [held for held in self._segments[:-1] if not held.live]:
            self._segments.remove(segment)
            os.close(segment.descriptor)
            segment.path.unlink()
            self._segment_bytes_used -= self.segment_bytes
            self._bodies.forget(segment.dropped)

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return self._segment_bytes_used + self._bodies.used_bytes

    def free_bytes(self) -> int:
        """Return what the file system has left for this process."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Close every file and unlock the folder."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        os.close(self._lock)

    def _prepare(self, draft: ReceiptDraft) -> tuple[SpooledReceipt, bytes]:
        try:
            envelope = draft.build(self._head)
        except Exception as error:
            raise InternalError(f"a receipt could not be built: {error}") from error
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise InternalError(f"a receipt has {len(envelope)} bytes, the bound is {MAX_ENVELOPE_BYTES}")
        receipt = SpooledReceipt(
            sequence=self._head.sequence + 1,
            envelope=envelope,
            attempt=draft.attempt,
            output=_spooled(draft.output),
            log=_spooled(draft.log),
            recording=_spooled(draft.recording),
            kv_writes=draft.kv_writes,
            order_envelope=draft.order_envelope,
        )
        record = encode_record(receipt)
        if len(record) > MAX_RECORD_BYTES:
            raise InternalError(f"a spool record has {len(record)} bytes, the bound is {MAX_RECORD_BYTES}")
        return receipt, record

    def _let_go(self, entry: Entry) -> None:
        self._entries.pop(entry.sequence, None)
        for segment in self._segments:
            if segment.first == entry.segment:
                segment.live.discard(entry.sequence)
                segment.dropped.update(entry.files)

    def _require_room(self, draft: ReceiptDraft, length: int, bound: int) -> None:
        growth = sum(len(body.content) for body in _with_files(draft))
        if self._segments[-1].end + length > self.segment_bytes:
            growth += self.segment_bytes
        if growth and self.used_bytes + growth > bound:
            raise SpoolFullError(
                f"receipt spool holds {self.used_bytes} bytes, {growth} more pass the {bound} "
                "that are not reserved for orders"
            )

    def _segment_for(self, length: int, buffer: list[bytes]) -> _Segment:
        segment = self._segments[-1]
        if segment.end + length <= self.segment_bytes:
            return segment
        self._flush(buffer)
        return self._new_segment()

    def _place(
        self,
        receipt: SpooledReceipt,
        record: bytes,
        files: tuple[str, ...],
        segment: _Segment,
        buffer: list[bytes],
    ) -> None:
        self._head = self._head.after(receipt.envelope)
        self._entries[receipt.sequence] = Entry(
            sequence=receipt.sequence,
            hash=self._head.hash,
            segment=segment.first,
            offset=segment.end,
            length=len(record),
            files=files,
        )
        segment.live.add(receipt.sequence)
        segment.end += len(record)
        buffer.append(record)

    def _flush(self, buffer: list[bytes]) -> None:
        if not buffer:
            return
        segment, data = self._segments[-1], b"".join(buffer)
        buffer.clear()
        write_all(segment.descriptor, data, offset=segment.end - len(data))
        os.fdatasync(segment.descriptor)

    def _new_segment(self) -> _Segment:
        first = self._head.sequence + 1
        path = self._path(first)
        part = path.with_suffix(".new")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, _CREATE, 0o600)
        try:
            data = encode_segment_header(self._head).ljust(self.segment_bytes, b"\0")
            write_all(descriptor, data)
            os.fsync(descriptor)
            part.rename(path)
            sync_folder(self._folder)
        except OSError as error:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise disk_full(error, self._folder) from error
        segment = _Segment(first=first, path=path, descriptor=descriptor, end=SEGMENT_HEADER_BYTES)
        self._segments.append(segment)
        self._segment_bytes_used += self.segment_bytes
        return segment

    def _recover(self) -> Recovered:
        for leftover in self._folder.glob("*.new"):
            leftover.unlink()
        paths = sorted(self._folder.glob("*.segment"))
        for path in paths:
            self._recover_segment(path, is_last=path == paths[-1])
        if not self._segments:
            self._new_segment()
        for sequence in self._bodies.recover(
            {entry.sequence: entry.files for entry in self._entries.values() if entry.files}
        ):
            self._let_go(self._entries[sequence])  # it was acknowledged before the start
        return Recovered(head=self._head, entries=tuple(self._entries.values()))

    def _recover_segment(self, path: Path, *, is_last: bool) -> None:
        descriptor = os.open(path, _OPEN)
        segment = _Segment(first=0, path=path, descriptor=descriptor, end=SEGMENT_HEADER_BYTES)
        self._segments.append(segment)
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size, 0)
        before = decode_segment_header(data)
        segment.first = before.sequence + 1
        # A gap is right: the segments between were acknowledged and dropped. A step back or a fork never is.
        follows = before.sequence > self._head.sequence or before == self._head
        if len(self._segments) > 1 and not follows:
            raise SpoolCorruptError(f"spool segment {path.name} does not continue the chain before it")
        self._head = before
        for located in read_records(data):
            receipt = located.receipt
            self._head = self._head.after(receipt.envelope)
            self._entries[receipt.sequence] = Entry(
                sequence=receipt.sequence,
                hash=self._head.hash,
                segment=segment.first,
                offset=located.offset,
                length=located.length,
                files=tuple(file_name(body.commitment) for body in receipt.uploads),
            )
            segment.live.add(receipt.sequence)
            segment.end = located.offset + located.length
        self._segment_bytes_used += size
        if is_last:
            self._clear_tail(segment, data)
        elif data[segment.end :].strip(b"\0"):
            raise SpoolCorruptError(
                f"spool segment {path.name} is damaged after receipt {self._head.sequence}"
            )

    def _clear_tail(self, segment: _Segment, data: bytes) -> None:
        torn = data[segment.end :]
        if len(data) == self.segment_bytes and not torn.strip(b"\0"):
            return
        logger.warning(
            "a torn write at the end of the receipt spool was cut off",
            segment=segment.path.name,
            offset=segment.end,
            sequence=self._head.sequence,
        )
        # The room of a record that was never synchronised, so nobody was told of it.
        os.ftruncate(segment.descriptor, segment.end)
        write_all(segment.descriptor, bytes(self.segment_bytes - segment.end), offset=segment.end)
        os.fsync(segment.descriptor)
        self._segment_bytes_used += self.segment_bytes - len(data)

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:020d}.segment"


def _spooled(body: Body | None) -> SpooledBody | None:
    if body is None:
        return None
    return SpooledBody(
        salt=body.salt,
        size_bytes=len(body.content),
        commitment=body.commitment,
        inline=body.content if body.travels_inline else None,
    )


def _with_files(draft: ReceiptDraft) -> list[Body]:
    """Return the bodies of a draft that do not travel inline."""
    return [body for body in draft.bodies if not body.travels_inline]

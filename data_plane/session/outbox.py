"""What waits to be sent to the control plane, over all sessions of the node. Holds numbers, not copies.

Receipts stay in the spool until they are acknowledged; here is only which of them were sent. Everything that
is lost with a stream is sent again on the next one.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from data_plane.orders.domain import AttemptRef
from data_plane.receipts.domain import SpooledReceipt
from data_plane.receipts.ports import ReceiptSpool
from shared.clock import Clock
from shared.errors import NotFoundError

MAX_BATCH_RECEIPTS: Final = 256
MAX_BATCH_BYTES: Final = 3 * 1024 * 1024
"""Below the 4 MiB that gRPC carries, with room for the envelope."""

MAX_STARTED_PER_MESSAGE: Final = 256

MAX_UNACKNOWLEDGED: Final = 1024
"""Receipts on their way at once; the others wait on the disk."""

MAX_REMEMBERED_ENVELOPES: Final = 1024
"""Signed roots of the present stream, about 1 KiB each; a receipt under an older one takes its own along."""

STARTED_LINGER: Final = timedelta(milliseconds=20)
"""A run that ends sooner needs no note that it started: its receipt says so."""

RESEND_AFTER: Final = timedelta(seconds=15)
"""A receipt unanswered this long on a living stream is sent again; repeats are harmless."""


class Outbox:
    """An `Announcer`, and the source of what a session writes. Used from one event loop."""

    def __init__(self, *, spool: ReceiptSpool, clock: Clock) -> None:
        self._spool = spool
        self._clock = clock
        self._ready: deque[int] = deque()
        self._to_upload: deque[int] = deque()
        self._uploaded: set[int] = set()
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._started: OrderedDict[AttemptRef, float] = OrderedDict()
        self._came: OrderedDict[bytes, None] = OrderedDict()
        self._linger: asyncio.TimerHandle | None = None
        self.changed = asyncio.Event()
        self.uploads_changed = asyncio.Event()

    def started(self, attempt: AttemptRef) -> None:
        """Note a run; it is told when it lasts."""
        self._started[attempt] = self._clock.monotonic() + STARTED_LINGER.total_seconds()
        self._wake_later()

    def came(self, order_envelope: bytes) -> None:
        """Orders under this signed root have come on the present stream.

        Whoever sent them there has the signature, or its stream ends before the receipt is acknowledged: on
        this one a receipt travels without it.
        """
        self._came[order_envelope] = None
        self._came.move_to_end(order_envelope)
        if len(self._came) > MAX_REMEMBERED_ENVELOPES:
            self._came.popitem(last=False)

    def receipt_ready(self, receipt: SpooledReceipt) -> None:
        """Queue a receipt that is on the disk."""
        if receipt.attempt is not None:
            self._started.pop(receipt.attempt, None)
        self._queue(receipt)

    def restart(self) -> None:
        """A new stream has begun: everything unacknowledged is sent, from the oldest on."""
        self._came.clear()
        self._sent.clear()
        self._to_upload.clear()
        self._ready = deque(self._spool.unacknowledged())
        self._uploaded.intersection_update(self._ready)
        self.changed.set()

    def acknowledged(self, sequences: Iterable[int]) -> None:
        """The control plane has these receipts for good."""
        gone = list(sequences)
        for sequence in gone:
            self._sent.pop(sequence, None)
            self._uploaded.discard(sequence)
        self._spool.acknowledge(gone)
        if self._ready:
            self.changed.set()  # what had to wait for fewer to be on their way may follow

    def resend_unanswered(self) -> None:
        """Queue again what was sent too long ago on this stream."""
        before = self._clock.monotonic() - RESEND_AFTER.total_seconds()
        late = [sequence for sequence, sent_at in self._sent.items() if sent_at <= before]
        for sequence in late:
            del self._sent[sequence]
            self._ready.append(sequence)
        if late:
            self.changed.set()

    async def next_receipts(self) -> list[SpooledReceipt]:
        """Return the receipts of the next message, possibly none, and count them as sent."""
        batch: list[SpooledReceipt] = []
        size = 0
        while self._ready and len(batch) < MAX_BATCH_RECEIPTS and len(self._sent) < MAX_UNACKNOWLEDGED:
            sequence = self._ready[0]
            try:
                receipt = await self._spool.read(sequence)
            except NotFoundError:
                self._ready.popleft()  # acknowledged on an earlier stream, meanwhile
                continue
            if receipt.uploads and sequence not in self._uploaded:
                self._ready.popleft()
                self._queue(receipt)
                continue
            if receipt.order_envelope in self._came:
                receipt = replace(receipt, order_envelope=b"")
            size += receipt.size_bytes
            if batch and size > MAX_BATCH_BYTES:
                break
            self._ready.popleft()
            self._sent[sequence] = self._clock.monotonic()
            batch.append(receipt)
        return batch

    def next_started(self) -> list[AttemptRef]:
        """Return runs that have lasted long enough to be told, possibly none."""
        now = self._clock.monotonic()
        due: list[AttemptRef] = []
        while self._started and len(due) < MAX_STARTED_PER_MESSAGE:
            attempt, at = next(iter(self._started.items()))
            if at > now:
                self._wake_later()
                break
            del self._started[attempt]
            due.append(attempt)
        return due

    async def next_upload(self) -> SpooledReceipt:
        """Wait for a receipt whose bodies have to be uploaded first."""
        while True:
            while self._to_upload:
                sequence = self._to_upload.popleft()
                try:
                    return await self._spool.read(sequence)
                except NotFoundError:
                    continue
            self.uploads_changed.clear()
            await self.uploads_changed.wait()

    def uploaded(self, sequence: int) -> None:
        """The bodies of this receipt have arrived: it may follow."""
        self._uploaded.add(sequence)
        self._ready.append(sequence)
        self.changed.set()

    def upload_failed(self, receipt: SpooledReceipt) -> None:
        """Try the bodies of this receipt again, after the others."""
        self._queue(receipt)

    def _queue(self, receipt: SpooledReceipt) -> None:
        if receipt.uploads and receipt.sequence not in self._uploaded:
            self._to_upload.append(receipt.sequence)
            self.uploads_changed.set()
        else:
            self._ready.append(receipt.sequence)
            self.changed.set()

    def _wake_later(self) -> None:
        if self._linger is None:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(STARTED_LINGER.total_seconds(), self._linger_over)

    def _linger_over(self) -> None:
        self._linger = None
        self.changed.set()

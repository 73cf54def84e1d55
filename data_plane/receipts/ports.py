"""What signing and keeping receipts needs from the outside, and offers to those who run orders."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from data_plane.orders.domain import AttemptRef
from data_plane.receipts.domain import Body, SpooledBody, SpooledReceipt, SpoolHead

EnvelopeBuilder = Callable[[SpoolHead], bytes]
"""Signs the receipt that follows the given head and returns its envelope. Runs on the spool's thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptDraft:
    """A receipt without its place in the chain, and the bodies it commits to."""

    build: EnvelopeBuilder = field(repr=False)
    attempt: AttemptRef | None
    output: Body | None = None
    log: Body | None = None
    recording: Body | None = None
    kv_writes: bytes = field(default=b"", repr=False)
    order_envelope: bytes = field(default=b"", repr=False)
    reservation: "Reservation | None" = None
    """The room that was taken for it. Without one it gets only what nobody has reserved."""

    @property
    def bodies(self) -> tuple[Body, ...]:
        """Output, log and recording, as far as there are any."""
        return tuple(body for body in (self.output, self.log, self.recording) if body is not None)


class Reservation(Protocol):
    """Room in the spool, taken before an order is. Given back by `release`, which may be called twice."""

    def release(self) -> None: ...


class ReceiptSpool(Protocol):
    """Keeps receipts in order on the disk until they are acknowledged."""

    @property
    def head(self) -> SpoolHead:
        """The newest receipt that is on the disk for good."""

    def reserve(self, size_bytes: int) -> Reservation:
        """Take room for one receipt with bodies of `size_bytes`.

        Raises:
            SpoolFullError: The bound, or the disk, has no such room.
        """

    async def append(self, draft: ReceiptDraft) -> SpooledReceipt:
        """Give the receipt the next number, sign it and return once it is on the disk.

        Raises:
            SpoolFullError: No room was reserved for it and none is left; nothing was written.
            DiskFullError: The disk is full; nothing was written.
            SpoolCorruptError: The disk failed; nothing is appended any more.
        """

    def unacknowledged(self) -> list[int]:
        """Return the numbers that nobody has acknowledged, oldest first."""

    async def read(self, sequence: int) -> SpooledReceipt:
        """Return one receipt.

        Raises:
            NotFoundError: It is acknowledged, or was never written.
        """

    async def read_body(self, body: SpooledBody) -> bytes:
        """Return the content of a body that does not travel inline.

        Raises:
            NotFoundError: Its receipt is acknowledged.
        """

    def acknowledge(self, sequences: Iterable[int]) -> None:
        """Forget receipts that the control plane has for good. Unknown numbers are no error."""

    def hash_of(self, sequence: int) -> bytes | None:
        """Return the hash of that receipt, or None when the spool does not know it any more."""

"""A receipt spool in memory."""

from collections.abc import Iterable

from data_plane.receipts.domain import EMPTY_HEAD, SpooledBody, SpooledReceipt, SpoolHead
from data_plane.receipts.ports import ReceiptDraft
from shared.errors import NotFoundError, SpoolFullError


class FakeReservation:
    """Counts as held until released."""

    def __init__(self, spool: "FakeSpool", size_bytes: int) -> None:
        self._spool, self._size_bytes = spool, size_bytes
        spool.reserved_bytes += size_bytes

    def release(self) -> None:
        self._spool.reserved_bytes -= self._size_bytes
        self._size_bytes = 0


class FakeSpool:
    """Implements `ReceiptSpool`."""

    def __init__(self) -> None:
        self.head: SpoolHead = EMPTY_HEAD
        self.receipts: dict[int, SpooledReceipt] = {}
        self.hashes: dict[int, bytes] = {}
        self.bodies: dict[str, bytes] = {}
        self.reserved_bytes = 0
        self.is_full = False
        self.error: Exception | None = None

    def reserve(self, size_bytes: int) -> FakeReservation:
        if self.is_full:
            raise SpoolFullError("the spool is full")
        return FakeReservation(self, size_bytes)

    async def append(self, draft: ReceiptDraft) -> SpooledReceipt:
        if self.error is not None:
            raise self.error
        envelope = draft.build(self.head)
        bodies = []
        for body in (draft.output, draft.log, draft.recording):
            if body is None:
                bodies.append(None)
                continue
            if not body.travels_inline:
                self.bodies[body.commitment] = body.content
            bodies.append(
                SpooledBody(
                    salt=body.salt,
                    size_bytes=len(body.content),
                    commitment=body.commitment,
                    inline=body.content if body.travels_inline else None,
                )
            )
        self.head = self.head.after(envelope)
        receipt = SpooledReceipt(
            sequence=self.head.sequence,
            envelope=envelope,
            attempt=draft.attempt,
            output=bodies[0],
            log=bodies[1],
            recording=bodies[2],
            kv_writes=draft.kv_writes,
            order_envelope=draft.order_envelope,
        )
        self.receipts[receipt.sequence] = receipt
        self.hashes[receipt.sequence] = self.head.hash
        return receipt

    def unacknowledged(self) -> list[int]:
        return sorted(self.receipts)

    async def read(self, sequence: int) -> SpooledReceipt:
        if sequence not in self.receipts:
            raise NotFoundError(f"receipt {sequence} is not in the spool")
        return self.receipts[sequence]

    async def read_body(self, body: SpooledBody) -> bytes:
        if body.inline is not None:
            return body.inline
        if body.commitment not in self.bodies:
            raise NotFoundError(f"body {body.commitment} is not in the spool")
        return self.bodies[body.commitment]

    def acknowledge(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            receipt = self.receipts.pop(sequence, None)
            for body in receipt.uploads if receipt is not None else ():
                self.bodies.pop(body.commitment, None)

    def hash_of(self, sequence: int) -> bytes | None:
        if sequence == self.head.sequence:
            return self.head.hash
        return self.hashes.get(sequence) if sequence in self.receipts else None

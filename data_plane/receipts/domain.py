"""What a receipt chain and its entries are. No I/O, no clock, no randomness."""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from data_plane.orders.domain import AttemptRef
from shared.digests import Digest, commit_body

INLINE_BODY_BYTES: Final = 64 * 1024
"""Bodies up to this size travel inside the receipt's delivery, larger ones on a stream of their own."""

MAX_ENVELOPE_BYTES: Final = 64 * 1024
"""Bound of one signed receipt, as the contract has it."""

HASH_BYTES: Final = 32
NO_HASH: Final = b""
"""The hash of a chain without receipts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolHead:
    """The newest receipt of a node: its number and the SHA-256 of its envelope. Number 0: none yet."""

    sequence: int
    hash: bytes

    def after(self, envelope: bytes) -> "SpoolHead":
        """Return the head once `envelope` is appended."""
        return SpoolHead(sequence=self.sequence + 1, hash=hashlib.sha256(envelope).digest())


EMPTY_HEAD: Final = SpoolHead(sequence=0, hash=NO_HASH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """An output or a log with the salt of its commitment."""

    salt: bytes = field(repr=False)
    content: bytes = field(repr=False)
    commitment: Digest

    @classmethod
    def of(cls, content: bytes, salt: bytes) -> "Body":
        """Commit to `content` under `salt` (32 random bytes)."""
        return cls(salt=salt, content=content, commitment=commit_body(content, salt))

    @property
    def travels_inline(self) -> bool:
        """Whether it is small enough for the receipt's delivery."""
        return len(self.content) <= INLINE_BODY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledBody:
    """A body as the spool keeps it: its content when small, else only where to find it."""

    salt: bytes = field(repr=False)
    size_bytes: int
    commitment: Digest
    inline: bytes | None = field(repr=False)
    """None: the content is in a file of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledReceipt:
    """One receipt that is on the disk for good."""

    sequence: int
    envelope: bytes = field(repr=False)
    attempt: AttemptRef | None
    """None when the order was never verified, so that nobody knows whose attempt it was."""
    output: SpooledBody | None = None
    log: SpooledBody | None = None
    recording: SpooledBody | None = None
    kv_writes: bytes = field(default=b"", repr=False)
    """The encoding of `KvWrites` whose digest the receipt names; empty when nothing was written."""
    order_envelope: bytes = field(default=b"", repr=False)
    """The signed root that its order came under: whoever takes the receipt may lack it. Empty when the order
    was never believed."""

    @property
    def uploads(self) -> tuple[SpooledBody, ...]:
        """Bodies that have to reach the control plane before the receipt does."""
        return tuple(body for body in self.bodies if body.inline is None)

    @property
    def bodies(self) -> tuple[SpooledBody, ...]:
        """Output, log and recording, as far as there are any."""
        bodies = (self.output, self.log, self.recording)
        return tuple(body for body in bodies if body is not None)

    @property
    def size_bytes(self) -> int:
        """Roughly what its delivery weighs."""
        inline = sum(len(body.inline or b"") for body in self.bodies)
        return len(self.envelope) + len(self.order_envelope) + len(self.kv_writes) + inline

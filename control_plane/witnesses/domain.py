"""Witnesses of the transparency log and what they say, as values. No I/O.

A witness (C2SP tlog-witness) keeps the newest checkpoint that it saw of a log and cosigns the next one only
if that one continues it. So a log that shows two people two trees finds no witness for one of them.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from shared.checkpoints import NoteSignature, VerifierKey, key_id
from shared.errors import InvalidInputError, MalformedError

MAX_WITNESSES: Final = 16
MAX_BACKOFF: Final = timedelta(minutes=5)
"""Between two tries of a witness that does not cosign."""

ASK_AGAIN: Final = timedelta(minutes=1)
"""A head that does not grow is shown again after so long: its witness may have seen another one."""

_MAX_SIZE_DIGITS: Final = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """One outside party that cosigns."""

    url: str
    key: VerifierKey

    @property
    def name(self) -> str:
        """As its cosignatures and metrics name it."""
        return self.key.name

    @property
    def witness_id(self) -> str:
        """Name and key: with another key it is another witness."""
        return f"{self.name}+{key_id(self.name, self.key.public, self.key.kind).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessPolicy:
    """Who cosigns, and how many of them make a checkpoint a witnessed one; a quorum of zero: none is."""

    witnesses: tuple[Witness, ...] = ()
    quorum: int = 0
    every: timedelta = timedelta(seconds=5)
    """Between two checkpoints that are shown to the witnesses."""
    timeout: timedelta = timedelta(seconds=5)
    """For all that is said to one witness about one checkpoint."""

    def __post_init__(self) -> None:
        """Refuse a quorum that can never be.

        Raises:
            InvalidInputError: It is larger than the number of witnesses, or two have one name.
        """
        if not 0 <= self.quorum <= len(self.witnesses) <= MAX_WITNESSES:
            raise InvalidInputError(f"a quorum of {self.quorum} of {len(self.witnesses)} witnesses")
        if len({witness.name for witness in self.witnesses}) != len(self.witnesses):
            raise InvalidInputError("two witnesses have one name")

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the witnesses."""
        return tuple(witness.witness_id for witness in self.witnesses)


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessState:
    """What is stored of a witness."""

    witness_id: str
    tree_size: int = 0
    """The largest head of ours that it is known to have seen."""
    failures: int = 0
    """In a row."""
    is_due: bool = True
    """It may be asked: no pause after a failure holds."""
    success_age: timedelta | None = None
    """Since it cosigned; None: it never did."""
    fork: str = ""
    """What it saw that our log is not; empty: nothing."""


# --- what a witness answers ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """Signature lines; nobody has looked at them yet."""

    lines: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """It has seen a head of another size than the one that the proof begins with."""

    size: int


class Refusal(StrEnum):
    """Why a witness did not cosign."""

    UNREACHABLE = "unreachable"
    MALFORMED = "malformed"
    """The answer is none of the protocol."""
    SIGNATURE = "signature"
    """Its cosignature is not right, or of a time that has not come."""
    UNKNOWN_LOG = "unknown_log"
    UNKNOWN_KEY = "unknown_key"
    """It does not know the key that signed our checkpoint."""
    OTHER_ROOT = "other_root"
    """It has seen another root of this size."""
    BAD_PROOF = "bad_proof"
    """What it saw does not begin our checkpoint."""
    BUSY = "busy"
    UNSTABLE = "unstable"
    """It names another size each time."""
    FAILED = "failed"
    """Any other status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No cosignature."""

    refusal: Refusal
    detail: str = ""


Answer = Cosigned | Stale | Refused


# --- what comes of asking ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosignature:
    """A cosignature that was verified."""

    tree_size: int
    line: NoteSignature
    at: int
    """POSIX seconds, as the witness says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """It has seen a larger head of ours, which another replica showed it meanwhile."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """It has seen a log of our name that is not a beginning of ours, nor ours of it."""

    size: int
    detail: str


Outcome = Cosignature | Moved | Refused | Forked


def add_checkpoint_body(*, old_size: int, proof: Sequence[bytes], note: bytes) -> bytes:
    """Return the body of an add-checkpoint request (C2SP tlog-witness)."""
    lines = [f"old {old_size}", *(base64.b64encode(one).decode() for one in proof), "", ""]
    return "\n".join(lines).encode() + note


def parse_size(body: bytes) -> int:
    """Return the size that a conflict names.

    Raises:
        MalformedError: It names none.
    """
    text = body.decode("ascii", errors="replace").removesuffix("\n")
    if not (text.isdecimal() and text.isascii() and len(text) <= _MAX_SIZE_DIGITS):
        raise MalformedError(f"{text[:40]!r} is no size of a tree")
    return int(text)


def backoff(failures: int, every: timedelta, jitter: float) -> timedelta:
    """Return the pause after so many failures in a row; `jitter` is between 0 and 1."""
    whole = min(every * (1 << min(failures, 16)), MAX_BACKOFF)
    return whole * (0.5 + jitter / 2)

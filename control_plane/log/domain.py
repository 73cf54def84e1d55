"""Heads, entries and proofs of the transparency log as values. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shared.checkpoints import Checkpoint
from shared.merkle import EMPTY_ROOT

MAX_GROUP_ROWS: Final = 512
"""Of what waits, integrated at once."""
MAX_GROUP_LEAVES: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What one statement recorded: parallel tuples."""

    pending_id: int
    kind: str
    tenant_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    contents: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One leaf and what it is about."""

    log_index: int
    tenant_id: str
    kind: str
    subject: str
    salt: bytes
    commitment: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How far the log has grown."""

    tree_size: int
    root: bytes


EMPTY_HEAD: Final = Head(tree_size=0, root=EMPTY_ROOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """An entry, and its way to the root of a signed checkpoint."""

    entry: LogEntry
    path: tuple[bytes, ...]
    checkpoint: bytes
    """Signed note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    """What somebody who knows an earlier checkpoint needs to follow the log, and to find facts in it."""

    checkpoint: bytes
    consistency: tuple[bytes, ...]
    """From the known size; empty where that is zero or the checkpoint's."""
    proofs: Mapping[str, InclusionProof]
    """By subject; of those that the checkpoint covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the log shows of its head."""

    checkpoint: bytes
    """The newest signed note."""
    witnessed: bytes = b""
    """The newest note with the quorum of cosignatures; empty: there is none."""
    stopped_by: str = ""
    """Why nothing is signed any more; empty: it is."""


def checkpoint_of(origin: str, head: Head) -> Checkpoint:
    """Return what is signed of a head."""
    return Checkpoint(origin=origin, size=head.tree_size, root=head.root)


def group_of(pending: list[Pending]) -> list[Pending]:
    """Return as many of these, in order, as are integrated at once; at least one."""
    leaves, taken = 0, 0
    for item in pending:
        leaves += len(item.subjects)
        if taken and leaves > MAX_GROUP_LEAVES:
            break
        taken += 1
    return pending[:taken]

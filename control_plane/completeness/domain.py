"""Whether evidence is whole: leaves, tiles, checkpoints and numbers of receipts. No I/O."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from control_plane.audit.domain import AuditEntry
from shared.errors import InvalidInputError
from shared.log_leaf import LeafKind, audit_content, commitment
from shared.merkle import HASH_BYTES, leaf_hash, root_hash, split_hashes
from shared.tiles import MAX_LEVELS, TILE_WIDTH, TileId, Tiles, range_root, tiles_of_edge

WINDOW_LEAVES: Final = 16 * TILE_WIDTH
"""Looked at together; whole tiles."""
MAX_MISSING: Final = 10_000
"""Numbers of one node that are remembered as missing; no more are looked for behind them."""
MAX_RANGES: Final = 20
"""Of missing numbers that one finding spells out."""


KINDS_WITH_FACTS: Final = frozenset({LeafKind.RECEIPT, LeafKind.AUDIT_ENTRY})
"""Leaves that can be made again of what is stored elsewhere."""


class Check(StrEnum):
    """What is looked at."""

    RECEIPTS = "receipts"
    LOG = "log"
    TREE = "tree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something is wrong."""

    check: Check
    subject: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Leaves before this one were looked at."""

    next_log_index: int
    tree_size: int


@dataclass(slots=True, kw_only=True)
class Summary:
    """What was looked at, and how much of it is wrong."""

    tree_size: int = 0
    leaves: int = 0
    facts: int = 0
    removed: int = 0
    checkpoints: int = 0
    nodes: int = 0
    receipts: int = 0
    findings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedLeaf:
    """One entry of the log beside what it is about, as it is stored now."""

    log_index: int
    kind: str
    subject: str
    salt: bytes
    commitment: bytes
    entry: AuditEntry | None = None
    envelope: bytes | None = None
    retained: bool = True
    """False: retention has removed what was made when its subject was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """How far the log is."""

    tree_size: int
    root: bytes
    signed_size: int
    """Leaves under its newest checkpoint."""
    idle_for: timedelta
    """Since it grew last."""
    waiting_for: timedelta
    """How long the oldest of what is not integrated yet has waited; zero when nothing waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNumbers:
    """Numbers of one node's receipts."""

    node_id: str
    last_sequence: int
    head_is_there: bool
    """Whether the receipt with that number is stored."""
    settled: int
    """The highest number that came long enough ago for all before it to be there."""
    checked_to: int
    missing: tuple[int, ...]
    """Of those up to `checked_to`."""
    dropped_to: int
    """Retention has dropped receipts up to this number."""

    @property
    def due(self) -> int:
        """The number up to which all have to be there."""
        # Head and receipt are written by one statement: a head without its receipt was tampered with.
        return max(self.settled, self.last_sequence) if not self.head_is_there else self.settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Leaves from `start` to before `end`; `start` is the first of a tile."""

    start: int
    end: int
    leaves: Sequence[LoggedLeaf]
    tiles: Tiles

    findings: list[Finding] = field(default_factory=list)

    def checked(self) -> "Window":
        """Hold the leaves against their tiles, and those against the tiles above; adds to `findings`."""
        by_index = {leaf.log_index: leaf for leaf in self.leaves}
        for place in range(self.start // TILE_WIDTH, -(-self.end // TILE_WIDTH)):
            stored = split_hashes(self.tiles.get(TileId(0, place), b""))
            first = place * TILE_WIDTH
            for index in range(first, min(first + TILE_WIDTH, self.end)):
                self._check_leaf(index, by_index.get(index), stored[index - first : index - first + 1])
            if len(stored) == TILE_WIDTH:
                self._check_above(TileId(0, place), stored)
        return self

    def _check_leaf(self, index: int, leaf: LoggedLeaf | None, stored: Sequence[bytes]) -> None:
        if leaf is None:
            self._found(f"leaf {index}", "the log has no entry at this place")
        elif not stored:
            self._found(f"leaf {index}", "its tile does not hold it")
        elif stored[0] != leaf_hash(leaf.commitment):
            self._found(f"leaf {index}", f"the entry about {leaf.subject} is not what its tile holds")

    def _check_above(self, tile: TileId, hashes: Sequence[bytes]) -> None:
        """Climb as long as this tile is the last of the one above it."""
        while tile.level + 1 < MAX_LEVELS:
            above, slot = TileId(tile.level + 1, tile.place // TILE_WIDTH), tile.place % TILE_WIDTH
            stored = split_hashes(self.tiles.get(above, b""))
            if stored[slot : slot + 1] != (root_hash(hashes),):
                self._found(f"tile {tile.level}/{tile.place}", "the tile above it holds another root")
                return
            if slot != TILE_WIDTH - 1 or len(stored) != TILE_WIDTH:
                return
            tile, hashes = above, stored

    def _found(self, subject: str, message: str) -> None:
        self.findings.append(Finding(check=Check.TREE, subject=subject, message=message))


def tiles_of_window(start: int, end: int) -> frozenset[TileId]:
    """Which tiles hold these leaves, and which are above those."""
    return frozenset(
        TileId(level, place)
        for level in range(MAX_LEVELS)
        for place in range(start >> 8 * (level + 1), ((end - 1) >> 8 * (level + 1)) + 1)
    )


def check_fact(leaf: LoggedLeaf) -> Finding | None:
    """Make a leaf again of what it is about; None: it is the same, or what it is about was removed."""
    there = leaf.entry is not None or leaf.envelope is not None
    if was_removed(leaf) or leaf.kind not in KINDS_WITH_FACTS:
        return None
    if not there:
        return _wrong(leaf, "is not stored any more, and retention has not removed it")
    if not leaf.salt:
        return _wrong(leaf, "is stored, but its salt is not")
    made = commitment(kind=leaf.kind, subject=leaf.subject, salt=leaf.salt, content=_content(leaf))
    return None if made == leaf.commitment else _wrong(leaf, "is not what was recorded")


def was_removed(leaf: LoggedLeaf) -> bool:
    """Whether retention has removed what it is about."""
    there = leaf.entry is not None or leaf.envelope is not None
    return not there and (not leaf.salt or not leaf.retained)


def _content(leaf: LoggedLeaf) -> bytes:
    if leaf.envelope is not None:
        return hashlib.sha256(leaf.envelope).digest()
    assert leaf.entry is not None
    entry = leaf.entry
    return audit_content(
        audit_entry_id=entry.audit_entry_id,
        tenant_id=entry.tenant_id,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        result=entry.result,
        recorded_at=entry.recorded_at,
        details=entry.details,
    )


def _wrong(leaf: LoggedLeaf, what: str) -> Finding:
    return Finding(
        check=Check.LOG, subject=leaf.subject, message=f"leaf {leaf.log_index}: the {leaf.kind} {what}"
    )


def check_root(tiles: Tiles, size: int, root: bytes, subject: str) -> Finding | None:
    """Hold a root against the tiles, which are at least those of `tiles_of_edge(size)`."""
    try:
        made = range_root(tiles, 0, size)
    except InvalidInputError as error:
        return Finding(check=Check.TREE, subject=subject, message=str(error))
    if len(root) == HASH_BYTES and made == root:
        return None
    return Finding(check=Check.TREE, subject=subject, message=f"the tiles of {size} leaves have another root")


def tiles_of_sizes(sizes: Sequence[int]) -> frozenset[TileId]:
    """Which tiles the roots of these sizes are made of."""
    return frozenset(tile for size in sizes for tile in tiles_of_edge(size))


def missing_finding(node_id: str, numbers: Sequence[int]) -> Finding:
    """Say which numbers of a node's receipts are missing."""
    spans = list(_spans(sorted(numbers)))
    named = ", ".join(
        f"{first}" if first == last else f"{first}-{last}" for first, last in spans[:MAX_RANGES]
    )
    more = " and more" if len(spans) > MAX_RANGES or len(numbers) >= MAX_MISSING else ""
    return Finding(
        check=Check.RECEIPTS,
        subject=node_id,
        message=f"{len(numbers)} receipts are missing: number {named}{more}",
    )


def _spans(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = previous = None
    for number in numbers:
        if first is None or previous is None:
            first = number
        elif number != previous + 1:
            yield first, previous
            first = number
        previous = number
    if first is not None and previous is not None:
        yield first, previous

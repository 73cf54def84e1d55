"""A Merkle tree in tiles of 256 hashes (C2SP tlog-tiles): what grows, and which hashes a proof needs. No I/O.

A tile is named by its level and its place; tiles of level 0 hold leaf hashes, those of level n the roots of
whole tiles of level n - 1. Proofs are those of RFC 9162; `shared/merkle.py` verifies them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from shared.errors import InvalidInputError
from shared.merkle import EMPTY_ROOT, HASH_BYTES, node_hash, root_hash

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT


class TileId(NamedTuple):
    """Which tile."""

    level: int
    place: int


class Node(NamedTuple):
    """The root of a whole subtree of ``2 ** level`` leaves: the `place`-th of its level."""

    level: int
    place: int

    @property
    def tile(self) -> TileId:
        """Where its hash is, or those that it is made of."""
        height = self.level % TILE_HEIGHT
        return TileId(self.level // TILE_HEIGHT, (self.place << height) // TILE_WIDTH)


Tiles = Mapping[TileId, bytes]
"""Hashes behind each other: 256 in a whole tile, fewer in the last of a level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Whose hashes make a proof: ranges of leaves, in the order of the proof."""

    ranges: tuple[tuple[int, int], ...]

    def tiles(self) -> frozenset[TileId]:
        """Which tiles are needed."""
        return frozenset(node.tile for start, end in self.ranges for node in nodes_of(start, end))

    def hashes(self, tiles: Tiles) -> tuple[bytes, ...]:
        """Return the proof.

        Raises:
            InvalidInputError: A hash is not in the tiles.
        """
        return tuple(range_root(tiles, start, end) for start, end in self.ranges)


NO_PROOF: Final = Proof(ranges=())
"""Where nothing has to be proved."""


def inclusion(index: int, size: int) -> Proof:
    """Return what proves that leaf `index` is in the tree of `size` (RFC 9162 section 2.1.3.1).

    Raises:
        InvalidInputError: There is no such leaf.
    """
    if not 0 <= index < size:
        raise InvalidInputError(f"no leaf {index} in a tree of {size}")
    ranges: list[tuple[int, int]] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((start, split))
            start = split
    return Proof(ranges=tuple(reversed(ranges)))


def consistency(first: int, second: int) -> Proof:
    """Return what proves that the tree of `first` leaves begins that of `second` (RFC 9162 section 2.1.4.1).

    Raises:
        InvalidInputError: Not ``1 <= first <= second``.
    """
    if not 1 <= first <= second:
        raise InvalidInputError(f"no first tree of {first} within {second} leaves")
    ranges: list[tuple[int, int]] = []
    start, end, known = 0, second, True
    while first != end:
        split = start + _split(end - start)
        if first <= split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((start, split))
            start, known = split, False
    if not known:
        ranges.append((start, end))
    return Proof(ranges=tuple(reversed(ranges)))


def nodes_of(start: int, end: int) -> Iterator[Node]:
    """Yield the whole subtrees that leaves ``[start, end)`` are made of, from left to right."""
    while start < end:
        level = min((start & -start).bit_length() - 1 if start else 63, (end - start).bit_length() - 1)
        yield Node(level, start >> level)
        start += 1 << level


def tiles_of_edge(size: int) -> frozenset[TileId]:
    """Which tiles the root of a tree of `size` is made of, and the next leaf goes to."""
    return frozenset(node.tile for node in nodes_of(0, size)) | frozenset(
        TileId(level, size >> TILE_HEIGHT * (level + 1))
        for level in range(MAX_LEVELS)
        if size >> TILE_HEIGHT * level
    )


MAX_LEVELS: Final = 8


def hashes_of(tile: TileId, size: int) -> int:
    """Return how many hashes a tile has in a tree of `size`; none or fewer: it is not there yet."""
    return min(TILE_WIDTH, (size >> TILE_HEIGHT * tile.level) - tile.place * TILE_WIDTH)


def range_root(tiles: Tiles, start: int, end: int) -> bytes:
    """Return the root of leaves ``[start, end)``, a range as proofs have them.

    Raises:
        InvalidInputError: A hash is not in the tiles.
    """
    hashes = [_node_of(tiles, node) for node in nodes_of(start, end)]
    if not hashes:
        return EMPTY_ROOT
    root = hashes.pop()
    while hashes:
        root = node_hash(hashes.pop(), root)
    return root


def grown(tiles: Tiles, size: int, leaf_hashes: Sequence[bytes]) -> dict[TileId, bytes]:
    """Return the tiles that change when leaves are appended to a tree of `size`, as they are then.

    `tiles` holds those of `tiles_of_edge(size)` that exist.

    Raises:
        InvalidInputError: A tile that has to be there is not, or not as full as the size says.
    """
    changed: dict[TileId, bytes] = {}
    hashes = list(leaf_hashes)
    level = 0
    while hashes:
        at = size >> TILE_HEIGHT * level
        parents: list[bytes] = []
        while hashes:
            tile = TileId(level, at // TILE_WIDTH)
            full = at % TILE_WIDTH
            before = changed.get(tile, tiles.get(tile, b""))
            if len(before) != full * HASH_BYTES:
                raise InvalidInputError(
                    f"tile {tile.level}/{tile.place} holds {len(before)} bytes, not {full} hashes"
                )
            taken, hashes = hashes[: TILE_WIDTH - full], hashes[TILE_WIDTH - full :]
            changed[tile] = before + b"".join(taken)
            at += len(taken)
            if at % TILE_WIDTH == 0:
                parents.append(root_hash(_split_hashes(changed[tile])))
        hashes = parents
        level += 1
    return changed


def _node_of(tiles: Tiles, node: Node) -> bytes:
    height = node.level % TILE_HEIGHT
    first = (node.place << height) % TILE_WIDTH
    hashes = tiles.get(node.tile, b"")[first * HASH_BYTES : (first + (1 << height)) * HASH_BYTES]
    if len(hashes) != HASH_BYTES << height:
        raise InvalidInputError(f"tile {node.tile.level}/{node.tile.place} does not hold what a proof needs")
    return root_hash(_split_hashes(hashes))


def _split_hashes(joined: bytes) -> list[bytes]:
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1

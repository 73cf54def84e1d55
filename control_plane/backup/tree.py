"""A Merkle tree that is grown leaf by leaf and forgets them, but for what is wanted. No I/O."""

from collections.abc import Collection

from shared.merkle import EMPTY_ROOT, leaf_hash, node_hash
from shared.tiles import TILE_HEIGHT, TileId


class GrowingTree:
    """RFC 9162: roots at the sizes that are wanted, and the tiles above the leaves."""

    def __init__(self, wanted: Collection[int]) -> None:
        self.size = 0
        self.roots: dict[int, bytes] = {0: EMPTY_ROOT}
        self._wanted = frozenset(wanted)
        self._edge: list[bytes] = []
        """Roots of the whole subtrees from left to right, the largest first."""
        self._tiles: dict[TileId, bytearray] = {}

    def add(self, data: bytes) -> bytes:
        """Append a leaf; returns its hash."""
        hashed = node = leaf_hash(data)
        place, level = self.size, 0
        while place & 1:
            node = node_hash(self._edge.pop(), node)
            place >>= 1
            level += 1
            self._remember(level, place, node)
        self._edge.append(node)
        self.size += 1
        if self.size in self._wanted:
            self.roots[self.size] = self.root
        return hashed

    @property
    def root(self) -> bytes:
        """Of all that was added."""
        if not self._edge:
            return EMPTY_ROOT
        node = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            node = node_hash(left, node)
        return node

    def tiles(self) -> dict[TileId, bytes]:
        """Return the tiles of all levels above the leaves."""
        return {tile: bytes(hashes) for tile, hashes in self._tiles.items()}

    def _remember(self, level: int, place: int, node: bytes) -> None:
        if level % TILE_HEIGHT == 0:
            width = 1 << TILE_HEIGHT
            tile = TileId(level // TILE_HEIGHT, place // width)
            self._tiles.setdefault(tile, bytearray()).extend(node)

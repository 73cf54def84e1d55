"""Proofs from tiles are those that the definitions of RFC 9162 give, however the tree grew."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidInputError
from shared.merkle import (
    consistency_proof,
    inclusion_path,
    leaf_hash,
    root_hash,
    verify_consistency,
    verify_inclusion,
)
from shared.tiles import (
    TILE_WIDTH,
    TileId,
    consistency,
    grown,
    hashes_of,
    inclusion,
    range_root,
    tiles_of_edge,
)

MAX_LEAVES = 70_000
LEAVES = [leaf_hash(number.to_bytes(4, "big")) for number in range(MAX_LEAVES)]
SMALL = st.integers(1, 1200)


def tree_of(*sizes: int) -> dict[TileId, bytes]:
    """Grow a tree to each of the sizes in turn, with no tile at hand but those of the edge."""
    tiles: dict[TileId, bytes] = {}
    before = 0
    for size in sizes:
        edge = {tile: tiles[tile] for tile in tiles_of_edge(before) if tile in tiles}
        tiles |= grown(edge, before, LEAVES[before:size])
        before = size
    return tiles


@given(st.lists(SMALL, min_size=1, max_size=6).map(sorted), st.data())
def test_inclusion_is_that_of_the_definition(sizes, data):
    size = sizes[-1]
    index = data.draw(st.integers(0, size - 1))
    tiles = tree_of(*sizes)
    proof = inclusion(index, size)
    path = proof.hashes({tile: tiles[tile] for tile in proof.tiles()})
    assert path == inclusion_path(LEAVES[:size], index)
    verify_inclusion(leaf=LEAVES[index], index=index, size=size, path=path, root=range_root(tiles, 0, size))


@given(st.lists(SMALL, min_size=1, max_size=6).map(sorted), st.data())
def test_consistency_is_that_of_the_definition(sizes, data):
    size = sizes[-1]
    first = data.draw(st.integers(1, size))
    tiles = tree_of(*sizes)
    proof = consistency(first, size)
    path = proof.hashes({tile: tiles[tile] for tile in proof.tiles()})
    assert path == consistency_proof(LEAVES[:size], first)
    verify_consistency(
        first_size=first,
        second_size=size,
        proof=path,
        first_root=range_root(tiles, 0, first),
        second_root=range_root(tiles, 0, size),
    )


@pytest.mark.parametrize("size", [255, 256, 257, 65_535, 65_536, 65_537, 69_999])
def test_roots_at_the_borders_of_tiles(size):
    tiles = tree_of(size - 1, size)
    edge = {tile: tiles[tile] for tile in tiles_of_edge(size) if tile in tiles}
    assert range_root(edge, 0, size) == root_hash(LEAVES[:size])
    assert all(0 < len(tile) <= TILE_WIDTH * 32 for tile in tiles.values())
    for index in (0, size // 2, size - 1):
        path = inclusion(index, size).hashes(tiles)
        verify_inclusion(leaf=LEAVES[index], index=index, size=size, path=path, root=root_hash(LEAVES[:size]))


def test_what_is_not_there_is_named():
    tiles = tree_of(300)
    with pytest.raises(InvalidInputError, match="no leaf 300"):
        inclusion(300, 300)
    with pytest.raises(InvalidInputError, match="no first tree of 0"):
        consistency(0, 300)
    del tiles[TileId(0, 0)]
    with pytest.raises(InvalidInputError, match="tile 0/0"):
        inclusion(5, 300).hashes(tiles)
    with pytest.raises(InvalidInputError, match="tile 0/1 holds 1408 bytes, not 45 hashes"):
        grown(tiles, 301, LEAVES[301:302])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, MAX_LEAVES - 1))
def test_as_many_hashes_of_a_tile_are_said_to_be_there_as_there_are(size):
    tiles = tree_of(size)
    assert {tile: hashes_of(tile, size) * 32 for tile in tiles} == {
        tile: len(hashes) for tile, hashes in tiles.items()
    }
    for tile in tiles:
        beyond = TileId(tile.level, tile.place + 1)
        assert beyond in tiles or hashes_of(beyond, size) <= 0

"""Windows of a large tree: whichever hash of whichever tile is altered, the window that holds it tells."""

import hashlib

import pytest

from control_plane.completeness.domain import (
    LoggedLeaf,
    Window,
    check_root,
    missing_finding,
    tiles_of_sizes,
    tiles_of_window,
)
from shared.merkle import leaf_hash, root_hash
from shared.tiles import TileId, grown

SIZE = 65_536 + 256 * 3 + 17
COMMITMENTS = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(SIZE)]
HASHES = [leaf_hash(one) for one in COMMITMENTS]
TILES = grown({}, 0, HASHES)


def leaves(start, end):
    return [
        LoggedLeaf(
            log_index=index, kind="receipt", subject=f"rcp_{index}", salt=b"", commitment=COMMITMENTS[index]
        )
        for index in range(start, end)
    ]


def found(start, end, tiles=TILES):
    needed = {tile: tiles[tile] for tile in tiles_of_window(start, end) if tile in tiles}
    window = Window(start=start, end=end, leaves=leaves(start, end), tiles=needed).checked()
    return [one.subject for one in window.findings]


def altered(tile, slot):
    hashes = bytearray(TILES[tile])
    hashes[32 * slot] ^= 1
    return {**TILES, tile: bytes(hashes)}


@pytest.mark.parametrize("start", [0, 4096, 65_536 - 256, 65_536])
def test_windows_that_are_whole_tell_nothing(start):
    assert found(start, min(start + 4096, SIZE)) == []


@pytest.mark.parametrize(
    ("tile", "slot", "subject"),
    [
        (TileId(0, 255), 3, "leaf 65283"),
        (TileId(1, 0), 255, "tile 0/255"),
        (TileId(1, 0), 0, "tile 1/0"),
        (TileId(2, 0), 0, "tile 1/0"),
        (TileId(0, 256), 0, "leaf 65536"),
        (TileId(1, 1), 2, "tile 0/258"),
    ],
    ids=str,
)
def test_an_altered_hash_is_found_where_it_is(tile, slot, subject):
    start = 65_536 - 256
    assert subject in found(start, SIZE, altered(tile, slot))


def test_roots_of_every_kind_of_size():
    for size in (1, 255, 256, 257, 65_535, 65_536, SIZE):
        needed = {tile: TILES[tile] for tile in tiles_of_sizes([size]) if tile in TILES}
        assert check_root(needed, size, root_hash(HASHES[:size]), "head") is None
        assert check_root(needed, size, bytes(32), "head") is not None
        assert check_root({}, size, root_hash(HASHES[:size]), "head") is not None


def test_missing_numbers_are_told_as_ranges_and_not_without_end():
    assert missing_finding("n", [3, 4, 5, 9]).message == "4 receipts are missing: number 3-5, 9"
    assert missing_finding("n", list(range(0, 100, 2))).message.endswith("and more")

"""Pieces of machine code that a node has already: what it takes from its disk, and what nobody makes it take."""

import os

import pytest

from data_plane.artifacts.pieces import MAX_HELD, HeldPiece, HeldPieces, PieceLostError, read_piece
from shared.compiled import PIECE_BYTES, pack_piece
from shared.digests import sha256_digest
from tests.fixtures.keys import ed25519_key
from tests.unit.data_plane.artifacts.test_elsewhere import (
    World,
    compiler_entry,
    compiler_two,
    pieces_of,
    refusals,
)
from tests.unit.shared.builders import MODULE

SHARED = os.urandom(2 * PIECE_BYTES)
FIRST = SHARED + b"the memory of one agent"
SECOND = SHARED + os.urandom(PIECE_BYTES) + b"that of another"
OTHER_MODULE = MODULE + b"\0"
OTHER_HERE = b"compiled:" + OTHER_MODULE
WHOLE = frozenset(map(sha256_digest, pieces_of(SHARED)))


@pytest.fixture
async def world(tmp_path):
    """One agent's machine code is on the disk, and another's, which begins in the same way, is offered."""
    world = World(tmp_path)
    await world.trust(compiler_entry(), version=1)
    world.first = await world.publish()
    await world.offer(**stated(FIRST))
    assert await world.load(world.first) == FIRST
    await world.cache.settled()
    world.second = await world.publish(OTHER_MODULE)
    await world.offer(**stated(SECOND), module_digest=sha256_digest(OTHER_MODULE))
    world.source.sent = 0
    yield world
    await world.cache.settled()


def stated(code: bytes) -> dict:
    return {
        "code": code,
        "artifact_digest": sha256_digest(code),
        "artifact_bytes": len(code),
        "piece_digests": tuple(map(sha256_digest, pieces_of(code))),
    }


def pieces(world) -> tuple[float, float]:
    return tuple(world.count("artifact_pieces", piece=piece) for piece in ("fetched", "reused"))


def only_file(world):
    (path,) = (world.folder / "artifacts").glob("*.artifact")
    return path


async def compiled_here_for(world) -> str:
    """Return why the second agent's machine code was not taken."""
    assert await world.load(world.second) == OTHER_HERE
    (sample,) = refusals(world)
    assert world.count("new_modules", compiled="elsewhere") == 1
    return sample.labels["reason"]


async def test_only_the_pieces_travel_that_the_node_has_not(world):
    assert await world.load(world.second) == SECOND

    assert world.source.named == [frozenset(), WHOLE]
    assert world.source.sent == 2
    assert pieces(world) == (3 + 2, 2)
    await world.cache.settled()
    assert await world.load(world.second) == SECOND  # from the disk, as sealed


async def test_what_was_put_together_from_both_serves_the_next(world):
    await world.load(world.second)
    await world.cache.settled()
    world.cache.drop(world.first.module_digest, world.first.profile)
    third = await world.publish(MODULE + b"\1")
    code = SHARED + b"a third"
    await world.offer(**stated(code), module_digest=third.module_digest)

    assert await world.load(third) == code

    assert world.source.asked == 3
    assert world.source.named[-1] == WHOLE | {sha256_digest(pieces_of(SECOND)[2])}


async def test_a_control_plane_of_before_sends_all_of_it(world):
    world.source.leaves_out = lambda held: ()

    assert await world.load(world.second) == SECOND

    assert pieces(world) == (3 + 4, 0)


async def test_nothing_is_named_after_a_start(world):
    world.restart()

    assert await world.load(world.second) == SECOND
    assert world.source.named[-1] == frozenset()


async def test_a_piece_is_taken_whoever_vouched_for_the_artifact_that_it_came_with(world):
    """The later statement is by a key that counts, and names the same packed bytes."""
    await world.trust(compiler_two(), version=2)
    two = ed25519_key("compiler-2")
    await world.offer(key=two, **stated(SECOND), module_digest=sha256_digest(OTHER_MODULE))

    assert await world.load(world.second) == SECOND
    assert (await world.service.prepare(world.second)).vouched_by == two.key_id
    assert pieces(world) == (5, 2)


LIES = {
    "a piece that the node has not": lambda held: [0, 1, 2],
    "the last piece alone": lambda held: [3],
    "a piece that nobody stated": lambda held: [0, 4],
    "a number without an end": lambda held: [0, 2**32 - 1],
    "another order": lambda held: [1, 0],
    "a piece twice": lambda held: [0, 0],
    "everything, many times": lambda held: [0, 1] * 5000,
}


@pytest.mark.parametrize("lie", LIES)
async def test_leaving_out_something_else_than_what_was_named_is_refused(world, lie):
    world.source.leaves_out = LIES[lie]

    assert await compiled_here_for(world) == "MALFORMED"
    assert world.source.asked == 2


async def test_a_piece_that_comes_although_it_is_left_out_is_refused(world):
    world.source.sends_also = frozenset([0])

    assert await compiled_here_for(world) in {"PACKAGE_ALTERED", "MALFORMED"}


async def test_another_piece_than_those_that_are_missing_is_refused(world):
    world.source.pieces[2] = pack_piece(os.urandom(PIECE_BYTES))

    assert await compiled_here_for(world) == "PACKAGE_ALTERED"


async def test_pieces_behind_the_last_one_are_refused(world):
    world.source.pieces.append(world.source.pieces[0])
    world.source.leaves_out = lambda held: [0, 1]

    assert await compiled_here_for(world) == "MALFORMED"


async def test_a_whole_piece_cannot_stand_where_a_shorter_one_is_stated(world):
    changes = stated(SHARED) | {"artifact_bytes": len(SHARED) - 1}
    await world.offer(**changes, module_digest=sha256_digest(OTHER_MODULE))

    assert await compiled_here_for(world) == "MALFORMED"


async def test_a_piece_that_is_shorter_than_its_place_is_refused_whoever_signed_it(world):
    """Zeros would stand behind it in the file, and be taken for it later."""
    short = [pack_piece(b"short"), pack_piece(b"end")]
    changes = {"artifact_bytes": PIECE_BYTES + 3, "piece_digests": tuple(map(sha256_digest, short))}
    await world.offer(**changes, module_digest=sha256_digest(OTHER_MODULE))
    world.source.pieces = short

    assert await compiled_here_for(world) == "MALFORMED"


@pytest.mark.parametrize("damage", ["a changed byte", "cut", "a link"])
async def test_damage_on_the_disk_under_a_remembered_piece_costs_one_more_request(world, damage, tmp_path):
    path = only_file(world)
    content = bytearray(path.read_bytes())
    content[-len(FIRST)] ^= 1
    if damage == "cut":
        os.truncate(path, 1000)
    elif damage == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes(content)

    assert await world.load(world.second) == SECOND

    assert world.source.named == [frozenset(), WHOLE, frozenset()]
    assert refusals(world) == []
    assert pieces(world) == (3 + 4, 0)


async def test_nothing_of_a_file_that_was_dropped_is_named(world):
    world.cache.drop(world.first.module_digest, world.first.profile)

    assert await world.load(world.second) == SECOND
    assert world.source.named == [frozenset(), frozenset()]


async def test_a_file_that_goes_after_its_pieces_were_named_costs_one_more_request(world):
    def dropped_meanwhile(held):
        world.cache.drop(world.first.module_digest, world.first.profile)
        return world.source.what_is_held(held)

    world.source.leaves_out = dropped_meanwhile

    assert await world.load(world.second) == SECOND
    assert world.source.named == [frozenset(), WHOLE, frozenset()]


async def test_nothing_is_remembered_of_what_is_not_of_its_stated_digest(world):
    world.restart()
    await world.offer(
        **stated(SECOND) | {"artifact_digest": sha256_digest(b"")}, module_digest=world.second.module_digest
    )
    await world.load(world.second)
    await world.cache.settled()
    await world.load(world.second)

    assert world.source.named[-1] == frozenset()


async def test_a_control_plane_that_leaves_out_pieces_of_the_second_request_is_refused(world):
    os.truncate(only_file(world), 1000)
    world.source.leaves_out = lambda held: [0, 1]

    assert await compiled_here_for(world) == "MALFORMED"
    assert world.source.asked == 3


def a_place(path, content=b"x" * PIECE_BYTES) -> HeldPiece:
    path.write_bytes(content)
    return HeldPiece(path=path, offset=0, sha256=bytes.fromhex(sha256_digest(content)[7:]))


def test_the_latest_used_are_remembered_within_a_bound(tmp_path):
    held, place = HeldPieces(), a_place(tmp_path / "one")
    digests = [sha256_digest(str(number).encode()) for number in range(MAX_HELD + 2)]
    held.learn((digest, place) for digest in digests[:MAX_HELD])
    held.learn([(digests[0], place)])
    held.learn((digest, place) for digest in digests[MAX_HELD:])

    assert list(held.held()) == [*digests[3:MAX_HELD], digests[0], *digests[MAX_HELD:]]


def test_a_file_that_is_no_more_is_forgotten_and_others_are_not(tmp_path):
    held = HeldPieces()
    here, gone = a_place(tmp_path / "here"), a_place(tmp_path / "gone")
    held.learn([(sha256_digest(b"1"), here), (sha256_digest(b"2"), gone)])
    gone.path.unlink()

    assert held.held() == {sha256_digest(b"1"): here}


@pytest.mark.parametrize("content", [b"", b"x" * (PIECE_BYTES - 1), b"y" * PIECE_BYTES])
def test_other_bytes_than_were_written_are_no_piece(tmp_path, content):
    place = a_place(tmp_path / "one")
    read_piece(place, bytearray(PIECE_BYTES))
    place.path.write_bytes(content)

    with pytest.raises(PieceLostError):
        read_piece(place, bytearray(PIECE_BYTES))

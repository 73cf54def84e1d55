"""Puts an artifact together from the pieces that come and those that are here. Judges no statement.

Its pieces are worked on by threads, which go on to the end of theirs when nobody waits any more.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Final

from data_plane.artifacts.memory import Received, freeze
from data_plane.artifacts.pieces import HeldPiece, read_piece
from data_plane.artifacts.ports import CompiledOffer
from data_plane.files import write_all
from shared.compiled import PIECE_BYTES, CompiledStatement, VerifiedStatement, piece_size, unpack_piece
from shared.digests import Digest, same_digest, sha256_digest
from shared.errors import MalformedError, PackageAlteredError

UNPACKED_AT_ONCE: Final = 2


class _Memory:
    """A memory file that is closed when nobody holds it any more: a thread may write to it still."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def __del__(self) -> None:
        os.close(self.descriptor)


async def receive(
    offer: CompiledOffer, verified: VerifiedStatement, held: Mapping[Digest, HeldPiece]
) -> Received:
    """Return what a verified statement names, from the pieces that come and, where told so, from `held`.

    a. Only pieces are left out that were named as held, and that are whole ones in this artifact too.
    b. Each piece that comes is, packed, the next one that the statement names, and unpacks to its size.
    c. Each that is left out has the plain bytes that this process once unpacked from a piece of that digest.
    d. All that is stated comes, and nothing behind it.

    Raises:
        MalformedError, PackageAlteredError, DecompressionBombError: a, b or d; check 4 of the caller's.
        PieceLostError: c; nothing is wrong with what came.
        OSError: There is no memory for it.
    """
    stated, memory = verified.statement, _Memory()
    reused = _left_out(offer.left_out, stated, held)
    await _fill(memory, offer.pieces, stated, reused)
    freeze(memory.descriptor)
    return Received(
        descriptor=os.dup(memory.descriptor),
        digest=stated.artifact_digest,
        size_bytes=stated.artifact_bytes,
        vouched_by=verified.key_id,
        piece_digests=stated.piece_digests,
        reused={number: piece.sha256 for number, piece in reused.items()},
    )


def _left_out(
    numbers: tuple[int, ...], stated: CompiledStatement, held: Mapping[Digest, HeldPiece]
) -> Mapping[int, HeldPiece]:
    expected, before, found = stated.piece_digests, -1, {}
    for number in numbers:
        if not before < number < len(expected):
            raise MalformedError("check 4: the pieces that are left out are not in order, or not stated")
        piece = held.get(expected[number])
        if piece is None or piece_size(stated.artifact_bytes, number) != PIECE_BYTES:
            raise MalformedError(f"check 4: piece {number} is left out, and this node has not named it")
        before, found[number] = number, piece
    return found


async def _fill(
    memory: _Memory,
    pieces: AsyncIterator[bytes],
    stated: CompiledStatement,
    reused: Mapping[int, HeldPiece],
) -> None:
    """Verify each piece before it is unpacked, some at once; beside them one thread copies what is here."""
    coming = deque(number for number in range(len(stated.piece_digests)) if number not in reused)
    copying = asyncio.create_task(asyncio.to_thread(_copy_all, memory, reused))
    under_way: deque[asyncio.Task[None]] = deque()
    try:
        async for packed in pieces:
            if not coming:
                raise MalformedError("check 4: more came than the pieces stated")
            if len(under_way) == UNPACKED_AT_ONCE:
                await under_way.popleft()
            work = asyncio.to_thread(_take_piece, memory, coming.popleft(), packed, stated)
            under_way.append(asyncio.create_task(work))
        if coming:
            raise MalformedError(f"check 4: {len(coming)} of the pieces stated did not come")
        while under_way:
            await under_way.popleft()
        await copying
    finally:
        # Threads go on to the end of their work, in memory that is theirs until then.
        for task in (copying, *under_way):
            task.cancel()
        await asyncio.gather(copying, *under_way, return_exceptions=True)


def _take_piece(memory: _Memory, number: int, packed: bytes, stated: CompiledStatement) -> None:
    if not same_digest(sha256_digest(packed), stated.piece_digests[number]):
        raise PackageAlteredError(f"check 4: piece {number} is not the one that the statement names")
    piece = unpack_piece(packed)
    if len(piece) != piece_size(stated.artifact_bytes, number):
        # Where it is written decides what later artifacts may take from there.
        raise MalformedError(f"check 4: piece {number} unpacks to {len(piece)} bytes")
    write_all(memory.descriptor, piece, offset=number * PIECE_BYTES)


def _copy_all(memory: _Memory, reused: Mapping[int, HeldPiece]) -> None:
    buffer = bytearray(PIECE_BYTES)
    for number, piece in reused.items():
        read_piece(piece, buffer)
        write_all(memory.descriptor, buffer, offset=number * PIECE_BYTES)

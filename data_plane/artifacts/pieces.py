"""Which whole pieces of machine code are on this node's disk, and need not travel again. Trusts no file.

Agents of one runtime begin with the same machine code, byte for byte, so most of their packed pieces are
equal. Who vouched for the artifact that a piece came with does not matter: this process has unpacked exactly
the bytes with the packed digest, and remembers the SHA-256 of what came out. Another statement that names
the same packed digest means the same bytes, and what is read back is compared with that hash before use.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Final

from shared.compiled import PIECE_BYTES
from shared.digests import Digest

MAX_HELD: Final = 512
"""Pieces that are remembered, and named in one request: 16 KiB of it."""


class PieceLostError(Exception):
    """A remembered piece is not on the disk any more as it was; never leaves this package."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{why}: {path.name}")
        self.path = path


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPiece:
    """Where the plain bytes of one whole piece were written."""

    path: Path
    offset: int
    sha256: bytes
    """Of its plain bytes, as this process unpacked them."""


class HeldPieces:
    """Remembers pieces by the digest of their packed bytes, the latest used; empty after a start."""

    def __init__(self) -> None:
        self._places: dict[Digest, HeldPiece] = {}

    def learn(self, pieces: Iterable[tuple[Digest, HeldPiece]]) -> None:
        """Remember whole pieces of a file that was just written; a last, shorter one is one module's only."""
        for digest, place in pieces:
            # The newest file is the last that the cache's bound evicts.
            self._places.pop(digest, None)
            self._places[digest] = place
        for digest in list(self._places)[:-MAX_HELD]:
            del self._places[digest]

    def forget(self, path: Path) -> None:
        """Remember nothing of this file any more."""
        self._places = {digest: place for digest, place in self._places.items() if place.path != path}

    def held(self) -> Mapping[Digest, HeldPiece]:
        """Return what is remembered of files that are still there."""
        for path in {place.path for place in self._places.values()}:
            if not path.exists():
                self.forget(path)
        return dict(self._places)


def read_piece(piece: HeldPiece, into: bytearray) -> None:
    """Read a piece into a buffer of exactly one piece's size.

    Raises:
        PieceLostError: Its file is gone, or holds something else there. What is in the buffer is not it.
    """
    try:
        source = os.open(piece.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.preadv(source, [into], piece.offset)
        finally:
            os.close(source)
    except OSError as error:
        raise PieceLostError(piece.path, f"cannot be read ({error.strerror})") from error
    if size != PIECE_BYTES or not compare_digest(hashlib.sha256(into).digest(), piece.sha256):
        raise PieceLostError(piece.path, "holds other bytes than were written to it")

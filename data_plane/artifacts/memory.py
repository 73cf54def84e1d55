"""Memory files: bytes without a name, which nobody can change once they are frozen. Judges none of them."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from shared.compiled import PIECE_BYTES
from shared.digests import Digest, digest_from_raw
from shared.ids import KeyId

CHUNK_BYTES: Final = PIECE_BYTES
"""What compiling nodes send in one piece, too."""

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An artifact that was compiled elsewhere, as a frozen memory file of bytes that are vouched for."""

    descriptor: int
    digest: Digest
    """As it is stated: compared before it is sealed."""
    size_bytes: int
    vouched_by: KeyId
    piece_digests: tuple[Digest, ...]
    """Of its packed pieces: each was compared before its bytes were written here."""
    reused: Mapping[int, bytes]
    """Those of them that this node had already, by number: the SHA-256 that their plain bytes were of."""


def chunks_of(descriptor: int) -> Iterator[bytes]:
    """Yield what a file holds, from its beginning, wherever its descriptor stands."""
    offset = 0
    while chunk := os.pread(descriptor, CHUNK_BYTES, offset):
        yield chunk
        offset += len(chunk)


def digest_of(descriptor: int) -> tuple[Digest, int]:
    """Return digest and size of what a file holds."""
    state, size = hashlib.sha256(), 0
    for chunk in chunks_of(descriptor):
        state.update(chunk)
        size += len(chunk)
    return digest_from_raw(state.digest()), size


def digests_of(descriptor: int, known: Mapping[int, bytes]) -> tuple[Digest, int, list[bytes]]:
    """Return digest and size of what a file holds, and the SHA-256 of each of its pieces, if not known."""
    state, size, pieces = hashlib.sha256(), 0, []
    for number, chunk in enumerate(chunks_of(descriptor)):
        state.update(chunk)
        pieces.append(known.get(number) or hashlib.sha256(chunk).digest())
        size += len(chunk)
    return digest_from_raw(state.digest()), size, pieces


def memory_file(name: str, content: bytes) -> int:
    """Return `content` as a sealed memory file; the caller closes it."""
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        write_all(memory, content)
        freeze(memory)
    except BaseException:
        os.close(memory)
        raise
    return memory


def freeze(memory: int) -> None:
    """Let nobody change a memory file any more, and read it from its beginning."""
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(memory, 0, os.SEEK_SET)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

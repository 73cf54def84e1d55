"""Bytes of any length under one key, in segments of AES-256-GCM, as they come; whatever they are.

The nonce counts the segments and marks the last (STREAM, Hoang et al. 2015), so that none can be left out,
repeated, moved or cut off; the header is what all of them authenticate. A key seals one archive only.
"""

import io
import struct
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from control_plane.backup.domain import SEGMENT_BYTES
from shared.errors import SignatureInvalidError

TAG_BYTES: Final = 16
_NONCE: Final = struct.Struct(">7xIB")


class SealingWriter(io.RawIOBase):
    """A sink of plain bytes; `close` writes the last segment and leaves the file below open."""

    def __init__(self, below: IO[bytes], *, key: bytes, context: bytes) -> None:
        super().__init__()
        self._below = below
        self._cipher = AESGCM(key)
        self._context = context
        self._held = bytearray()
        self._number = 0
        self._is_aborted = False

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # what IOBase calls a buffer
        self._held += view
        while len(self._held) > SEGMENT_BYTES:
            self._seal(bytes(self._held[:SEGMENT_BYTES]), last=0)
            del self._held[:SEGMENT_BYTES]
        return len(view)

    def abort(self) -> None:
        """Let `close` write nothing more: the archive is not whole."""
        self._is_aborted = True

    def close(self) -> None:
        if not self.closed and not self._is_aborted:
            self._seal(bytes(self._held), last=1)
            self._held.clear()
        super().close()

    def _seal(self, plain: bytes, *, last: int) -> None:
        nonce = _NONCE.pack(self._number, last)
        self._below.write(self._cipher.encrypt(nonce, plain, self._context))
        self._number += 1


class SealingReader(io.RawIOBase):
    """The plain bytes of such a file.

    `read` raises:
        SignatureInvalidError: A segment was altered, or the archive ends early; which one is said.
    """

    def __init__(self, below: IO[bytes], *, key: bytes, context: bytes) -> None:
        super().__init__()
        self._below = below
        self._cipher = AESGCM(key)
        self._context = context
        self._ahead = _exactly(below, SEGMENT_BYTES + TAG_BYTES)
        self._plain = memoryview(b"")
        self._number = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # what IOBase calls a buffer
        while not self._plain and not self._ended:
            self._open()
        taken = min(len(view), len(self._plain))
        view[:taken] = self._plain[:taken]
        self._plain = self._plain[taken:]
        return taken

    def _open(self) -> None:
        sealed, self._ahead = self._ahead, _exactly(self._below, SEGMENT_BYTES + TAG_BYTES)
        last = 0 if self._ahead else 1
        try:
            plain = self._cipher.decrypt(_NONCE.pack(self._number, last), sealed, self._context)
        except (InvalidTag, ValueError) as error:
            raise SignatureInvalidError(
                f"segment {self._number} of the archive was altered, or is the last of one that was cut off"
            ) from error
        self._plain, self._ended = memoryview(plain), bool(last)
        self._number += 1


def _exactly(below: IO[bytes], size: int) -> bytes:
    """Return so many bytes, fewer at the end only."""
    parts = []
    while size and (part := below.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

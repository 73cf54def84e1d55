"""The frame codec of the worker's socket: u32 little-endian length, u8 type, payload. Reads no payload."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from shared.errors import WorkerCrashedError

MAX_FRAME_BYTES: Final = 1024 * 1024
"""Type byte and payload together; larger bodies are chunked."""
CHUNK_BYTES: Final = 256 * 1024
"""Payload of one frame of a chunked body."""

_HEADER: Final = struct.Struct("<IB")
_LENGTH_BYTES: Final = 4


class FrameKind(IntEnum):
    LOAD = 1
    READY = 2
    RUN = 3
    STDIN = 4
    OUTPUT = 5
    HOST_CALL = 6
    HOST_REPLY = 7
    OUTCOME = 8
    STOP = 9


class Frame(NamedTuple):
    kind: FrameKind
    payload: bytes


def encode(kind: FrameKind, payload: bytes = b"") -> bytes:
    """Return one frame.

    Raises:
        ValueError: The payload does not fit a frame; chunk it.
    """
    size = len(payload) + 1
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"payload of {len(payload)} bytes does not fit a frame of {MAX_FRAME_BYTES}")
    return _HEADER.pack(size, kind) + payload


def encode_stdin(body: bytes) -> Iterator[bytes]:
    """Yield the frames of a body, without the empty frame that ends the input."""
    for start in range(0, len(body), CHUNK_BYTES):
        yield encode(FrameKind.STDIN, body[start : start + CHUNK_BYTES])


END_OF_STDIN: Final = encode(FrameKind.STDIN)


class FrameDecoder:
    """Cuts a byte stream into frames; holds at most one incomplete frame and what came with it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether the stream may end here."""
        return not self._buffer

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes.

        Raises:
            WorkerCrashedError: A frame is empty, oversized or of an unknown type; nothing after it
                is readable.
        """
        self._buffer += data
        frames: list[Frame] = []
        position = 0
        available = len(self._buffer)
        while available - position >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[position : position + _LENGTH_BYTES], "little")
            if not 0 < size <= MAX_FRAME_BYTES:
                raise WorkerCrashedError(
                    f"worker sent a frame of {size} bytes, the bound is {MAX_FRAME_BYTES}"
                )
            end = position + _LENGTH_BYTES + size
            if end > available:
                break
            start = position + _LENGTH_BYTES
            frames.append(Frame(_kind(self._buffer[start]), bytes(self._buffer[start + 1 : end])))
            position = end
        del self._buffer[:position]
        return frames


def _kind(value: int) -> FrameKind:
    try:
        return FrameKind(value)
    except ValueError as error:
        raise WorkerCrashedError(f"worker sent a frame of unknown type {value}") from error

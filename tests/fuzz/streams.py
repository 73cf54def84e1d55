"""What a broken or hostile peer might say on a worker's socket: valid conversations, and what mutation makes of them.

Plain values from a seeded generator; sends nothing.
"""

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from data_plane.sandbox.domain import (
    MAX_RESPONSE_BYTES,
    CompileLimits,
    EngineInfo,
    HostReply,
    Preopen,
    RunRequest,
)
from data_plane.sandbox.frames import END_OF_STDIN, MAX_FRAME_BYTES, FrameKind, encode, encode_stdin
from data_plane.sandbox.messages import compile_payload, load_payload, reply_payload, run_payload
from data_plane.sandbox.process import Mode
from shared.limits import Limits
from shared.manifest import Profile

MAX_MUTATIONS: Final = 6
MAX_DESCRIPTORS: Final = 40
"""More than a worker takes."""
DESCRIPTORS: Final = ("artifact", "caller", "module", "target", "directory", "file", "socket", "null")
"""What a descriptor may stand for. Contents of artifacts are never mutated: what is authenticated is loaded as it is."""
ODD_VALUES: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1.5, 2**32, 2**64, 10**30, "", "x", "\0", "é" * 1000, [], [[]], {}, {"a": 1}, "9" * 64,
)  # fmt: skip
_LENGTH_BYTES: Final = 4
_REPLY: Final = bytes([FrameKind.HOST_REPLY])
_CALL: Final = b'{"method":"budget.left"}\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes of one send, and the descriptors beside them."""

    data: bytes
    descriptors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """All that one worker is told."""

    mode: Mode
    pieces: tuple[Piece, ...]

    def to_json(self) -> str:
        """Return the stream as a regression input keeps it."""
        pieces = [[piece.data.hex(), list(piece.descriptors)] for piece in self.pieces]
        return json.dumps({"mode": self.mode, "pieces": pieces}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Stream":
        """Return the stream that ``to_json`` kept."""
        kept = json.loads(text)
        pieces = (Piece(data=bytes.fromhex(data), descriptors=tuple(names)) for data, names in kept["pieces"])
        return cls(mode=Mode(kept["mode"]), pieces=tuple(pieces))

    @property
    def data(self) -> bytes:
        """All bytes, as the worker sees them."""
        return b"".join(piece.data for piece in self.pieces)


class Streams:
    """Streams from one seed."""

    def __init__(self, engine: EngineInfo, seed: int) -> None:
        self._engine = engine
        self._random = random.Random(seed)

    def draw(self) -> Stream:
        """Return the next stream; one in twenty is valid."""
        mode = Mode.COMPILE if self._random.random() < 0.15 else Mode.RUN
        parts = self._compilation() if mode is Mode.COMPILE else self._runs()
        if self._random.random() >= 0.05:
            for _ in range(self._random.randint(1, MAX_MUTATIONS)):
                self._random.choice(
                    (
                        self._alter_json,
                        self._alter_bytes,
                        self._alter_frames,
                        self._alter_head,
                        self._alter_replies,
                        self._alter_descriptors,
                    )
                )(parts)
        return Stream(mode=mode, pieces=tuple(self._cut(parts)))

    def _compilation(self) -> list[Piece]:
        load = encode(FrameKind.LOAD, compile_payload(CompileLimits(), self._random.choice(list(Profile))))
        return [Piece(data=load, descriptors=("module", "target"))]

    def _runs(self) -> list[Piece]:
        directory = Preopen(host_path="/", guest_path="/d", writable=self._random.random() < 0.5)
        preopens = (directory,) * self._random.choice((0, 0, 1, 2))
        load = load_payload(self._engine, [("/", directory.writable)] if preopens else [])
        is_calling = self._random.random() < 0.4
        module = ("caller" if is_calling else "artifact",)
        parts = [
            Piece(data=encode(FrameKind.LOAD, load), descriptors=module + ("directory",) * bool(preopens))
        ]
        for _ in range(self._random.randint(1, 3)):
            request = RunRequest(
                args=("probe", *self._random.choice((("hello",), ("echo",), ("list", "/d"), ("exit", "3")))),
                env=(("NAME", "value"),) * self._random.randint(0, 2),
                limits=Limits(wall_ms=2_000, cpu_ms=2_000),
                seed=self._random.choice((None, bytes(32))),
                clock=self._random.choice((None, datetime(2026, 1, 1, tzinfo=UTC))),
                preopens=preopens,
            )
            run = encode(FrameKind.RUN, run_payload(request))
            parts.append(Piece(data=run, descriptors=("directory",) * len(preopens)))
            calls = self._random.randint(1, 4) if is_calling else 0
            # A guest that calls takes every line for a request, whatever is in it.
            noise = self._random.randbytes(self._random.choice((0, 1, 100, 300_000))).replace(b"\n", b" ")
            body = _CALL * calls + (b"" if is_calling else noise)
            parts += [Piece(data=frame) for frame in encode_stdin(body)]
            parts.append(Piece(data=END_OF_STDIN))
            # What a guest asks is answered before it asks: the stream goes one way.
            parts += [Piece(data=encode(FrameKind.HOST_REPLY, self._reply())) for _ in range(calls)]
        if self._random.random() < 0.3:
            parts.append(Piece(data=encode(FrameKind.STOP)))
        return parts

    def _reply(self) -> bytes:
        size = self._random.choice((0, 2, 255, 257, 300_000, MAX_RESPONSE_BYTES))
        log = b"by the host\n" * self._random.choice((0, 1, 100))
        return reply_payload(HostReply(response=bytes(size), log=log))

    def _alter_replies(self, parts: list[Piece]) -> None:
        """Let an answer lie about the length of its log, be larger than any, or come where none is due."""
        replies = [at for at, part in enumerate(parts) if part.data[_LENGTH_BYTES:][:1] == _REPLY]
        length = self._random.choice((0, 1, 2**16, MAX_RESPONSE_BYTES, 2**31, 2**32 - 1))
        size = self._random.choice((0, 1, 100, MAX_RESPONSE_BYTES + 1, MAX_FRAME_BYTES - 5))
        payload = length.to_bytes(_LENGTH_BYTES, "little") + bytes(size)
        reply = Piece(data=encode(FrameKind.HOST_REPLY, payload[: self._random.choice((3, len(payload)))]))
        if replies and self._random.random() < 0.7:
            parts[self._random.choice(replies)] = reply
        else:
            parts.insert(self._random.randrange(len(parts) + 1), reply)

    def _alter_json(self, parts: list[Piece]) -> None:
        """Put another value somewhere into a message, or a field that nobody knows."""
        index = self._random.randrange(len(parts))
        head, body = parts[index].data[: _LENGTH_BYTES + 1], parts[index].data[_LENGTH_BYTES + 1 :]
        try:
            message = json.loads(body)
        except ValueError:
            return
        place = message
        while isinstance(place, dict | list) and place:
            key = self._random.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or self._random.random() < 0.3:
                place[key] = self._random.choice(ODD_VALUES)
                break
            place = place[key]
        if isinstance(place, dict) and self._random.random() < 0.2:
            place["unheard_of"] = 1
        payload = json.dumps(message).encode()[: MAX_FRAME_BYTES - 1]
        altered = encode(FrameKind(head[-1]) if head[-1] in list(FrameKind) else FrameKind.RUN, payload)
        parts[index] = Piece(data=altered, descriptors=parts[index].descriptors)

    def _alter_bytes(self, parts: list[Piece]) -> None:
        """Change, remove or insert a few bytes; lengths then lie."""
        index = self._random.randrange(len(parts))
        data = bytearray(parts[index].data)
        at = self._random.randrange(len(data) + 1)
        new = self._random.randbytes(self._random.choice((0, 1, 4, 64)))
        data[at : at + self._random.choice((0, 1, 4, 64))] = new
        parts[index] = Piece(data=bytes(data), descriptors=parts[index].descriptors)

    def _alter_head(self, parts: list[Piece]) -> None:
        """Another length, of nothing, of too much or of 4 GiB; or another kind."""
        index = self._random.randrange(len(parts))
        data = bytearray(parts[index].data)
        if len(data) <= _LENGTH_BYTES:
            return
        if self._random.random() < 0.5:
            data[_LENGTH_BYTES] = self._random.randrange(12)
        else:
            size = self._random.choice(
                (0, 1, len(data), MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1)
            )
            data[:_LENGTH_BYTES] = size.to_bytes(_LENGTH_BYTES, "little")
        parts[index] = Piece(data=bytes(data), descriptors=parts[index].descriptors)

    def _alter_frames(self, parts: list[Piece]) -> None:
        """Leave a frame out, say one twice, change the order, or end early."""
        index, other = self._random.randrange(len(parts)), self._random.randrange(len(parts))
        match self._random.randrange(4):
            case 0 if len(parts) > 1:
                del parts[index]
            case 1:
                parts.insert(other, parts[index])
            case 2:
                parts[index], parts[other] = parts[other], parts[index]
            case _:
                del parts[index + 1 :]

    def _alter_descriptors(self, parts: list[Piece]) -> None:
        """None, others, or far too many."""
        index = self._random.randrange(len(parts))
        count = self._random.choice((0, 1, 2, 3, 17, 35, MAX_DESCRIPTORS))
        names = tuple(self._random.choice(DESCRIPTORS) for _ in range(count))
        parts[index] = Piece(data=parts[index].data, descriptors=names)

    def _cut(self, parts: list[Piece]) -> list[Piece]:
        """Send frames in other pieces than they are; the last may be half."""
        pieces: list[Piece] = []
        for part in parts:
            at = self._random.randrange(len(part.data) + 1) if self._random.random() < 0.2 else len(part.data)
            pieces.append(Piece(data=part.data[:at] or b"\0", descriptors=part.descriptors))
            if at < len(part.data):
                pieces.append(Piece(data=part.data[at:]))
        if self._random.random() < 0.1:
            last = pieces[-1]
            half = last.data[: len(last.data) // 2] or b"\0"
            pieces[-1] = Piece(data=half, descriptors=last.descriptors)
        return pieces

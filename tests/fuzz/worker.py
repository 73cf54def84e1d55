"""Plays a stream to a real worker and judges what it does: it ends or refuses, in time, and runs only what it was told."""

import asyncio
import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from agentfactory_engine import worker_path

from data_plane.sandbox import messages
from data_plane.sandbox.frames import MAX_FRAME_BYTES, Frame, FrameDecoder, FrameKind
from data_plane.sandbox.process import Ended, Mode, WorkerProcess
from shared.errors import AgentFactoryError, WorkerCrashedError
from tests.fuzz.streams import Piece, Stream

PATIENCE_SECONDS: Final = 20.0
"""A worker that is still there so long after its peer has gone hangs."""
GOOD_CODES: Final = frozenset({0, 65, 66, 67, 68, 69})
"""Codes by which a worker says why it ends (watchdog.rs, ``exit``); a panic or a signal is a finding."""
SAID: Final = frozenset({FrameKind.READY, FrameKind.OUTPUT, FrameKind.HOST_CALL, FrameKind.OUTCOME})
_READ_BYTES: Final = 256 * 1024
_HEADER_BYTES: Final = 5


class FindingError(Exception):
    """A worker did what it must not; the text says what."""


class Player:
    """Plays streams with the files of one folder."""

    def __init__(self, *, artifact: Path, caller: Path, module: Path, folder: Path) -> None:
        self._files = {"artifact": artifact, "caller": caller, "module": module}
        self._folder = folder
        (folder / "directory").mkdir(exist_ok=True)
        (folder / "file").write_bytes(b"no artifact")

    async def play(self, stream: Stream) -> None:
        """Play one stream to one worker.

        Raises:
            FindingError: The worker hung, crashed, or ran what it was not told to run.
        """
        process = WorkerProcess.start(worker_path(), stream.mode)
        hung = False
        heard = b""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                _, heard = await asyncio.gather(self._say(process.socket, stream), _listen(process.socket))
                await process.wait()
        except TimeoutError:
            hung = True
        finally:
            process.kill()
            process.socket.close()
            ended = await process.wait()
        if hung:
            raise FindingError(f"the worker was still there after {PATIENCE_SECONDS} s")
        judge(stream, heard, ended)

    async def _say(self, sock: socket.socket, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        # The worker may end at any time, and need not say why.
        with suppress(OSError):
            for piece in stream.pieces:
                data = piece.data
                if piece.descriptors:
                    data = data[self._send_descriptors(sock, piece) :]
                await loop.sock_sendall(sock, data)
            sock.shutdown(socket.SHUT_WR)

    def _send_descriptors(self, sock: socket.socket, piece: Piece) -> int:
        with ExitStack() as stack:
            descriptors = []
            for name in piece.descriptors:
                descriptors.append(self._open(name))
                stack.callback(os.close, descriptors[-1])
            try:
                return socket.send_fds(sock, [piece.data[:1]], descriptors)
            except BlockingIOError:
                return 0

    def _open(self, name: str) -> int:
        match name:
            case "artifact" | "caller" | "module":
                return os.open(self._files[name], os.O_RDONLY)
            case "target":
                return os.open(self._folder / "target", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            case "socket":
                return socket.socket(socket.AF_UNIX).detach()
            case "null":
                return os.open(os.devnull, os.O_RDWR)
            case _:
                return os.open(self._folder / name, os.O_RDONLY)


async def _listen(sock: socket.socket) -> bytes:
    """All that the worker says until it closes."""
    loop = asyncio.get_running_loop()
    parts = []
    with suppress(ConnectionResetError):
        while part := await loop.sock_recv(sock, _READ_BYTES):
            parts.append(part)
    return b"".join(parts)


def judge(stream: Stream, heard: bytes, ended: Ended) -> None:
    """Compare what the worker said and how it ended with what it was told.

    Raises:
        FindingError: They do not go together.
    """
    if ended.code not in GOOD_CODES:
        raise FindingError(f"the worker {ended}: {ended.last_words}")
    decoder = FrameDecoder()
    try:
        said = decoder.feed(heard)
    except WorkerCrashedError as error:
        raise FindingError(f"the worker broke the protocol: {error}") from error
    if not decoder.is_empty:
        raise FindingError("the worker ended inside a frame")
    if unknown := {frame.kind for frame in said} - SAID:
        raise FindingError(f"the worker said {unknown}")
    told = _frames(stream.data)
    may_load = bool(told) and told[0] is FrameKind.LOAD and stream.mode is Mode.RUN
    ready = sum(frame.kind is FrameKind.READY for frame in said)
    if ready > may_load:
        raise FindingError("the worker was ready without a load")
    done = [_outcome(frame) for frame in said if frame.kind is FrameKind.OUTCOME]
    ran = sum(outcome is not None for outcome in done)
    asked = told.count(FrameKind.RUN) if ready else 0
    if stream.mode is Mode.COMPILE:
        asked = int(bool(told) and told[0] is FrameKind.LOAD)
    if ran > asked:
        raise FindingError(f"{ran} guests ran, {asked} were asked for")
    if any(frame.kind in {FrameKind.OUTPUT, FrameKind.HOST_CALL} for frame in said) and not asked:
        raise FindingError("output or a host call, and nobody asked for a run")
    _judge_calls(said)


def _judge_calls(said: list[Frame]) -> None:
    try:
        for frame in said:
            if frame.kind is FrameKind.HOST_CALL:
                messages.parse_host_call(frame.payload)
    except WorkerCrashedError as error:
        raise FindingError(f"the worker passed on a call that is none: {error}") from error


def _frames(data: bytes) -> list[FrameKind]:
    """The kinds of the frames that were sent whole, up to the first that is none."""
    kinds: list[FrameKind] = []
    position = 0
    while position + _HEADER_BYTES <= len(data):
        size = int.from_bytes(data[position : position + _HEADER_BYTES - 1], "little")
        kind = data[position + _HEADER_BYTES - 1]
        position += _HEADER_BYTES - 1 + size
        if not 0 < size <= MAX_FRAME_BYTES or position > len(data) or kind not in list(FrameKind):
            break
        kinds.append(FrameKind(kind))
    return kinds


def _outcome(frame: Frame) -> str | None:
    """How the run ended, or None for a refusal."""
    try:
        return str(messages.parse_outcome(frame.payload)["outcome"])
    except (AgentFactoryError, KeyError):
        return None

"""The socket to one worker: frames out, frames in, flow control both ways. Reads no payload."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from data_plane.sandbox.frames import Frame, FrameDecoder
from shared.errors import WorkerCrashedError

MAX_QUEUED_FRAMES: Final = 64
"""Frames that wait for their reader; beyond it the worker, and so the guest, waits."""
_MAX_FIRST_SEND_BYTES: Final = 256 * 1024


class Link(asyncio.Protocol):
    """Frames of one worker in order; ``receive`` returns None once the worker has closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []
        self._waiting: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._closed = False
        self._error: WorkerCrashedError | None = None
        self._reading_paused = False

    @classmethod
    async def open(cls, sock: socket.socket) -> "Link":
        """Take over a connected, non-blocking socket."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: cls(sock), sock=sock)
        return link

    @property
    def is_quiet(self) -> bool:
        """Whether the worker has said nothing that was not taken, not even a part of a frame."""
        return not self._frames and self._decoder.is_empty and self._error is None and not self._closed

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send frames; ``descriptors`` go with the first byte, so they need an idle link.

        Raises:
            WorkerCrashedError: The worker has closed its socket.
        """
        if self._transport is None or self._closed:
            raise WorkerCrashedError("worker has closed its socket")
        if descriptors:
            if self._transport.get_write_buffer_size():
                raise WorkerCrashedError("worker has not read what it was sent")
            try:
                sent = socket.send_fds(self._socket, [data[:_MAX_FIRST_SEND_BYTES]], list(descriptors))
            except OSError as error:
                raise WorkerCrashedError(f"worker does not take its descriptors: {error}") from error
            data = data[sent:]
        if data:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the kernel has taken all that was sent."""
        if self._writable is not None:
            await self._writable

    async def receive(self) -> list[Frame] | None:
        """Return the frames that have come, at least one, or None when the worker has closed.

        Raises:
            WorkerCrashedError: The worker broke the frame protocol.
        """
        while not self._frames:
            if self._error is not None:
                raise self._error
            if self._closed:
                return None
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        frames, self._frames = self._frames, []
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return frames

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # Anything that waits here counts as paused: descriptors may be sent only when nothing does.
        transport.set_write_buffer_limits(high=0)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._frames += self._decoder.feed(data)
        except WorkerCrashedError as error:
            self._error = error
            self.close()
        if len(self._frames) > MAX_QUEUED_FRAMES and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._closed = True
        if self._error is None and not self._decoder.is_empty:
            self._error = WorkerCrashedError("worker closed inside a frame")
        self._resume_writers()
        self._wake()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        self._resume_writers()

    def _resume_writers(self) -> None:
        if self._writable is not None:
            writable, self._writable = self._writable, None
            if not writable.done():
                writable.set_result(None)

    def _wake(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            if not waiting.done():
                waiting.set_result(None)

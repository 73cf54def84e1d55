"""A proxy between two parts of the system that can swallow, refuse and cut. Knows no protocol.

Swallowing keeps the bytes back, in both directions and without a word, and lets them go on when it ends: so
looks a network that drops packets for a while to what is above TCP.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 64 * 1024

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Place(Protocol):
    """An address of this machine."""

    async def connect(self) -> Streams: ...

    async def listen(self, accept: "asyncio.streams._ClientConnectedCallback") -> asyncio.Server: ...


@dataclass(frozen=True, slots=True)
class TcpPlace:
    port: int

    async def connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def listen(self, accept: "asyncio.streams._ClientConnectedCallback") -> asyncio.Server:
        return await asyncio.start_server(accept, "127.0.0.1", self.port)


@dataclass(frozen=True, slots=True)
class UnixPlace:
    path: Path

    async def connect(self) -> Streams:
        return await asyncio.open_unix_connection(str(self.path))

    async def listen(self, accept: "asyncio.streams._ClientConnectedCallback") -> asyncio.Server:
        return await asyncio.start_unix_server(accept, str(self.path))


class Proxy:
    """Forwards every connection from one place to another, as long as it is told nothing else."""

    def __init__(self, here: Place, there: Place) -> None:
        self._here = here
        self._there = there
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Listen for the length of the block."""
        server = await self._here.listen(self._accept)
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def swallow(self) -> None:
        """Forward nothing and close nothing; newcomers are let in and hear nothing."""
        self._flowing.clear()

    def refuse(self) -> None:
        """Cut every connection, and each newcomer at once."""
        self._refusing = True
        self.cut()

    def lift(self) -> None:
        """Forward again, what was kept back first."""
        self._refusing = False
        self._flowing.set()

    def cut(self) -> None:
        """Cut every connection as it is, without a goodbye."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def switch(self, there: Place) -> None:
        """Lead newcomers to another place, and cut whoever was led to the old one."""
        self._there = there
        self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._serve(reader, writer)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            return
        await self._flowing.wait()
        try:
            far_reader, far_writer = await self._there.connect()
        except OSError:
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        finally:
            self._writers -= both
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction until it ends; its end is the other side's."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            with contextlib.suppress(OSError):
                writer.write_eof()

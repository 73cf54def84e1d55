"""The proxy that faults use does to a connection what it says."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy, Streams, UnixPlace

BOUND_SECONDS = 30
SILENCE_SECONDS = 0.1


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1024):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    there = UnixPlace(tmp_path / "there")
    async with await there.listen(echo), Proxy(UnixPlace(tmp_path / "here"), there).running() as running:
        yield running


async def connect(tmp_path: Path) -> Streams:
    return await UnixPlace(tmp_path / "here").connect()


async def ask(streams: Streams, text: bytes) -> bytes:
    streams[1].write(text)
    async with asyncio.timeout(BOUND_SECONDS):
        return await streams[0].read(1024)


async def test_it_forwards(proxy: Proxy, tmp_path: Path) -> None:
    assert await ask(await connect(tmp_path), b"hello") == b"hello"


async def test_what_it_swallows_comes_when_it_is_lifted(proxy: Proxy, tmp_path: Path) -> None:
    streams = await connect(tmp_path)
    await ask(streams, b"hello")
    proxy.swallow()
    answer = asyncio.create_task(ask(streams, b"again"))
    done, _ = await asyncio.wait({answer}, timeout=SILENCE_SECONDS)
    assert not done
    proxy.lift()
    assert await answer == b"again"


async def test_who_comes_while_it_swallows_is_served_later(proxy: Proxy, tmp_path: Path) -> None:
    proxy.swallow()
    answer = asyncio.create_task(ask(await connect(tmp_path), b"hello"))
    done, _ = await asyncio.wait({answer}, timeout=SILENCE_SECONDS)
    assert not done
    proxy.lift()
    assert await answer == b"hello"


async def test_it_refuses_old_and_new(proxy: Proxy, tmp_path: Path) -> None:
    streams = await connect(tmp_path)
    await ask(streams, b"hello")
    proxy.refuse()
    assert await streams[0].read(1024) == b""
    assert await (await connect(tmp_path))[0].read(1024) == b""
    proxy.lift()
    assert await ask(await connect(tmp_path), b"hello") == b"hello"


async def test_it_leads_newcomers_elsewhere(proxy: Proxy, tmp_path: Path) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(1024)).upper())
        writer.close()

    other = UnixPlace(tmp_path / "other")
    async with await other.listen(shout):
        proxy.switch(other)
        assert await ask(await connect(tmp_path), b"hello") == b"HELLO"

"""The Postgres of the peers: the same programs, settings and kind of folder as Agent Factory's own."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg

from cli.stack import postgres
from cli.stack.children import Child, stop

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class PostgresServer:
    """One cluster, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: postgres.PostgresFiles | None = None

    @property
    def url(self) -> str:
        assert self._files is not None
        return self._files.url()

    async def prepare(self, kept: AsyncExitStack) -> None:
        """Make the cluster."""
        self._files = postgres.locate(self._folder)
        kept.callback(postgres.remove, self._folder)
        async with AsyncExitStack() as once:
            await self.start(once)

    async def start(self, running: AsyncExitStack) -> Child:
        """Start it; it takes connections when this returns."""
        assert self._files is not None
        child = await postgres.start(self._files)
        running.push_async_callback(stop, child)
        return child


async def connect(url: str) -> Any:
    """Return a connection of asyncpg, which has no types."""
    return await asyncpg.connect(url, timeout=10)  # type: ignore[no-untyped-call]


def connections(url: str) -> Any:
    """Return the pool that both the client and the worker of a queue use; entering it connects."""
    return asyncpg.create_pool(url, min_size=4, max_size=10)  # type: ignore[no-untyped-call]


async def require_durable(url: str) -> None:
    """Raise AssertionError unless a commit is on disk when it is answered."""
    connection = await connect(url)
    try:
        found = {name: await connection.fetchval(f"SHOW {name}") for name in DURABLE}
    finally:
        await connection.close(timeout=5)
    if found != DURABLE:
        raise AssertionError(f"this Postgres is not durable: {found}")

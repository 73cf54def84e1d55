"""Results for queues that keep none: the worker's task writes a row and notifies, the client listens and reads.

One durable statement for a job, one read for all that were announced since the last read.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

from tests.bench.peers.postgres_server import connect

CHANNEL = "job_results"
CREATE = "CREATE TABLE job_results (key uuid PRIMARY KEY, output bytea NOT NULL)"
SAVE = f"WITH saved AS (INSERT INTO job_results VALUES ($1, $2)) SELECT pg_notify('{CHANNEL}', $1::text)"
READ = "SELECT key, output FROM job_results WHERE key = ANY($1)"


async def create(url: str) -> None:
    """Make the table."""
    connection = await connect(url)
    try:
        await connection.execute(CREATE)
    finally:
        await connection.close(timeout=5)


class Results:
    """The client's side."""

    def __init__(self) -> None:
        self._expected: dict[UUID, asyncio.Future[bytes]] = {}
        self._announced: list[UUID] = []
        self._heard = asyncio.Event()

    async def connect(self, url: str, running: AsyncExitStack) -> None:
        """Listen until `running` ends."""
        listener, reader = await connect(url), await connect(url)
        running.push_async_callback(reader.close, timeout=5)
        running.push_async_callback(listener.close, timeout=5)
        await listener.add_listener(CHANNEL, self._hear)
        task = asyncio.create_task(self._read(reader))
        running.callback(task.cancel)

    def expect(self, key: UUID) -> asyncio.Future[bytes]:
        """Return what will hold the result of a job that is not yet enqueued."""
        future = asyncio.get_running_loop().create_future()
        self._expected[key] = future
        return future

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._announced.append(UUID(str(payload)))
        self._heard.set()

    async def _read(self, reader: Any) -> None:
        while True:
            await self._heard.wait()
            self._heard.clear()
            keys, self._announced = self._announced, []
            for row in await reader.fetch(READ, keys):
                future = self._expected.pop(row["key"])
                if not future.done():
                    future.set_result(row["output"])

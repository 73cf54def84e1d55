"""pgqueuer on the same Postgres, batched: `python -m tests.bench.peers.pgqueuer_postgres URL` is its worker.

It wants twice as many concurrent tasks as a batch holds; the task itself runs on the worker's loop, so that a batch
is one statement and no thread is woken. It keeps no results: see `results`.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

from pgqueuer import AsyncpgPoolDriver, PgQueuer, Queries
from pgqueuer.models import Job

from tests.bench.peers import results
from tests.bench.peers.job import Guest
from tests.bench.peers.peer import Peer, System
from tests.bench.peers.postgres_server import PostgresServer, connections, require_durable

ENTRYPOINT = "run"
BATCH = 10
CONCURRENT_TASKS = 2 * BATCH
KEY_BYTES = 16


class PgQueuerPeer(Peer):
    async def prepare(self, kept: AsyncExitStack) -> None:
        self._postgres = PostgresServer(self.folder)
        await self._postgres.prepare(kept)
        async with AsyncExitStack() as once:
            await self._postgres.start(once)
            await require_durable(self._postgres.url)
            await results.create(self._postgres.url)
            pool = await once.enter_async_context(connections(self._postgres.url))
            await Queries(AsyncpgPoolDriver(pool)).install()

    async def start(self, running: AsyncExitStack) -> System:
        server = await self._postgres.start(running)
        worker = await self.worker(running, __name__, self._postgres.url)
        pool = await running.enter_async_context(connections(self._postgres.url))
        queries = Queries(AsyncpgPoolDriver(pool))
        answers = results.Results()
        await answers.connect(self._postgres.url, running)

        async def submit(body: bytes) -> bytes:
            key = uuid4()
            answer = answers.expect(key)
            await queries.enqueue(ENTRYPOINT, key.bytes + body)
            return await answer

        return System(submit=submit, roots={"postgres": server.pid, "worker": worker.pid})


async def work(url: str) -> None:
    """Be the worker until the process is ended."""
    guest = Guest()
    pool = await connections(url)
    queue = PgQueuer(AsyncpgPoolDriver(pool))

    @queue.entrypoint(ENTRYPOINT)  # type: ignore[untyped-decorator]
    async def run(job: Job) -> None:
        assert job.payload is not None
        key, body = UUID(bytes=job.payload[:KEY_BYTES]), job.payload[KEY_BYTES:]
        await pool.execute(results.SAVE, key, guest.run(body))

    await queue.run(batch_size=BATCH, max_concurrent_tasks=CONCURRENT_TASKS)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))

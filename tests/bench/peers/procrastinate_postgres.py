"""procrastinate on the same Postgres: `python -m tests.bench.peers.procrastinate_postgres URL` is its worker.

Two tasks at once, LISTEN and a poll every 0.1 s (with its default of 5 s a job waits whenever a notification meets a
busy worker). It keeps no results: see `results`.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import procrastinate

from tests.bench.peers import results
from tests.bench.peers.job import Guest
from tests.bench.peers.peer import SLOTS, Peer, System
from tests.bench.peers.postgres_server import PostgresServer, connections, require_durable

TASK = "run"
QUEUE = "bench"
POLL_SECONDS = 0.1


def make_app(url: str) -> procrastinate.App:
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=10))


class Procrastinate(Peer):
    async def prepare(self, kept: AsyncExitStack) -> None:
        self._postgres = PostgresServer(self.folder)
        await self._postgres.prepare(kept)
        async with AsyncExitStack() as once:
            await self._postgres.start(once)
            await require_durable(self._postgres.url)
            await results.create(self._postgres.url)
            app = await once.enter_async_context(make_app(self._postgres.url).open_async())
            await app.schema_manager.apply_schema_async()

    async def start(self, running: AsyncExitStack) -> System:
        server = await self._postgres.start(running)
        worker = await self.worker(running, __name__, self._postgres.url)
        app = await running.enter_async_context(make_app(self._postgres.url).open_async())
        task = app.configure_task(TASK, queue=QUEUE, allow_unknown=True)
        answers = results.Results()
        await answers.connect(self._postgres.url, running)

        async def submit(body: bytes) -> bytes:
            key = uuid4()
            answer = answers.expect(key)
            await task.defer_async(key=str(key), body=body.decode())
            return await answer

        return System(submit=submit, roots={"postgres": server.pid, "worker": worker.pid})


async def work(url: str) -> None:
    """Be the worker until the process is ended."""
    guest = Guest()
    app = make_app(url)
    pool = await connections(url)

    @app.task(name=TASK, queue=QUEUE)  # type: ignore[untyped-decorator]
    async def run(key: str, body: str) -> None:
        await pool.execute(results.SAVE, UUID(key), guest.run(body.encode()))

    async with app.open_async():
        await app.run_worker_async(
            queues=[QUEUE],
            concurrency=SLOTS,
            fetch_job_polling_interval=POLL_SECONDS,
            listen_notify=True,
            delete_jobs="never",
        )


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))

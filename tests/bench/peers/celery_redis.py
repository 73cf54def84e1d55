"""Celery 5 on Redis with an append-only file: `python -m tests.bench.peers.celery_redis PORT` is its worker.

One worker process with two threads, tasks acknowledged after they ran, results in the same Redis. Celery has no
asyncio client: sending blocks the loop for one round trip, and the socket of its own result consumer is watched by
the loop, so that no thread of the client competes with it.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import ClassVar

import celery
import redis.asyncio
from celery.result import AsyncResult

from cli.stack import probe
from tests.bench.peers import servers
from tests.bench.peers.job import Guest
from tests.bench.peers.peer import SLOTS, Peer, System

TASK = "run"
START_SECONDS = 30.0


def make_app(port: int) -> celery.Celery:
    url = f"redis://127.0.0.1:{port}/0"
    app = celery.Celery("bench", broker=url, backend=url)
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=4,  # Celery's default: jobs are short, fetching one by one only costs
        worker_send_task_events=False,
        result_expires=600,
        broker_connection_retry_on_startup=True,
    )
    return app


class CeleryRedis(Peer):
    fsync: ClassVar[str]

    async def prepare(self, kept: AsyncExitStack) -> None:
        self._program, self._variables = await asyncio.to_thread(servers.redis)
        self._data = self.folder / "redis"
        self._data.mkdir()

    async def start(self, running: AsyncExitStack) -> System:
        (port,) = probe.free_ports(1)
        settings = {
            "--port": port,
            "--bind": "127.0.0.1",
            "--dir": self._data,
            "--save": "",
            "--appendonly": "yes",
            "--appendfsync": self.fsync,
        }
        arguments = [str(word) for pair in settings.items() for word in pair]
        server = await self.child(running, "redis", [str(self._program), *arguments], **self._variables)
        await wait_for_redis(port)
        worker = await self.worker(running, __name__, str(port))
        client = _Client(make_app(port))
        running.callback(client.close)
        return System(submit=client.submit, roots={"redis": server.pid, "worker": worker.pid})


class CeleryAlways(CeleryRedis):
    """Every write is on disk before it is answered."""

    fsync: ClassVar[str] = "always"


class CeleryEverySecond(CeleryRedis):
    """Up to a second of acknowledged work is lost when the machine fails. Not what the others promise."""

    durable: ClassVar[bool] = False
    fsync: ClassVar[str] = "everysec"


async def wait_for_redis(port: int) -> None:
    async with asyncio.timeout(START_SECONDS), redis.asyncio.Redis(port=port) as connection:
        while True:
            try:
                await connection.ping()
            except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                await asyncio.sleep(0.005)
            else:
                return


class _Client:
    """Celery's own sender and result consumer, on the loop of the caller."""

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._consumer = app.backend.result_consumer
        self._watched: int | None = None

    async def submit(self, body: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        result = self._app.send_task(TASK, (body.decode(),))

        def settle(done: AsyncResult) -> None:
            if done.successful():
                future.set_result(done.result.encode())
            else:
                future.set_exception(AssertionError(f"the task did not succeed: {done.result!r}"))

        result.then(settle)
        if self._watched is None:
            self._watched = self._consumer._pubsub.connection._sock.fileno()
            loop.add_reader(self._watched, self._drain)
            self._drain()
        return await future

    def _drain(self) -> None:
        """Take every message that has arrived: the parser may hold more than one."""
        connection = self._consumer._pubsub.connection
        while connection.can_read(timeout=0):
            self._consumer.drain_events(timeout=0)

    def close(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
        self._app.close()


def work(port: int) -> None:
    """Be the worker until the process is ended."""
    guest = Guest()
    app = make_app(port)

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run(body: str) -> str:
        return guest.run(body.encode()).decode()

    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    app.worker_main(["worker", "--pool=threads", f"--concurrency={SLOTS}", *quiet])


if __name__ == "__main__":
    work(int(sys.argv[1]))

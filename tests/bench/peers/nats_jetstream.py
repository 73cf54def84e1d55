"""NATS JetStream, file storage, synced before every acknowledgement: the worker is this module with a URL.

Jobs are a work-queue stream with a durable pull consumer that both slots of the worker fetch from; results are a
stream of their own, stored before the job is acknowledged and read by an ordered consumer of the client.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from uuid import uuid4

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from cli.stack import probe
from tests.bench.peers import servers
from tests.bench.peers.job import Guest
from tests.bench.peers.peer import SLOTS, Peer, System

JOBS, RESULTS = "JOBS", "RESULTS"
JOB, RESULT = "jobs.", "results."
DURABLE = "worker"
START_SECONDS = 30.0
FETCH_SECONDS = 30.0
ACK_WAIT_SECONDS = 60.0


class NatsJetStream(Peer):
    async def prepare(self, kept: AsyncExitStack) -> None:
        (self._port,) = probe.free_ports(1)
        self._configuration = self.folder / "nats.conf"
        self._configuration.write_text(
            f'listen: "127.0.0.1:{self._port}"\n'
            f'jetstream {{ store_dir: "{self.folder / "nats"}", sync_interval: always }}\n',
            encoding="utf-8",
        )
        async with AsyncExitStack() as once:
            await self._server(once)
            client = await once.enter_async_context(await connect(self._url))
            stream = client.jetstream()
            await stream.add_stream(
                StreamConfig(
                    name=JOBS,
                    subjects=[f"{JOB}*"],
                    retention=RetentionPolicy.WORK_QUEUE,
                    storage=StorageType.FILE,
                )
            )
            await stream.add_stream(
                StreamConfig(name=RESULTS, subjects=[f"{RESULT}*"], storage=StorageType.FILE)
            )
            await stream.add_consumer(
                JOBS,
                ConsumerConfig(
                    durable_name=DURABLE, ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_SECONDS
                ),
            )

    async def start(self, running: AsyncExitStack) -> System:
        server = await self._server(running)
        worker = await self.worker(running, __name__, self._url)
        client = await running.enter_async_context(await connect(self._url))
        stream = client.jetstream()
        expected: dict[str, asyncio.Future[bytes]] = {}

        async def settle(message: Msg) -> None:
            expected.pop(message.subject.removeprefix(RESULT)).set_result(message.data)

        await stream.subscribe(f"{RESULT}*", stream=RESULTS, ordered_consumer=True, cb=settle)

        async def submit(body: bytes) -> bytes:
            key = uuid4().hex
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            expected[key] = answer
            await stream.publish(JOB + key, body)
            return await answer

        return System(submit=submit, roots={"nats-server": server, "worker": worker.pid})

    @property
    def _url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    async def _server(self, running: AsyncExitStack) -> int:
        program = servers.wheel_program("nats-server")
        return (await self.child(running, "nats-server", [str(program), "-c", str(self._configuration)])).pid


async def connect(url: str) -> Client:
    """Return a connection as soon as the server takes one."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                return await nats.connect(url, allow_reconnect=False, error_cb=_ignore)
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.005)


async def _ignore(_error: Exception) -> None:
    """Failed attempts are expected; what fails later fails a job."""


async def slot(stream: JetStreamContext, jobs: JetStreamContext.PullSubscription, guest: Guest) -> None:
    """Take jobs one by one: the result is stored before the job is acknowledged."""
    while True:
        try:
            (job,) = await jobs.fetch(1, timeout=FETCH_SECONDS)
        except nats.errors.TimeoutError:
            continue
        await stream.publish(RESULT + job.subject.removeprefix(JOB), guest.run(job.data))
        await job.ack()


async def work(url: str) -> None:
    """Be the worker until the process is ended."""
    guest = Guest()
    client = await connect(url)
    stream = client.jetstream()
    jobs = await stream.pull_subscribe_bind(consumer=DURABLE, stream=JOBS)
    async with asyncio.TaskGroup() as slots:
        for _ in range(SLOTS):
            slots.create_task(slot(stream, jobs, guest))


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))

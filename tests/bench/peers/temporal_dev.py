"""Temporal's dev server on a SQLite file: `python -m tests.bench.peers.temporal_dev TARGET` is its worker.

A job is a workflow with one activity, the usual form; activities run in two threads. The workflow is not
replayed in Temporal's own sandbox of Python modules, which would only cost it time.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from cli.stack import probe
from tests.bench.peers import servers
from tests.bench.peers.job import Guest
from tests.bench.peers.peer import SLOTS, Peer, System

ACTIVITY = "run"
QUEUE = "bench"
PRAGMAS = ("journal_mode=wal", "synchronous=full")
"""Durable on commit, and the faster of the ways to be so."""
START_SECONDS = 60.0
ACTIVITY_TIMEOUT = timedelta(seconds=60)


@workflow.defn(name="Job", sandboxed=False)
class Job:
    @workflow.run  # type: ignore[untyped-decorator]
    async def run(self, body: str) -> str:
        output: str = await workflow.execute_activity(
            ACTIVITY, body, result_type=str, start_to_close_timeout=ACTIVITY_TIMEOUT
        )
        return output


class Temporal(Peer):
    async def prepare(self, kept: AsyncExitStack) -> None:
        pass

    async def start(self, running: AsyncExitStack) -> System:
        port, metrics = probe.free_ports(2)
        settings = {
            "--ip": "127.0.0.1",
            "--port": port,
            "--metrics-port": metrics,
            "--log-level": "error",
            "--db-filename": self.folder / "temporal.db",
        }
        words = [str(word) for pair in settings.items() for word in pair]
        words += [word for pragma in PRAGMAS for word in ("--sqlite-pragma", pragma)]
        program = str(servers.wheel_program("temporal"))
        server = await self.child(running, "temporal", [program, "server", "start-dev", "--headless", *words])
        target = f"127.0.0.1:{port}"
        worker = await self.worker(running, __name__, target)
        client = await connect(target)

        async def submit(body: bytes) -> bytes:
            output: str = await client.execute_workflow(
                "Job", body.decode(), id=uuid4().hex, task_queue=QUEUE, result_type=str
            )
            return output.encode()

        return System(submit=submit, roots={"temporal": server.pid, "worker": worker.pid})


async def connect(target: str) -> Client:
    """Return a client as soon as the server has its namespace."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                client = await Client.connect(target)
                await client.count_workflows()
            except (RuntimeError, RPCError):
                await asyncio.sleep(0.02)
            else:
                return client


async def work(target: str) -> None:
    """Be the worker until the process is ended."""
    guest = Guest()

    @activity.defn(name=ACTIVITY)  # type: ignore[untyped-decorator]
    def run(body: str) -> str:
        return guest.run(body.encode()).decode()

    with ThreadPoolExecutor(SLOTS) as threads:
        worker = Worker(
            await connect(target),
            task_queue=QUEUE,
            workflows=[Job],
            activities=[run],
            activity_executor=threads,
            max_concurrent_activities=SLOTS,
        )
        await worker.run()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))

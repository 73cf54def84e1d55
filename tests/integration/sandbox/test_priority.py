"""The node comes before its guests when processors are scarce: it renews leases while they loop."""

import os
import signal
from pathlib import Path

import pytest

from data_plane.sandbox.domain import Stream
from data_plane.sandbox.process import WORKER_NICE
from shared.errors import WorkerCrashedError

MAX_NICE = 19
NICE_FIELD = 18
"""Of /proc/PID/stat, counted from 0."""


def niceness(pid: int) -> set[int]:
    """Return how nice the threads of a process are."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {int(stat.rpartition(")")[2].split()[NICE_FIELD - 2]) for stat in stats}


async def test_every_thread_of_a_worker_yields_to_the_node(run, pool):
    seen = []

    async def sink(_stream: Stream, _data: bytes) -> None:
        (worker,) = pool._busy
        seen.append(niceness(worker.process.pid))
        os.kill(worker.process.pid, signal.SIGKILL)

    with pytest.raises(WorkerCrashedError):
        await run("say-and-spin", sink=sink)

    assert seen == [{min(MAX_NICE, os.getpriority(os.PRIO_PROCESS, 0) + WORKER_NICE)}]

"""Looks after workers that nobody uses: one that works on, or speaks unasked, is not kept."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from data_plane.sandbox.look import HiddenError, cpu_seconds, worker_behind
from data_plane.sandbox.worker import Worker

IDLE_LOOK: Final = timedelta(seconds=5)
"""How often idle workers are looked at."""
MAX_IDLE_CPU: Final = timedelta(milliseconds=100)
"""What an idle worker may use between two runs; an honest one uses nothing."""


def _cpu_seconds(worker: Worker) -> float | None:
    """None of a spare whose monitor has not started it yet, and where processes are hidden."""
    try:
        pid = worker_behind(worker.process.pid)
    except HiddenError:
        return None
    return None if pid is None else cpu_seconds(pid)


class IdleWatch:
    """Remembers what each idle worker had used when it was first seen idle after a run."""

    def __init__(self) -> None:
        self._first: dict[Worker, tuple[int, float]] = {}

    def misbehaving(self, idle: Iterable[Worker]) -> list[Worker]:
        """Return the idle workers that spoke, ended, or used CPU time without a run."""
        found: list[Worker] = []
        now: dict[Worker, tuple[int, float]] = {}
        for worker in idle:
            if not worker.is_reusable:
                found.append(worker)
                continue
            used = _cpu_seconds(worker)
            if used is None:
                continue
            runs, before = self._first.get(worker, (worker.runs, used))
            if runs != worker.runs:
                before = used
            if used - before > MAX_IDLE_CPU.total_seconds():
                found.append(worker)
            else:
                now[worker] = (worker.runs, before)
        self._first = now
        return found

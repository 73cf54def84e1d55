"""How much of the machine others used while something was measured: what a figure of a busy hour is worth."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.peers.memory import tree

BUSY_FIELDS = (0, 1, 2, 5, 6)
"""user, nice, system, irq, softirq of the first line of /proc/stat; guest time is within user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """CPU seconds since some moment in the past."""

    at: float
    machine: float
    ours: float

    @classmethod
    def now(cls, roots: Iterable[int]) -> "Used":
        """Look at the machine, this process and the trees below the roots."""
        ticks = os.sysconf("SC_CLK_TCK")
        stat = Path("/proc/stat").read_text(encoding="ascii")
        pids = {os.getpid(), *(pid for root in roots for pid in tree(root))}
        return cls(
            at=time.monotonic(),
            machine=busy_ticks(stat) / ticks,
            ours=sum(_cpu_seconds(pid) for pid in pids),
        )

    def others_since(self, before: "Used") -> float:
        """Return how many CPUs processes outside the trees kept busy on average; never below 0."""
        others = (self.machine - before.machine) - (self.ours - before.ours)
        return max(0.0, others / (self.at - before.at))


def busy_ticks(stat: str) -> int:
    """Return the ticks that all CPUs together were busy, of the text of /proc/stat."""
    fields = [int(field) for field in stat.splitlines()[0].split()[1:]]
    return sum(fields[number] for number in BUSY_FIELDS)


def _cpu_seconds(pid: int) -> float:
    """Return what a process and its ended children used."""
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system + used.children_user + used.children_system)

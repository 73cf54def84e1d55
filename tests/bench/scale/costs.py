"""What a window of time cost: CPU of processes from the scheduler's own count, and what Postgres counted."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench.peers.machine import Used
from tests.bench.peers.memory import tree

PROC = Path("/proc")

COUNTED = """
SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS wal_bytes,
    (SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = current_database()) AS transactions,
    (SELECT sum(tup_inserted + tup_updated + tup_deleted) FROM pg_stat_database
        WHERE datname = current_database()) AS rows_written
"""


def cpu_seconds(pid: int) -> float:
    """Return what the living threads of a process have run, to the nanosecond: ticks of 10 ms are too coarse."""
    return sum(_thread_seconds(path) for path in (PROC / str(pid) / "task").glob("*/schedstat"))


def _thread_seconds(path: Path) -> float:
    try:
        return int(path.read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # the thread ended meanwhile


def tree_cpu_seconds(root: int) -> float:
    """Return what a process, those below it and those of them that have ended have run."""
    ended = psutil.Process(root).cpu_times()
    return sum(map(cpu_seconds, tree(root))) + float(ended.children_user + ended.children_system)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All counters at one moment."""

    machine: Used
    control_plane: float
    postgres: float
    wal_bytes: float
    transactions: float
    rows_written: float

    @classmethod
    async def now(
        cls, sql: Any, *, postgres: int, control_planes: Iterable[int], ours: Iterable[int]
    ) -> "Reading":
        """Read them; `sql` is a connection that nobody else uses."""
        control_planes = list(control_planes)
        row = await sql.fetchrow(COUNTED)
        return cls(
            machine=Used.now([postgres, *control_planes, *ours]),
            control_plane=sum(map(tree_cpu_seconds, control_planes)),
            postgres=tree_cpu_seconds(postgres),
            **{name: float(row[name]) for name in ("wal_bytes", "transactions", "rows_written")},
        )

    def since(self, before: "Reading") -> "Window":
        """Return what was used from `before` to this reading, per second."""
        seconds = self.machine.at - before.machine.at
        return Window(
            seconds=seconds,
            control_plane=(self.control_plane - before.control_plane) / seconds,
            postgres=(self.postgres - before.postgres) / seconds,
            wal_bytes=(self.wal_bytes - before.wal_bytes) / seconds,
            transactions=(self.transactions - before.transactions) / seconds,
            rows_written=(self.rows_written - before.rows_written) / seconds,
            others_cpus=self.machine.others_since(before.machine),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one second took on average, CPUs in seconds."""

    seconds: float
    control_plane: float
    postgres: float
    wal_bytes: float
    transactions: float
    rows_written: float
    others_cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one execution took beyond what the idle system takes in the same time."""

    control_plane_us: float
    postgres_us: float
    wal_bytes: float
    transactions: float
    rows_written: float

    @classmethod
    def of(cls, loaded: Window, idle: Window, executions: int) -> "Cost":
        """Split what `executions` in a loaded window took among them, the idle system's share taken off."""

        def each(name: str) -> float:
            return float(getattr(loaded, name) - getattr(idle, name)) * loaded.seconds / executions

        return cls(
            control_plane_us=each("control_plane") * 1e6,
            postgres_us=each("postgres") * 1e6,
            wal_bytes=each("wal_bytes"),
            transactions=each("transactions"),
            rows_written=each("rows_written"),
        )

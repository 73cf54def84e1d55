"""What a worker says of a run, held against what the run may use and what the node saw."""

from datetime import timedelta
from typing import Final

from data_plane.sandbox.domain import Resources, RunResult
from shared.errors import WorkerCrashedError
from shared.limits import Limits
from shared.outcomes import Outcome

_COUNTED: Final = {
    "peak_memory_bytes": "memory_bytes",
    "output_bytes": "output_bytes",
    "log_bytes": "log_bytes",
    "peak_open_files": "open_files",
    "random_bytes": "random_bytes",
    "table_elements": "table_elements",
    "log_lines": "log_lines",
    "scratch_bytes": "scratch_bytes",
    "scratch_inodes": "scratch_inodes",
    "fuel": "fuel",
    "host_calls": "host_calls",
    "host_call_bytes": "host_call_bytes",
}
"""A figure of ``Resources`` and the limit that it cannot pass."""
_EXITED: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED})


def check_claims(result: RunResult, *, limits: Limits, seen_bytes: int, late: timedelta) -> None:
    """Refuse a result that cannot be true. A watchdog may be ``late``; what is counted is never passed.

    Raises:
        WorkerCrashedError: A figure is beyond its limit, or a guest that ended by itself wrote another number
            of bytes than came.
    """
    used = result.resources
    for figure, limit in _COUNTED.items():
        if getattr(used, figure) > getattr(limits, limit):
            raise WorkerCrashedError(
                f"worker claims {figure} of {getattr(used, figure)}, {limit} is {getattr(limits, limit)}"
            )
    _check_time("wall", used.wall, limits.wall + late)
    _check_time("cpu", used.cpu, limits.cpu + late)
    _check_time("host_call_time", used.host_call_time, timedelta(milliseconds=limits.host_call_ms) + late)
    if result.outcome in _EXITED and _written(used) != seen_bytes:
        raise WorkerCrashedError(f"worker claims {_written(used)} bytes of output, and {seen_bytes} came")


def _check_time(figure: str, used: timedelta, bound: timedelta) -> None:
    if used > bound:
        raise WorkerCrashedError(f"worker claims {figure} of {used}, it cannot be more than {bound}")


def _written(used: Resources) -> int:
    return used.output_bytes + used.log_bytes

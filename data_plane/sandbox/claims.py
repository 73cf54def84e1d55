"""What a worker says of a run, held against what the run may use and what the node saw."""

from datetime import timedelta
from typing import Final

from data_plane.sandbox.domain import RunResult
from shared.errors import WorkerCrashedError
from shared.limits import Limits
from shared.outcomes import Outcome
from shared.resources import ResourcesUsed

CLOCK_SLACK: Final = timedelta(milliseconds=10)
"""CPU time is counted in other steps than the clock's."""
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
"""A figure of ``ResourcesUsed`` and the limit that it cannot pass."""
_EXITED: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED})


def check_claims(
    result: RunResult, *, limits: Limits, seen_bytes: int, seen_calls: tuple[int, int], elapsed: timedelta
) -> None:
    """Refuse a result that cannot be true: no count passes its limit, and no time is longer than ``elapsed``.

    ``seen_calls``: host calls, and the bytes of their requests and responses.

    Raises:
        WorkerCrashedError: A figure is beyond its limit, more time was used than there was, a guest that
            ended by itself wrote another number of bytes than came, or there were more host calls.
    """
    used = result.resources
    for figure, limit in _COUNTED.items():
        if getattr(used, figure) > getattr(limits, limit):
            raise WorkerCrashedError(
                f"worker claims {figure} of {getattr(used, figure)}, {limit} is {getattr(limits, limit)}"
            )
    for name in ("wall", "cpu", "host_call_time"):
        if getattr(used, name) > elapsed + CLOCK_SLACK:
            raise WorkerCrashedError(f"worker claims {name} of {getattr(used, name)} within {elapsed}")
    if result.outcome in _EXITED and _written(used) != seen_bytes:
        raise WorkerCrashedError(f"worker claims {_written(used)} bytes of output, and {seen_bytes} came")
    claimed = used.host_calls, used.host_call_bytes
    if claimed[0] < seen_calls[0] or (result.outcome in _EXITED and claimed[1] < seen_calls[1]):
        raise WorkerCrashedError(
            f"worker claims {claimed[0]} host calls of {claimed[1]} bytes, and {seen_calls[0]} of "
            f"{seen_calls[1]} came"
        )


def _written(used: ResourcesUsed) -> int:
    return used.output_bytes + used.log_bytes

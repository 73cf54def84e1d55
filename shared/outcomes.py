"""The words for how an execution or attempt ended and which limit ended it. Decides nothing."""

from enum import StrEnum


class Outcome(StrEnum):
    """How it ended. Guest faults are values, never exceptions."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TRAPPED = "trapped"
    KILLED = "killed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


class LimitName(StrEnum):
    """The limits of a run, by the names that they carry in outcomes and receipts.

    All are fields of `shared.limits.Limits` but the call stack, which the engine fixes.
    """

    WALL_MS = "wall_ms"
    CPU_MS = "cpu_ms"
    FUEL = "fuel"
    MEMORY_BYTES = "memory_bytes"
    OUTPUT_BYTES = "output_bytes"
    LOG_BYTES = "log_bytes"
    OPEN_FILES = "open_files"
    TABLE_ELEMENTS = "table_elements"
    STACK_BYTES = "stack_bytes"
    RANDOM_BYTES = "random_bytes"
    LOG_LINES = "log_lines"
    SCRATCH_BYTES = "scratch_bytes"
    SCRATCH_INODES = "scratch_inodes"
    HOST_CALLS = "host_calls"
    HOST_CALL_BYTES = "host_call_bytes"
    HOST_CALL_MS = "host_call_ms"

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
    """The limits, by the names that they carry in agent.toml, in orders and in receipts."""

    WALL_MS = "wall_ms"
    CPU_MS = "cpu_ms"
    MEMORY_BYTES = "memory_bytes"
    OUTPUT_BYTES = "output_bytes"
    LOG_BYTES = "log_bytes"
    OPEN_FILES = "open_files"

"""What agents keep between their runs, and how much of it fits. No I/O, no clock, no randomness."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.ids import ExecutionId, NodeId

MAX_WRITES: Final = 256
"""Keys that one run may have written, as its message carries them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvQuota:
    """How much one agent may keep."""

    max_keys: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    """Keys, as UTF-8, and values together."""


DEFAULT_QUOTA: Final = KvQuota()


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWrite:
    """The last thing that a run did to one key."""

    key: str
    value: bytes | None
    """None: the key was deleted."""

    @property
    def kept_bytes(self) -> int:
        """What it takes of the quota."""
        return 0 if self.value is None else len(self.key.encode()) + len(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRead:
    """One question for a committed value, by a node that says it holds the attempt's lease."""

    node_id: NodeId
    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int
    key: str


class KvDenial(StrEnum):
    """Why a question is not answered, and why writes end an execution."""

    LEASE_NOT_HELD = "LEASE_NOT_HELD"
    NOT_GRANTED = "NOT_GRANTED"
    """The execution's granted capabilities have no kv."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvAnswer:
    """What became of one `KvRead`."""

    denial: KvDenial | None = None
    value: bytes | None = None
    """None: the agent has no such key, or it is not for this node to know."""


class KvExcess(StrEnum):
    """The limit that an agent's writes would pass: how its execution then ends names it."""

    KEYS = "kv_keys"
    BYTES = "kv_bytes"


EXCESS_REASON: Final = "KV_QUOTA"
"""Reason of an execution whose writes would have passed the quota of its agent."""
UNGRANTED_REASON: Final = "KV_NOT_GRANTED"
"""Reason of an execution that wrote though nothing had allowed it to: it may keep no key at all."""


class Holdings:
    """What one agent keeps while the writes of some of its runs are settled, one run after the other.

    Knows how large the values of those keys are that the runs name, and the sums over all.
    """

    def __init__(self, *, keys: int, size_bytes: int, sizes: Mapping[str, int]) -> None:
        self.keys = keys
        self.size_bytes = size_bytes
        self._sizes = dict(sizes)

    def excess(self, writes: Iterable[KvWrite], quota: KvQuota) -> KvExcess | None:
        """Return the limit that these writes would pass; None when they fit, or make less of too much."""
        keys, size_bytes = self._change(writes)
        if keys > 0 and self.keys + keys > quota.max_keys:
            return KvExcess.KEYS
        if size_bytes > 0 and self.size_bytes + size_bytes > quota.max_bytes:
            return KvExcess.BYTES
        return None

    def write(self, writes: Iterable[KvWrite]) -> None:
        """Count writes of one run as kept."""
        writes = tuple(writes)
        keys, size_bytes = self._change(writes)
        self.keys += keys
        self.size_bytes += size_bytes
        for one in writes:
            self._sizes.pop(one.key, None)
            if one.value is not None:
                self._sizes[one.key] = one.kept_bytes

    def _change(self, writes: Iterable[KvWrite]) -> tuple[int, int]:
        keys = size_bytes = 0
        for one in writes:
            before = self._sizes.get(one.key)
            keys += (one.value is not None) - (before is not None)
            size_bytes += one.kept_bytes - (before or 0)
        return keys, size_bytes

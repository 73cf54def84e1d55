"""Which modules run here no more for a while: those whose workers died too often (design rule 14). No I/O.

Kept in memory: a node that starts again begins anew. All times here are monotonic seconds.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NamedTuple

from shared.digests import Digest
from shared.ids import TenantId

MAX_SUSPECTS: Final = 1024
"""Modules whose crashes are remembered; the one that crashed longest ago is forgotten."""


class Suspect(NamedTuple):
    """What a worker serves: another tenant's input may crash a module that runs well for everybody else."""

    tenant_id: TenantId
    module_digest: Digest


@dataclass(slots=True)
class _Record:
    crashed_at: deque[float] = field(default_factory=deque)
    """At most as many as lead to quarantine."""
    quarantined_until: float | None = None


class Quarantine:
    """Counts crashes; one per node."""

    def __init__(self, *, crashes: int, window: timedelta, duration: timedelta) -> None:
        if crashes < 1 or min(window, duration) <= timedelta(0):
            raise ValueError("a quarantine needs at least one crash, a window and a duration")
        self._crashes = crashes
        self._window = window.total_seconds()
        self._duration = duration.total_seconds()
        self._records: OrderedDict[Suspect, _Record] = OrderedDict()

    def note_crash(self, suspect: Suspect, *, now: float) -> bool:
        """Count a crash; True when this one begins a quarantine."""
        record = self._records.setdefault(suspect, _Record())
        self._records.move_to_end(suspect)
        if len(self._records) > MAX_SUSPECTS:
            self._records.popitem(last=False)
        if self._remaining(record, now) is not None:
            return False
        record.crashed_at.append(now)
        while record.crashed_at[0] <= now - self._window:
            record.crashed_at.popleft()
        if len(record.crashed_at) < self._crashes:
            return False
        record.crashed_at.clear()
        record.quarantined_until = now + self._duration
        return True

    def remaining(self, suspect: Suspect, *, now: float) -> timedelta | None:
        """Return how long the module is still quarantined; None: it is not."""
        record = self._records.get(suspect)
        return None if record is None else self._remaining(record, now)

    def _remaining(self, record: _Record, now: float) -> timedelta | None:
        if record.quarantined_until is None or record.quarantined_until <= now:
            return None
        return timedelta(seconds=record.quarantined_until - now)

"""How many writes are worth waiting for, so that they share one commit. Knows no clock and waits for nothing.

Alone nobody waits for company. In a crowd a short wait costs nobody anything, because everybody waits for
the processor anyhow, and it makes groups large: half of what is under way, or what comes within the linger,
whichever is less.
"""

from collections.abc import Callable
from typing import Final

CROWD: Final = 16
"""With fewer under way nobody waits."""

SHARE: Final = 2
"""Groups that one crowd makes: one commits while the other runs. With four the groups were too small (2.6
executions at 64 in flight, whose fixed costs were a third of all), with one the processors idle."""

LINGER_S: Final = 0.05
"""Longest wait of the first of a group, in seconds: below what a crowd waits for the processor."""

_WEIGHT: Final = 1 / 16
"""Of the newest gap in the mean between two arrivals."""


class Gathering:
    """One stream of writes. `in_flight` says how many of them are on their way anywhere in this process."""

    def __init__(self, in_flight: Callable[[], int], *, linger: float = LINGER_S) -> None:
        self._in_flight = in_flight
        self.linger = linger
        self._gap = linger
        self._last: float | None = None

    def arrived(self, now: float) -> None:
        """Note an arrival at monotonic second `now`."""
        if self._last is not None:
            self._gap += _WEIGHT * (min(now - self._last, self.linger) - self._gap)
        self._last = now

    def worth(self) -> int:
        """Return the size of a group that is worth waiting for; 0 and 1 mean: wait for nothing."""
        in_flight = self._in_flight()
        if in_flight < CROWD:
            return 0
        return min(in_flight // SHARE, int(self.linger / max(self._gap, 1e-6)))

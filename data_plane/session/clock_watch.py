"""Rule 9: whether this machine's clock was set since a session was let in. Pure."""

from datetime import datetime, timedelta
from typing import Final

from shared.clock import Clock
from shared.errors import UnavailableError

MAX_CLOCK_STEP: Final = timedelta(seconds=5)
"""A session goes on through less: a clock that is slewed, or an order's own tolerance of 30 s, hides it."""


class ClockWatch:
    """Compares the wall clock with the monotonic one, from its making on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = self._start_of_counting()

    def check(self) -> None:
        """Return if the clock runs as it did.

        Raises:
            UnavailableError: It was set by more than `MAX_CLOCK_STEP`. Every order would be refused for its
                times, so the control plane has to judge the clock anew: it refuses a wrong one, and says so.
        """
        step = self._start_of_counting() - self._started
        if abs(step) > MAX_CLOCK_STEP:
            raise UnavailableError(f"the clock of this machine was set by {step.total_seconds():.1f} s")

    def _start_of_counting(self) -> datetime:
        """Return the wall time at which the monotonic clock was zero: the same until a clock is set."""
        return self._clock.now() - timedelta(seconds=self._clock.monotonic())

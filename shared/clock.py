"""Time and randomness as things that are passed in. The only module of the product that reads either."""

import os
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start; never goes back, unrelated to `now`."""


class Random(Protocol):
    """Where unpredictable bytes come from."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` bytes fit for keys, nonces and salts."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """Return the machine's wall time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the machine's monotonic clock in seconds."""
        return time.monotonic()


class SystemRandom:
    """The kernel's random numbers."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` bytes from the kernel."""
        return os.urandom(count)

"""Time that stands still until told, and randomness that repeats."""

import hashlib
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class FakeClock:
    """Both clocks advance together, by hand; the wall clock can also be set."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, duration: timedelta) -> None:
        """Let time pass."""
        self._now += duration
        self._monotonic += duration.total_seconds()

    def set_wall(self, now: datetime) -> None:
        """Set the wall clock, as an operator or NTP would; no time passes."""
        self._now = now


class FakeRandom:
    """Bytes that look random, never repeat, and are the same in every run with the same seed."""

    def __init__(self, seed: str = "") -> None:
        self._seed = seed.encode()
        self._calls = 0

    def token_bytes(self, count: int) -> bytes:
        self._calls += 1
        return hashlib.shake_128(self._seed + self._calls.to_bytes(8, "big")).digest(count)

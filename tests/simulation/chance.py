"""Chance that repeats: independent streams of one seed, so that a new draw somewhere moves nothing elsewhere."""

import random
from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of draws. Streams of other names are independent of it."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._streams: dict[str, Chance] = {}

    @cached_property
    def _random(self) -> random.Random:
        return random.Random(self._seed)

    def of(self, name: str) -> "Chance":
        """The stream of this name; the same object every time."""
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Chance(f"{self._seed}/{name}")
        return stream

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random.random()

    def happens(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return self._random.randint(low, high)

    def one_of(self, values: Sequence[T]) -> T:
        return self._random.choice(values)

    def latency(self, typical: float) -> float:
        """Mostly around `typical`, now and then much longer."""
        draw = self._random.random()
        spread = typical * (0.2 + 1.6 * draw)
        return spread * 40 if draw > 0.97 else spread

    def token_bytes(self, count: int) -> bytes:
        """Implements `Random`."""
        return self._random.randbytes(count)

"""A bounded memory of values that are read again and again. Knows no database and listens to nobody.

Whoever hears that something changed calls `forget` or `forget_all`; a value whose reading began before that
is not kept, and not handed to anybody who asks after it. What nobody announced ends with its life.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Generic, TypeVar

from shared.clock import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

UNWEIGHED: Final = 1
"""Bytes of a value when nobody weighs them: the bound on entries then is the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBounds:
    """How much is kept, and for how long."""

    entries: int
    life: timedelta
    """From the beginning of the read that brought a value."""
    size_bytes: int | None = None
    """Of all values together, as the cache's owner weighs them; None: only `entries` counts."""

    def __post_init__(self) -> None:
        if (
            self.entries < 1
            or self.life <= timedelta(0)
            or (self.size_bytes is not None and self.size_bytes < 1)
        ):
            raise ValueError("a cache keeps at least one entry for a while")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache has done since it was made, and holds now."""

    hits: int
    misses: int
    evictions: int
    """Values that left for want of room, before their life was over."""
    entries: int
    size_bytes: int
    oldest: timedelta
    """Since the read of the value that is held for longest; zero when there is none."""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    read_at: float
    """Monotonic, when the read began."""
    size_bytes: int


class _Flight(Generic[V]):
    """One read under way, for everybody who asks for the same meanwhile."""

    __slots__ = ("done", "entry", "read_at")

    def __init__(self, read_at: float) -> None:
        self.read_at = read_at
        self.done = asyncio.Event()
        self.entry: _Entry[V] | None = None
        """None after the end: it failed, or was cancelled."""


class Cache(Generic[K, V]):
    """Least recently used leaves first. For one event loop; its methods never wait but for `load` itself."""

    def __init__(self, *, bounds: CacheBounds, clock: Clock, weigh: Callable[[V], int] | None = None) -> None:
        self._bounds = bounds
        self._life = bounds.life.total_seconds()
        self._clock = clock
        self._weigh = weigh
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._flights: dict[K, _Flight[V]] = {}
        self._size_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: K) -> V | None:
        """Return what is kept, None when that is nothing (any more)."""
        entry = self._entries.get(key)
        if entry is None or self._clock.monotonic() - entry.read_at >= self._life:
            self._drop(key)
            self._misses += 1
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return entry.value

    async def get_or_load(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Return what is kept, or what `load` returns; many who ask at once share one `load`.

        Never returns a value whose read began before a `forget` that came before this call. An error of
        `load` is raised, and is not kept: others who wait for it load for themselves.
        """
        known = self.get(key)
        if known is not None:
            return known
        flight = self._flights.get(key)
        if flight is None or self._clock.monotonic() - flight.read_at >= self._life:
            return await self._load(key, load)
        await flight.done.wait()
        if flight.entry is not None:
            return flight.entry.value
        return await self._load(key, load)

    def forget(self, key: K) -> None:
        """What `key` stands for has changed."""
        self._drop(key)
        self._flights.pop(key, None)

    def forget_all(self) -> None:
        """Anything may have changed, or an announcement may have been missed."""
        self._entries.clear()
        self._flights.clear()
        self._size_bytes = 0

    def stats(self) -> CacheStats:
        """Return what it has done and holds."""
        oldest = min((entry.read_at for entry in self._entries.values()), default=None)
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            entries=len(self._entries),
            size_bytes=self._size_bytes,
            oldest=timedelta(seconds=0 if oldest is None else self._clock.monotonic() - oldest),
        )

    async def _load(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        flight = self._flights[key] = _Flight[V](self._clock.monotonic())
        try:
            value = await load()
            size_bytes = UNWEIGHED if self._weigh is None else self._weigh(value)
            flight.entry = _Entry(value, flight.read_at, size_bytes)
            # A flight that was forgotten meanwhile is not there any more, or another one is.
            if self._flights.get(key) is flight:
                self._keep(key, flight.entry)
            return value
        finally:
            flight.done.set()
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _keep(self, key: K, entry: _Entry[V]) -> None:
        self._drop(key)
        bound = self._bounds.size_bytes
        if bound is not None and entry.size_bytes > bound:
            return
        self._entries[key] = entry
        self._size_bytes += entry.size_bytes
        while len(self._entries) > self._bounds.entries or (bound is not None and self._size_bytes > bound):
            self._drop(next(iter(self._entries)))
            self._evictions += 1

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size_bytes -= entry.size_bytes

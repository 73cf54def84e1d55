"""A queue of lanes that are served in turn: who brings thousands stands behind his own, not before others.

McKenney, "Stochastic Fairness Queuing" (1990), with a lane for each key instead of a hash: one item of each
lane in turn, and when there is no more room it is made at the end of the longest lane.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """Items in order of arrival within a lane, the lanes in turn. Counts nothing but items."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[Hashable, deque[T]] = OrderedDict()  # none is empty; the first is next
        self._items = 0

    def __len__(self) -> int:
        return self._items

    def __iter__(self) -> Iterator[T]:
        for lane in self._lanes.values():
            yield from lane

    @property
    def lanes(self) -> int:
        """How many lanes hold something."""
        return len(self._lanes)

    def append(self, key: Hashable, item: T) -> None:
        """Add an item at the end of its lane; a lane that was empty comes after the others."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = deque()
        lane.append(item)
        self._items += 1

    def first(self) -> T:
        """Return what `take` would.

        Raises:
            StopIteration: There is nothing.
        """
        return next(iter(self._lanes.values()))[0]

    def take(self) -> T:
        """Remove and return the first item of the lane whose turn it is.

        Raises:
            StopIteration: There is nothing.
        """
        key, lane = next(iter(self._lanes.items()))
        item = lane.popleft()
        self._items -= 1
        if not lane:
            del self._lanes[key]
        elif len(self._lanes) > 1:
            self._lanes.move_to_end(key)
        return item

    def make_room(self, key: Hashable) -> T | None:
        """Remove and return the newest item of the longest lane, so that one more of lane `key` has room.

        None when no lane would still be longer than that of `key`: there is no room for it.
        """
        longest = max(self._lanes, key=lambda one: len(self._lanes[one]), default=None)
        own = self._lanes.get(key, ())
        if longest is None or len(self._lanes[longest]) <= len(own) + 1:
            return None
        self._items -= 1
        return self._lanes[longest].pop()

    def clear(self) -> None:
        """Remove everything."""
        self._lanes.clear()
        self._items = 0

"""Many small writes share one commit. Knows nothing of what is written.

The next group forms while the commit of the previous one runs, and until nobody else is about to write
(`shared.gathering`), so a lone caller never waits for company and a crowd shares the cost of durability.
Items with different keys take turns, so whoever brings thousands delays only himself.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Generic, NoReturn, TypeVar

from control_plane.database.lanes import Lanes
from shared.errors import DatabaseUnavailableError, ResourceExhaustedError, UnavailableError
from shared.gathering import Gathering

T = TypeVar("T")
R = TypeVar("R")

MAX_GROUP_ITEMS: Final = 256
MAX_GROUP_BYTES: Final = 1024 * 1024
MAX_WAITING_ITEMS: Final = 8192
MIN_RETRY_AFTER: Final = timedelta(milliseconds=100)
MAX_RETRY_AFTER: Final = timedelta(seconds=30)
FLUSH_TRIES: Final = 2
"""A flush that lost its connection is repeated once on a new one: its ids tell what became of it."""


@dataclass(slots=True)
class _Waiting(Generic[T, R]):
    item: T
    size_bytes: int
    answer: "asyncio.Future[R]"


class GroupCommit(Generic[T, R]):
    """Collects items and hands them to `flush` in groups, one group at a time.

    In order of arrival among items with one key of `lane_of` (without it: among all); the keys take turns.

    `flush` stores a group in one transaction and answers in order. Repeating it with the same items must be
    harmless and must tell what became of them (their ids make it so): a group whose commit has an unknown
    fate is repeated before anybody is answered, a group that fails otherwise is repeated item by item.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        size_of: Callable[[T], int],
        lane_of: Callable[[T], Hashable] | None = None,
        max_items: int = MAX_GROUP_ITEMS,
        max_bytes: int = MAX_GROUP_BYTES,
        max_waiting: int = MAX_WAITING_ITEMS,
        tries: int = FLUSH_TRIES,
        gathering: Gathering | None = None,
    ) -> None:
        self._gathering = gathering
        self._flush = flush
        self._size_of = size_of
        self._lane_of = lane_of
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._tries = tries
        self._waiting: Lanes[_Waiting[T, R]] = Lanes()
        self._arrived = asyncio.Event()
        self._closed = False
        self._group_seconds = 0.0  # of the newest group
        self._group_items = 0

    async def submit(self, item: T) -> R:
        """Return what `flush` answered for this item, after its commit.

        Raises:
            ResourceExhaustedError: Too many items wait already, and as many with this item's key as with any;
                also when that becomes so before its turn. It was not written.
            UnavailableError: The database is away, or this process stops; the item's fate may be unknown.
            Exception: Whatever `flush` raised for this item alone.
        """
        return await self.enqueue(item)

    def enqueue(self, item: T) -> "asyncio.Future[R]":
        """Like `submit`, without a coroutine: the answer comes with the future, a refusal too."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(UnavailableError("this control plane is stopping"))
            return answer
        lane = None if self._lane_of is None else self._lane_of(item)
        if len(self._waiting) >= self._max_waiting:
            turned_away = self._waiting.make_room(lane)
            if turned_away is None:
                answer.set_exception(self._full())
                return answer
            _fail(turned_away, self._full())
        self._waiting.append(lane, _Waiting(item, self._size_of(item), answer))
        self._arrived.set()
        if self._gathering is not None and len(self._waiting) >= self._max_items:
            self._gathering.close()
        return answer

    async def run(self) -> NoReturn:
        """Flush groups until cancelled; then everybody who still waits is told that nothing was promised."""
        group: list[_Waiting[T, R]] = []
        try:
            while True:
                await self._arrived.wait()
                await self._gather()
                group = self._next_group()
                if group:
                    started = time.monotonic()
                    await self._commit(group)
                    self._group_seconds, self._group_items = time.monotonic() - started, len(group)
                if not self._waiting:
                    self._arrived.clear()
        finally:
            self._closed = True
            for waiting in (*group, *self._waiting):
                _fail(waiting, UnavailableError("this control plane is stopping"))
            self._waiting.clear()

    async def _gather(self) -> None:
        """Wait until nobody else is about to write, or the group is full."""
        if self._gathering is None or len(self._waiting) >= self._max_items:
            return
        closed = asyncio.Event()
        self._gathering.open(closed.set)
        await closed.wait()

    def _full(self) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"{self._max_waiting} writes wait for the database already", retry_after=self._retry_after()
        )

    def _retry_after(self) -> timedelta:
        """How long half of what waits takes at the pace of the newest group."""
        if not self._group_items:
            return MIN_RETRY_AFTER
        seconds = self._group_seconds / self._group_items * self._max_waiting / 2
        return min(max(timedelta(seconds=seconds), MIN_RETRY_AFTER), MAX_RETRY_AFTER)

    def _next_group(self) -> list[_Waiting[T, R]]:
        group: list[_Waiting[T, R]] = []
        size = 0
        while self._waiting and len(group) < self._max_items:
            first = self._waiting.first()
            if group and size + first.size_bytes > self._max_bytes:
                break
            self._waiting.take()
            if first.answer.done():  # its caller went away before anything was promised
                continue
            group.append(first)
            size += first.size_bytes
        return group

    async def _commit(self, group: list[_Waiting[T, R]]) -> None:
        try:
            answers = await self._flush_surely([waiting.item for waiting in group])
        except UnavailableError as error:
            for waiting in group:
                _fail(waiting, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait for it
            await self._commit_singly(group, error)
        else:
            for waiting, answer in zip(group, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)

    async def _commit_singly(self, group: list[_Waiting[T, R]], error: Exception) -> None:
        if len(group) == 1:
            _fail(group[0], error)
            return
        for waiting in group:
            await self._commit([waiting])

    async def _flush_surely(self, items: Sequence[T]) -> Sequence[R]:
        for _ in range(self._tries - 1):
            try:
                return await self._flush(items)
            except DatabaseUnavailableError:
                continue
        return await self._flush(items)


def _fail(waiting: "_Waiting[T, R]", error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)

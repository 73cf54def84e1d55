"""The bounded queue between this replica and one node's stream. Never waits for the node."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from shared.errors import AgentFactoryError, ResourceExhaustedError

M = TypeVar("M")


class Outbox(Generic[M]):
    """Messages to one node, in order; some stand behind all others, whenever those come.

    A node that does not read them loses its own session only.
    """

    def __init__(self, *, limit: int, max_bytes: int, size_of: Callable[[M], int], owner: str) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._owner = owner
        self._messages: deque[tuple[M, int]] = deque()
        self._behind: deque[tuple[M, int]] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._error: AgentFactoryError | None = None

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def error(self) -> AgentFactoryError | None:
        """Why it was closed; None while open and after a plain end."""
        return self._error

    def put(self, message: M) -> bool:
        """Queue a message; False when the queue is closed, or full and therefore closed by this call."""
        return self._put(message, self._messages)

    def put_behind(self, message: M) -> bool:
        """Queue a message that others may overtake: an answer that one guest alone waits for."""
        return self._put(message, self._behind)

    def _put(self, message: M, queue: deque[tuple[M, int]]) -> bool:
        if self._closed:
            return False
        size_bytes = self._size_of(message)
        waiting = len(self._messages) + len(self._behind)
        if waiting >= self._limit or self._bytes + size_bytes > self._max_bytes:
            self.close(
                ResourceExhaustedError(
                    f"node {self._owner} left {waiting} messages of {self._bytes} bytes unread",
                    hint="the node or its network is too slow; it reconnects by itself",
                )
            )
            return False
        queue.append((message, size_bytes))
        self._bytes += size_bytes
        self._changed.set()
        return True

    def close(self, error: AgentFactoryError | None = None) -> None:
        """End the stream: after what is queued, or at once with an `error`. Repeats change nothing."""
        if self._closed:
            return
        self._closed = True
        self._error = error
        self._changed.set()

    def take_unread(self) -> list[M]:
        """Return what the node will never read: call it when its stream is over."""
        unread = [message for message, _ in (*self._messages, *self._behind)]
        self._messages.clear()
        self._behind.clear()
        self._bytes = 0
        return unread

    async def __aiter__(self) -> AsyncIterator[M]:
        """Yield messages until the queue is closed: to its end, or to the error that closed it.

        Raises:
            AgentFactoryError: What it was closed with.
        """
        while True:
            while (queue := self._messages or self._behind) and self._error is None:
                message, size_bytes = queue.popleft()
                self._bytes -= size_bytes
                yield message
            if self._closed:
                break
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error

"""The bounded queue between this replica and one node's stream. Never waits for the node."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from shared.errors import AgentFactoryError, ResourceExhaustedError

M = TypeVar("M")


class Outbox(Generic[M]):
    """Messages to one node, in order. A node that does not read them loses its own session only."""

    def __init__(self, *, limit: int, owner: str) -> None:
        self._limit = limit
        self._owner = owner
        self._messages: deque[M] = deque()
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
        if self._closed:
            return False
        if len(self._messages) >= self._limit:
            self.close(
                ResourceExhaustedError(
                    f"node {self._owner} left {self._limit} messages unread",
                    hint="the node or its network is too slow; it reconnects by itself",
                )
            )
            return False
        self._messages.append(message)
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
        unread = list(self._messages)
        self._messages.clear()
        return unread

    async def __aiter__(self) -> AsyncIterator[M]:
        """Yield messages until the queue is closed: to its end, or to the error that closed it.

        Raises:
            AgentFactoryError: What it was closed with.
        """
        while True:
            while self._messages and self._error is None:
                yield self._messages.popleft()
            if self._closed:
                break
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error

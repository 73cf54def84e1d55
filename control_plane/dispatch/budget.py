"""How much of one session may be under way: a count and bytes. Waits, refuses nothing."""

import asyncio


class Budget:
    """A bound on items and on their bytes. An item above the bytes passes when it is alone."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items = 0
        self._bytes = 0
        self._freed = asyncio.Event()

    async def acquire(self, size_bytes: int) -> None:
        """Take a share; waits until there is room. Give it back with `release` and the same size."""
        while self._items and (self._items >= self._max_items or self._bytes + size_bytes > self._max_bytes):
            self._freed.clear()
            await self._freed.wait()
        self._items += 1
        self._bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give a share back."""
        self._items -= 1
        self._bytes -= size_bytes
        self._freed.set()

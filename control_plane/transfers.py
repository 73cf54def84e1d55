"""What large transfers may hold of one replica: a fair share of its slots, and no silence.

Knows no transport and no store. A slot is memory: whoever has one may collect up to one whole body or module.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from shared.errors import DeadlineExceededError, ResourceExhaustedError

SLOTS_PER_IDENTITY: Final = 2
"""Transfers of one identity at the same time; its others wait for those."""

SLOT_WAIT: Final = timedelta(seconds=30)
"""For a slot, before the transfer is refused."""

IDLE_DEADLINE: Final = timedelta(seconds=10)
"""Between two pieces with bytes in them; a sender that is silent for so long gives its slot back."""


@dataclass(slots=True)
class _Share:
    slots: asyncio.Semaphore
    users: int = 0


class TransferSlots:
    """Slots of one kind of transfer. Nobody keeps others out by holding all of them."""

    def __init__(
        self, total: int, *, per_identity: int = SLOTS_PER_IDENTITY, wait: timedelta = SLOT_WAIT
    ) -> None:
        self._slots = asyncio.Semaphore(total)
        self._per_identity = per_identity
        self._wait = wait
        self._shares: dict[str, _Share] = {}  # of identities with a transfer under way

    @asynccontextmanager
    async def hold(self, identity: str) -> AsyncIterator[None]:
        """Have a slot for the length of the block.

        Raises:
            ResourceExhaustedError: None came free within the wait.
        """
        share = self._shares.setdefault(identity, _Share(asyncio.Semaphore(self._per_identity)))
        share.users += 1
        try:
            await self._acquire(share, identity)
            try:
                yield
            finally:
                self._slots.release()
                share.slots.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[identity]

    async def _acquire(self, share: _Share, identity: str) -> None:
        try:
            async with asyncio.timeout(self._wait.total_seconds()):
                await share.slots.acquire()
                try:
                    await self._slots.acquire()
                except BaseException:
                    share.slots.release()
                    raise
        except TimeoutError as error:
            raise ResourceExhaustedError(
                f"no transfer slot came free for {identity} within {self._wait.total_seconds():g} s",
                hint="wait for an own transfer to end, or try again",
            ) from error


async def paced(chunks: AsyncIterator[bytes], *, idle: timedelta = IDLE_DEADLINE) -> AsyncIterator[bytes]:
    """Yield the pieces of a transfer that have bytes in them.

    Raises:
        DeadlineExceededError: None came for `idle`.
    """
    pieces = aiter(chunks)
    while True:
        try:
            async with asyncio.timeout(idle.total_seconds()):
                piece = await anext(pieces)
                while not piece:  # an empty piece is no progress
                    piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise DeadlineExceededError(f"no byte came for {idle.total_seconds():g} s") from error
        yield piece

"""Work on descriptors in threads, which go on when nobody waits for them any more. Knows not what it is."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Work in a thread. Whoever is cancelled learns it when the thread has ended, and may close then.

    The number of a descriptor that was closed earlier would be another file's, and the work go on with that.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *args, **options))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        raise


async def opened(work: Callable[P, int], *args: P.args, **options: P.kwargs) -> int:
    """Return the descriptor that is opened in a thread; it is closed if the caller is cancelled meanwhile."""
    opening = asyncio.ensure_future(asyncio.to_thread(work, *args, **options))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opening: "asyncio.Future[int]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())

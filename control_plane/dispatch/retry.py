"""Repeats a call to the database while it is away, within bounds."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

import structlog

from shared.errors import DatabaseUnavailableError, ResourceExhaustedError

T = TypeVar("T")

logger = structlog.get_logger(__name__)

MAX_TRIES: Final = 8
FIRST_PAUSE: Final = timedelta(milliseconds=50)
MAX_PAUSE: Final = timedelta(seconds=2)
TRY_DEADLINE: Final = timedelta(seconds=10)


async def retrying(call: Callable[[], Awaitable[T]], *, what: str) -> T:
    """Return what `call` returns; repeats it while the database is away or has too much to do.

    `call` must be harmless to repeat.

    Raises:
        DatabaseUnavailableError: It was away or full for every one of `MAX_TRIES`.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, MAX_TRIES + 1):
        try:
            async with asyncio.timeout(TRY_DEADLINE.total_seconds()):
                return await call()
        except (DatabaseUnavailableError, ResourceExhaustedError, TimeoutError) as error:
            logger.warning("database is away", what=what, attempt=attempt, error=str(error))
            if attempt == MAX_TRIES:
                raise DatabaseUnavailableError(f"could not {what} in {MAX_TRIES} tries") from error
        await asyncio.sleep(pause.total_seconds())
        pause = min(pause * 2, MAX_PAUSE)
    raise AssertionError("unreachable")

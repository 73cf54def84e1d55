"""A connection that outlives callers who give up. Knows no query."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

FINISH_SECONDS: Final = 1.0
"""How long a statement that nobody waits for any more may take; after that its connection is given up."""

Result = TypeVar("Result")


class PatientConnection(AsyncConnection):
    """Lets a statement end although whoever asked for it was cancelled, and tells them then.

    A connection whose statement is given up in the middle is closed by SQLAlchemy, and opening another one
    costs Postgres and us more than most statements. Callers whose deadlines pass while they are served slowly
    would make everything slower: a few hundred of them kept the system busy with connecting for minutes.
    """

    async def execute(self, *arguments: Any, **options: Any) -> Any:
        """As the base's; everything else that runs a statement goes through this or the next."""
        return await _to_its_end(super().execute(*arguments, **options))

    async def exec_driver_sql(self, *arguments: Any, **options: Any) -> Any:
        """As the base's."""
        return await _to_its_end(super().exec_driver_sql(*arguments, **options))


async def _to_its_end(statement: Coroutine[Any, Any, Result]) -> Result:
    running = asyncio.ensure_future(statement)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if not running.done():
            try:
                await asyncio.wait({running}, timeout=FINISH_SECONDS)
            finally:
                if not running.done():
                    running.cancel()
                    await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # nobody is told: it counts as seen
        raise

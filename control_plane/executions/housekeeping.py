"""Removes what nothing needs any more: unused uploads and old request ids. Bounded and slow."""

import asyncio
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.executions.ports import ExecutionStore
from shared.errors import DatabaseUnavailableError
from shared.logs import get_logger

EVERY_SECONDS: Final = 300.0
MAX_REMOVED_AT_ONCE: Final = 1000
"""Rows of one transaction; what is left over waits for the next round."""
REQUEST_ID_LIFE: Final = timedelta(hours=48)
"""Rule 8 promises at least 24 hours."""

_log = get_logger(__name__)


class Housekeeping:
    """One round every few minutes in each replica; two at once are harmless."""

    def __init__(self, store: ExecutionStore, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._store = store
        self._every_seconds = every_seconds

    async def run(self) -> NoReturn:
        """Clean until cancelled."""
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                bodies, request_ids = await self.clean()
            except DatabaseUnavailableError as error:
                _log.warning("housekeeping waits for postgres", error=str(error))
            else:
                _log.debug("housekeeping done", removed_bodies=bodies, removed_request_ids=request_ids)

    async def clean(self) -> tuple[int, int]:
        """Do one round; returns how many bodies and request ids were removed.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """
        bodies = await self._store.remove_unused_bodies(limit=MAX_REMOVED_AT_ONCE)
        request_ids = await self._store.remove_idempotency_keys(
            older_than=REQUEST_ID_LIFE, limit=MAX_REMOVED_AT_ONCE
        )
        return bodies, request_ids

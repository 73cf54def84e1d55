"""Ends what slipped past a stop or a closed template, on every replica, each second.

An order whose transaction began before the stop committed is found here; so is what a replica left behind
that died between a stop and its end.
"""

import asyncio
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.audit.domain import SYSTEM_ACTOR
from control_plane.database.ports import Database
from control_plane.stops.ports import Halting, StopStore
from shared.errors import AgentFactoryError
from shared.logs import get_logger

LOOK_EVERY: Final = timedelta(seconds=1)
LOOK_WITHIN: Final = timedelta(seconds=30)

CHANGED_WITHIN: Final = timedelta(minutes=1)
"""No transaction that accepts or claims is open for as long."""

FAR: Final = timedelta(days=2)
"""No execution lives longer (its run deadline is a day at most)."""

FAR_EVERY: Final = 60
"""Looks: the first, and one a minute, find what came back to the queue after its template was closed."""

logger = get_logger(__name__)


class StopWatch:
    """The second look of one replica."""

    def __init__(self, *, database: Database, store: StopStore, halting: Halting) -> None:
        self._database = database
        self._store = store
        self._halting = halting
        self._looks = 0

    async def look(self) -> None:
        """Look once: at every stop and at templates closed lately, now and then at all that matter.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """
        window = FAR if self._looks % FAR_EVERY == 0 else CHANGED_WITHIN
        async with self._database.transaction() as tx:
            halts = await self._store.halts(tx, changed_within=window)
        for scope, reason in halts:
            await self._halting.halt(scope, reason, actor=SYSTEM_ACTOR)
        self._looks += 1  # not counted when it failed: the next one looks as far

    async def run(self) -> NoReturn:
        """Look each second until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_WITHIN.total_seconds()):
                    await self.look()
            except (AgentFactoryError, TimeoutError) as error:
                logger.warning("stops were not looked at", error=str(error) or "postgres is slow")
            await asyncio.sleep(LOOK_EVERY.total_seconds())

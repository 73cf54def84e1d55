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

AT_START: Final = timedelta(days=2)
"""No execution lives longer (its run deadline is a day at most)."""

logger = get_logger(__name__)


class StopWatch:
    """The second look of one replica."""

    def __init__(self, *, database: Database, store: StopStore, halting: Halting) -> None:
        self._database = database
        self._store = store
        self._halting = halting
        self._window = AT_START

    async def look(self) -> None:
        """Look once. After one that succeeded, only what changed lately is looked at.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """
        async with self._database.transaction() as tx:
            halts = await self._store.halts(tx, changed_within=self._window)
        for scope, reason in halts:
            await self._halting.halt(scope, reason, actor=SYSTEM_ACTOR)
        self._window = CHANGED_WITHIN

    async def run(self) -> NoReturn:
        """Look each second until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_WITHIN.total_seconds()):
                    await self.look()
            except (AgentFactoryError, TimeoutError) as error:
                logger.warning("stops were not looked at", error=str(error) or "postgres is slow")
            await asyncio.sleep(LOOK_EVERY.total_seconds())

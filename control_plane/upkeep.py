"""What a replica does for itself every few seconds: look at Postgres, tell health, renew its certificate."""

import asyncio
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.backup.store import BackupAge
from control_plane.executions.ports import ExecutionStore
from control_plane.installation.authorities import InstallationAuthority
from control_plane.installation.files import ensure_server_certificate
from control_plane.metrics import ControlMetrics
from control_plane.queue_store import QueueGauge
from control_plane.servers import Front
from shared.admin_http import Readiness
from shared.clock import Clock
from shared.errors import AgentFactoryError
from shared.ids import InstallationId
from shared.logs import get_logger
from shared.paths import InstallationPaths

WATCH_EVERY: Final = timedelta(seconds=2)
"""Between two looks at Postgres for health and queue depth."""

ANSWER_WITHIN: Final = timedelta(seconds=1)
"""For Postgres' answer to such a look."""

RENEW_EVERY: Final = timedelta(hours=1)
"""Between two looks at the age of the server's certificate."""

SWEEP_EVERY: Final = timedelta(minutes=5)
SWEEP_ROWS: Final = 500
MAX_SWEEP_STEPS: Final = 2_000
"""A million rows in five minutes: 288 million a day, above what docs/scale.md reckons with."""
REQUEST_ID_LIFE: Final = timedelta(hours=24)
"""How long a repeat with the same request id finds its execution (rule 8)."""

logger = get_logger(__name__)


class HealthWatch:
    """Whether this replica can do its work: Postgres answers, and nobody has asked it to stop."""

    def __init__(
        self, *, queue: QueueGauge, backups: BackupAge, front: Front, metrics: ControlMetrics
    ) -> None:
        self._queue = queue
        self._backups = backups
        self._front = front
        self._metrics = metrics
        self._state = Readiness(ready=False, detail="starting")
        self._stopping = False

    async def readiness(self) -> Readiness:
        """Return what the last look found."""
        return self._state

    def stop(self) -> None:
        """Be not ready from now on."""
        self._stopping = True
        self._state = Readiness(ready=False, detail="stopping")

    async def look(self) -> None:
        """Look once and tell health watchers."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN.total_seconds()):
                await self._queue.ping()
                self._metrics.queue_depth(await self._queue.depth())
                self._metrics.queue_ages(await self._queue.ages())
                self._metrics.backup_age(await self._backups.age())
            found = Readiness(ready=True)
        except (AgentFactoryError, TimeoutError) as error:
            found = Readiness(ready=False, detail=str(error) or "postgres is slow")
        if self._stopping:
            return
        if found.ready != self._state.ready:
            logger.info("readiness changed", ready=found.ready, detail=found.detail)
        self._state = found
        await self._front.report(serving=found.ready)

    async def run(self) -> NoReturn:
        """Look every two seconds until cancelled."""
        while True:
            await asyncio.sleep(WATCH_EVERY.total_seconds())
            await self.look()


class CertificateRenewal:
    """Replaces the server's certificate in time; the servers notice the new file at the next handshake."""

    def __init__(
        self,
        *,
        paths: InstallationPaths,
        installation: InstallationId,
        authority: InstallationAuthority,
        server_names: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._paths = paths
        self._installation = installation
        self._authority = authority
        self._server_names = server_names
        self._clock = clock

    def renew_if_due(self) -> bool:
        """Issue a new certificate for an old one, or one of an authority that was replaced.

        Returns whether it did.

        Raises:
            KeyFileModeError, KeyFormatError: The server's key is not usable.
            OSError: The file cannot be written.
        """
        return ensure_server_certificate(
            self._paths,
            self._installation,
            self._authority.of_server(),
            server_names=self._server_names,
            clock=self._clock,
        )

    async def run(self) -> NoReturn:
        """Look every hour until cancelled. A failure is logged: the old certificate serves on."""
        while True:
            await asyncio.sleep(RENEW_EVERY.total_seconds())
            try:
                if await asyncio.to_thread(self.renew_if_due):
                    logger.info("server certificate renewed", certificate=str(self._paths.server_certificate))
            except (AgentFactoryError, OSError):
                logger.exception("server certificate not renewed")


class Housekeeping:
    """Removes what nobody uses any more: unused uploads, request ids that are old enough to forget."""

    def __init__(self, executions: ExecutionStore) -> None:
        self._executions = executions

    async def sweep(self) -> None:
        """Remove what is due, in steps of 500 rows.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """
        for _ in range(MAX_SWEEP_STEPS):
            removed = await self._executions.remove_unused_bodies(limit=SWEEP_ROWS)
            removed += await self._executions.remove_idempotency_keys(
                older_than=REQUEST_ID_LIFE, limit=SWEEP_ROWS
            )
            if not removed:
                return

    async def run(self) -> NoReturn:
        """Sweep every five minutes until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_EVERY.total_seconds())
            try:
                await self.sweep()
            except AgentFactoryError as error:
                logger.warning("housekeeping failed, it is tried again", error=str(error))

"""Which policy is in force, on this replica: learnt from Postgres, verified, loaded. Decides nothing.

A replica that cannot load what was activated has no engine, so that everything is denied; it never goes on
with the one before. One that could not ask for too long does not answer from memory either.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.database.ports import Database
from control_plane.policy.bundles import Activation, BundleRecord
from control_plane.policy.ports import (
    BundleStore,
    InForce,
    PolicyEngine,
    PolicyEngines,
    PolicyKeys,
    PolicyObserver,
)
from shared.clock import Clock
from shared.errors import (
    AgentFactoryError,
    DatabaseUnavailableError,
    NotFoundError,
    PackageAlteredError,
)
from shared.keyset import KeyPurpose
from shared.logs import get_logger
from shared.policy_bundle import verify_policy

logger = get_logger(__name__)

POLL: Final = timedelta(seconds=1)
"""How often a replica asks that heard nothing."""

MAX_UNCHECKED: Final = timedelta(seconds=5)
"""So old may what it knows become; then nothing is decided before it has asked again."""


class FixedPolicy:
    """Implements `PolicyInForce` for one engine that is never replaced."""

    def __init__(self, engine: PolicyEngine, *, version: int = 0) -> None:
        self._in_force = InForce(number=0, digest=engine.digest, version=version, engine=engine)

    def known(self) -> InForce:
        """See `PolicyInForce.known`."""
        return self._in_force

    async def confirmed(self) -> InForce:
        """See `PolicyInForce.confirmed`."""
        return self._in_force


class ActivePolicy:
    """Implements `PolicyInForce`."""

    def __init__(
        self,
        *,
        database: Database,
        store: BundleStore,
        keys: PolicyKeys,
        engines: PolicyEngines,
        builtin: BundleRecord,
        observer: PolicyObserver,
        clock: Clock,
    ) -> None:
        self._database = database
        self._store = store
        self._keys = keys
        self._engines = engines
        self._builtin = builtin
        self._observer = observer
        self._clock = clock
        self._in_force: InForce | None = None
        self._checked_at = 0.0
        self._is_kept = False
        self._asking = asyncio.Lock()
        self._hinted = asyncio.Event()

    def heard(self, _parts: Sequence[str]) -> None:
        """Another policy may be in force."""
        self._hinted.set()

    def known(self) -> InForce | None:
        """See `PolicyInForce.known`."""
        if self._clock.monotonic() - self._checked_at > MAX_UNCHECKED.total_seconds():
            return None
        return self._in_force

    async def confirmed(self) -> InForce:
        """See `PolicyInForce.confirmed`."""
        asked_at = self._clock.monotonic()
        async with self._asking:
            if self._in_force is not None and self._checked_at > asked_at:
                return self._in_force  # somebody asked while this one waited
            return await self._ask()

    async def run(self) -> NoReturn:
        """Keep up until cancelled."""
        while True:
            self._hinted.clear()
            try:
                await self.confirmed()
            except AgentFactoryError as error:
                logger.warning("cannot learn which policy is in force", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL.total_seconds()):
                    await self._hinted.wait()

    async def _ask(self) -> InForce:
        asked_at = self._clock.monotonic()
        async with self._database.transaction() as tx:
            newest = await self._store.newest_activation(tx)
        number = 0 if newest is None else newest.number
        known = self._in_force
        if known is None or known.number != number or known.engine is None:
            # From here on nobody gets the one before: who asks meanwhile waits for what is loaded.
            self._in_force = None
            self._in_force = await self._load(newest)
            self._observer.policy_in_force(
                version=self._in_force.version, loaded=self._in_force.engine is not None
            )
        # From before the question: what was activated since then is not in the answer.
        self._checked_at = asked_at
        assert self._in_force is not None
        return self._in_force

    async def _load(self, newest: Activation | None) -> InForce:
        number = 0 if newest is None else newest.number
        digest = self._builtin.digest if newest is None or newest.digest is None else newest.digest
        try:
            bundle = await self._verified(newest)
            engine = await self._engines.load(bundle.rules)
        except DatabaseUnavailableError:
            raise
        except AgentFactoryError as error:
            logger.exception(
                "the policy in force cannot be loaded, everything is denied",
                policy_digest=digest,
                activation=number,
                reason=error.reason,
            )
            return InForce(number=number, digest=digest, version=0, engine=None)
        logger.info("a policy is in force", policy_digest=digest, version=bundle.version, activation=number)
        return InForce(number=number, digest=digest, version=bundle.version, engine=engine)

    async def _verified(self, newest: Activation | None) -> BundleRecord:
        """Return the bundle if a policy key signed exactly it; the database is not trusted with that."""
        if newest is None or newest.digest is None:
            await self._keep_builtin()
            return self._builtin
        async with self._database.transaction() as tx:
            record = await self._store.find(tx, newest.digest)
        if record is None:
            raise NotFoundError(f"the activated policy {newest.digest} is not stored")
        await require_signed(record, self._keys)
        return record

    async def _keep_builtin(self) -> None:
        """Store what came with this replica, once: its decisions can be made again later."""
        if not self._is_kept:
            async with self._database.transaction() as tx:
                await self._store.add(tx, self._builtin)
            self._is_kept = True


async def require_signed(record: BundleRecord, keys: PolicyKeys) -> None:
    """Let a stored bundle pass whose signature counted when it was published.

    A key that expired or was revoked later does not end what it signed before.

    Raises:
        VerificationError: It is not what a policy key signed.
        UnavailableError: There is no keyset to be had.
    """
    trusted = (await keys.current()).keys_for(KeyPurpose.POLICY, record.published_at)
    verified = verify_policy(record.envelope, record.files, keys=trusted)
    if verified.digest != record.digest or verified.manifest.version != record.version:
        raise PackageAlteredError(
            f"the policy stored as {record.digest} is {verified.digest}", hint="publish it again"
        )

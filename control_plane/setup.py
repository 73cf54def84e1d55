"""Composition root of the one-shot commands: makes an installation, trusts a publisher, drops what is old.

Serves nothing. The command line calls these; the running control plane is `main.py`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from control_plane.audit.store import PostgresAuditStore
from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.migrate import newest_revision, require_current_schema, upgrade
from control_plane.database.retention import Retained, RetentionPlan
from control_plane.database.retention import retain as retain_in
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.installation.domain import DEFAULT_TENANT, Initialized, InitRequest
from control_plane.installation.service import InstallationService
from control_plane.installation.store import PostgresInstallationStore
from shared.clock import Clock, SystemClock, SystemRandom
from shared.paths import InstallationPaths
from shared.signatures import PrivateKey, PublicKey


async def initialize(request: InitRequest, *, clock: Clock | None = None) -> Initialized:
    """Migrate the database and make what is missing of the installation. Idempotent.

    Raises:
        ConflictError: Data folder and database belong to different installations.
        KeyFileModeError: A key file may be read by others.
        DatabaseUnavailableError: Postgres is away or refuses the login.
        SettingsError: The database url is none.
    """
    await upgrade(request.owner_database_url)
    async with _service(request.owner_database_url, clock) as service:
        return await service.initialize(request)


async def migrate(owner_database_url: str, *, service_password: str | None = None) -> str:
    """Bring the schema to this build's and return its revision; no key is needed. Idempotent.

    Raises:
        DatabaseUnavailableError: Postgres is away or refuses the login.
        InvalidInputError: The password is none that Postgres takes as it is.
        SettingsError: The database url is none.
    """
    await upgrade(owner_database_url)
    if service_password is not None:
        async with _service(owner_database_url, None) as service:
            await service.set_service_password(service_password)
    return newest_revision()


async def add_publisher(
    *,
    paths: InstallationPaths,
    owner_database_url: str,
    publisher: PublicKey,
    clock: Clock | None = None,
) -> int:
    """Trust a publisher's key: signs the next keyset with the root key. Returns the keyset's version.

    Running control planes notice within seconds. Idempotent.

    Raises:
        NotFoundError: There is no installation, or the root key is kept elsewhere.
        InvalidInputError: The key is not RSA.
        ConflictError: Somebody else made a keyset meanwhile: repeat.
        DatabaseUnavailableError: Postgres is away or refuses the login.
    """
    async with _service(owner_database_url, clock) as service:
        return await service.add_publisher(paths, publisher)


async def replace_root(
    *, paths: InstallationPaths, owner_database_url: str, root: PrivateKey, clock: Clock | None = None
) -> int:
    """Let another root key sign keysets, with no word from the one before. Returns the keyset's version.

    Every control plane and node has to be given the new trust roots by hand. Idempotent.

    Raises:
        NotFoundError: There is no installation here.
        VerificationError: The newest keyset is by neither the pinned root key nor the new one.
        ConflictError: Somebody else made a keyset meanwhile: repeat.
        DatabaseUnavailableError: Postgres is away or refuses the login.
    """
    async with _service(owner_database_url, clock) as service:
        return await service.replace_root(paths, root)


async def record_new_authority(
    owner_database_url: str, *, fingerprint: str, old_until: datetime, clock: Clock | None = None
) -> None:
    """Say in the audit log that another authority issues certificates from now on.

    Raises:
        NotFoundError: There is no installation in this database.
        DatabaseUnavailableError: Postgres is away or refuses the login.
    """
    async with _service(owner_database_url, clock) as service:
        await service.record_new_authority(fingerprint, old_until)


async def retain(owner_database_url: str, plan: RetentionPlan, *, clock: Clock | None = None) -> Retained:
    """Make partitions ahead of time and drop what the plan does not keep. Idempotent.

    Raises:
        ConflictError: Another retention runs, or an earlier one left what has to be looked at.
        DatabaseUnavailableError: Postgres is away or refuses the login, or its locks did not come.
        SettingsError: The database url is none, or the schema is not this build's.
    """
    engine = create_engine(owner_database_url, application="agentfactory-setup")
    try:
        await require_current_schema(engine)
    finally:
        await engine.dispose()
    return await retain_in(
        owner_database_url, plan, clock=clock or SystemClock(), random=SystemRandom(), tenant=DEFAULT_TENANT
    )


@asynccontextmanager
async def _service(owner_database_url: str, clock: Clock | None) -> AsyncIterator[InstallationService]:
    engine = create_engine(
        owner_database_url, application="agentfactory-setup", bounds=PoolBounds(connections=2)
    )
    database = PostgresDatabase(engine, notifier=NobodyListens())
    try:
        yield InstallationService(
            database=database,
            store=PostgresInstallationStore(),
            audit=PostgresAuditStore(database),
            clock=clock or SystemClock(),
            random=SystemRandom(),
        )
    finally:
        await database.close()


class NobodyListens:
    """A `Notifier` for a process that ends at once: the others poll."""

    def notify(self, channel: str, payloads: Sequence[str] = ()) -> None: ...

    def notify_others(self, channel: str, payloads: Sequence[str] = ()) -> None: ...

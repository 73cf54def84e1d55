"""What all services of the control plane stand on: database, clock, keys, notifications. No service."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry

from control_plane.audit.store import PostgresAuditStore
from control_plane.audit.throttle import RefusalLog
from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.migrate import require_current_schema
from control_plane.database.notifications import (
    Notifications,
    PostgresNotifier,
    Subscriptions,
)
from control_plane.database.unit_of_work import DISPATCH_ROLE, HeldConnection, PostgresDatabase
from control_plane.installation.authorities import InstallationAuthority
from control_plane.installation.files import read_root_key
from control_plane.installation.ports import FoundInstallation
from control_plane.keys.registry import KeysetRegistry
from control_plane.keys.store import PostgresKeyStore
from control_plane.metrics import ControlMetrics
from control_plane.settings import ControlSettings
from shared.clock import SystemClock, SystemRandom
from shared.errors import SettingsError
from shared.paths import InstallationPaths
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import Tracer

_APPLICATION: Final = "agentfactory-control-plane"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What every service stands on."""

    settings: ControlSettings
    paths: InstallationPaths
    clock: SystemClock
    random: SystemRandom
    metrics: ControlMetrics
    registry: CollectorRegistry
    notifier: PostgresNotifier
    notifications: Notifications
    subscriptions: Subscriptions
    database: PostgresDatabase
    audit: PostgresAuditStore
    refusals: RefusalLog
    found: FoundInstallation
    authority: InstallationAuthority
    keysets: KeysetRegistry
    tracer: Tracer


async def _require_current_schema(settings: ControlSettings) -> None:
    """Ask before the role is taken: an older schema has none."""
    engine = create_engine(settings.database_url.get_secret_value(), application=_APPLICATION)
    try:
        await require_current_schema(engine)
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_base(settings: ControlSettings) -> AsyncIterator[Base]:
    """Open what every service stands on, for the length of the block.

    Raises:
        DatabaseUnavailableError: Postgres is away or refuses the login.
        SettingsError: The schema is not this build's, or there is no installation.
        NotFoundError, KeyFileModeError, KeyFormatError: A key or certificate is missing or not usable.
    """
    await _require_current_schema(settings)
    engine = create_engine(
        settings.database_url.get_secret_value(),
        application=_APPLICATION,
        bounds=PoolBounds(connections=settings.database_connections, wait=settings.database_wait),
        role=DISPATCH_ROLE,
    )
    clock, random, registry = SystemClock(), SystemRandom(), CollectorRegistry()
    subscriptions = Subscriptions(replica=random.token_bytes(8).hex())
    notifier = PostgresNotifier(HeldConnection(engine), subscriptions)
    database = PostgresDatabase(engine, notifier=notifier)
    try:
        audit = PostgresAuditStore(database)
        paths = InstallationPaths(data_dir=settings.data_dir)
        if not paths.root_public_key.exists():
            raise SettingsError(
                f"{paths.data_dir} holds no installation",
                hint="run 'agentfactory init', or set AF_CONTROL_DATA_DIR",
            )
        store = PostgresKeyStore()
        async with database.transaction() as tx:
            found = await store.found(tx)
        if found is None:
            raise SettingsError("the database holds no installation", hint="run 'agentfactory init'")
        async with _tracing(settings, subscriptions, registry, clock, random) as tracer:
            yield Base(
                settings=settings,
                paths=paths,
                clock=clock,
                random=random,
                metrics=ControlMetrics(registry, tenants=settings.metrics_tenants),
                registry=registry,
                notifier=notifier,
                notifications=Notifications(engine, subscriptions),
                subscriptions=subscriptions,
                database=database,
                audit=audit,
                refusals=RefusalLog(audit=audit, clock=clock, random=random),
                found=found,
                authority=InstallationAuthority(paths, clock),
                tracer=tracer,
                keysets=KeysetRegistry(
                    database=database,
                    store=store,
                    root=read_root_key(paths),
                    installation=found.installation,
                    clock=clock,
                ),
            )
    finally:
        await database.close()


def _tracing(
    settings: ControlSettings,
    subscriptions: Subscriptions,
    registry: CollectorRegistry,
    clock: SystemClock,
    random: SystemRandom,
) -> AbstractAsyncContextManager[Tracer]:
    return tracing(
        TraceOptions(
            endpoint=settings.otlp_endpoint,
            authority=settings.otlp_ca_file,
            ratio=settings.trace_ratio,
            max_per_second=settings.trace_max_per_s,
        ),
        service=_APPLICATION,
        instance=settings.replica_id or subscriptions.replica,
        registry=registry,
        clock=clock,
        random=random,
    )

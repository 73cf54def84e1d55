"""Composition root of the control plane: settings → adapters → services → servers, and their end.

The only place that builds adapters for the running service. Holds no rule and no query.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from control_plane.backup.store import BackupAge
from control_plane.database.notifications import Channel
from control_plane.installation.files import read_server_names
from control_plane.queue_store import QueueGauge
from control_plane.servers import Address, Front, serving
from control_plane.settings import ControlSettings
from control_plane.upkeep import CertificateRenewal, HealthWatch
from control_plane.wiring.base import Base, open_base
from control_plane.wiring.body_keys import open_body_keys
from control_plane.wiring.keys import open_signer
from control_plane.wiring.services import Services, build
from shared.admin_http import admin_server
from shared.logs import get_logger
from shared.rpc.tls import TlsFiles, server_credentials
from shared.runtime import settle, stop_signals

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a running control plane listens on."""

    grpc: int
    enroll: int
    admin: int


async def run(settings: ControlSettings, *, stop: asyncio.Event, started: Callable[[Ports], None]) -> None:
    """Serve until `stop` is set, then stop gracefully. `started` is called once everything listens.

    Raises:
        DatabaseUnavailableError: Postgres is away or refuses the login.
        SettingsError: The schema is not this build's, or there is no installation.
        NotFoundError, KeyFileModeError, KeyFormatError: A key or certificate is missing or not usable.
        UnknownKeyError: Keys are in files, and the keyset lists none of them.
        PortInUseError: An address is taken.
    """
    async with (
        open_base(settings) as base,
        open_signer(base) as signer,
        open_body_keys(base) as body_keys,
    ):
        await _serve(base, await build(base, signer, body_keys), stop, started)


async def _serve(
    base: Base, services: Services, stop: asyncio.Event, started: Callable[[Ports], None]
) -> None:
    settings = base.settings
    front = Front(
        gatekeeper=services.access,
        observer=base.metrics,
        turns=services.turns,
        register=services.register,
    )
    watch = HealthWatch(
        queue=QueueGauge(base.database),
        backups=BackupAge(base.database),
        front=front,
        metrics=base.metrics,
    )
    renewal = CertificateRenewal(
        paths=base.paths,
        installation=base.found.installation,
        authority=base.authority,
        server_names=read_server_names(base.paths),
        clock=base.clock,
    )
    renewal.renew_if_due()
    base.metrics.watch_dispatch(services.dispatch.stats)
    files = {"server": base.paths.server_certificate, "authority": base.paths.ca_certificate}
    base.metrics.watch_certificates(files, base.clock)
    admin = admin_server(
        host=settings.admin_host,
        port=settings.admin_port,
        registry=base.registry,
        readiness=watch.readiness,
    )
    served = serving(front, _addresses(base), grace=settings.stop_grace, last=services.dispatch.end_sessions)
    async with AsyncExitStack() as stack:
        for store in services.stores:
            stack.push_async_callback(store.close)
        await stack.enter_async_context(_running(*services.loops, watch.run, renewal.run))
        stack.enter_context(_subscribed(base, services))
        await stack.enter_async_context(services.dispatch.running())
        admin_port = await stack.enter_async_context(admin)
        grpc_port, enroll_port = await stack.enter_async_context(served)
        await watch.look()
        settle()
        started(Ports(grpc=grpc_port, enroll=enroll_port, admin=admin_port))
        await stop.wait()
        watch.stop()


@asynccontextmanager
async def _running(*loops: Callable[[], Coroutine[Any, Any, NoReturn]]) -> AsyncIterator[None]:
    """Own the loops of the process: they run for the length of the block; one that fails ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop()) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@contextmanager
def _subscribed(base: Base, services: Services) -> Iterator[None]:
    with ExitStack() as stack:
        for channel, subscriber in (
            (Channel.EXECUTIONS, services.completions.changed),
            (Channel.ENDS, services.completions.changed),
            (Channel.STARTS, services.completions.started),
            (Channel.AGENTS, services.directory.changed),
            (Channel.AGENTS, services.templates.changed),
            (Channel.QUEUE, services.dispatch.heard_queue),
            (Channel.CANCELS, services.dispatch.heard_cancels),
            (Channel.NODES, services.dispatch.heard_nodes),
            (Channel.KEYSETS, base.keysets.changed),
            (Channel.KEYSETS, services.signer.heard_keysets),
            (Channel.KEYSETS, services.dispatch.heard_keysets),
            (Channel.POLICY, services.policy.heard),
        ):
            stack.enter_context(base.subscriptions.subscribed(channel, subscriber))
        yield


def _addresses(base: Base) -> tuple[Address, Address]:
    files = TlsFiles(
        certificate=base.paths.server_certificate,
        key=base.paths.server_key,
        authority=base.paths.ca_certificate,
    )
    host = base.settings.host
    return (
        Address(
            host=host, port=base.settings.port, credentials=server_credentials(files, require_client=True)
        ),
        # Everything but enrollment is refused here: there is no identity.
        Address(
            host=host,
            port=base.settings.enroll_port,
            credentials=server_credentials(files, require_client=False),
        ),
    )


async def serve(settings: ControlSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises as `run`."""
    stop = asyncio.Event()
    with stop_signals(stop.set):
        await run(settings, stop=stop, started=_log_start)
    logger.info("control plane stopped")


def _log_start(ports: Ports) -> None:
    logger.info("control plane serves", grpc=ports.grpc, enroll=ports.enroll, admin=ports.admin)

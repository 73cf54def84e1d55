"""Composition root of the gateway: settings → channel → routes → server, and their end. Holds no rule."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from control_plane.access.rules import RULES
from control_plane.gateway.api import Api
from control_plane.gateway.app import Front, build_app
from control_plane.gateway.calls import ControlPlane, open_channel
from control_plane.gateway.handlers import Bounds, Handlers
from control_plane.gateway.metrics import GatewayMetrics
from control_plane.gateway.public_log import PublicLog
from control_plane.gateway.server import Listen, serving
from control_plane.gateway.settings import GatewaySettings
from shared.admin_http import admin_server
from shared.clock import SystemClock, SystemRandom
from shared.logs import get_logger
from shared.rpc.tls import read_certificates, server_only_channel_credentials
from shared.runtime import settle, stop_signals
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import Tracer

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a running gateway listens on."""

    http: int
    admin: int


async def run(settings: GatewaySettings, *, stop: asyncio.Event, started: Callable[[Ports], None]) -> None:
    """Serve until `stop` is set, then stop gracefully. `started` is called once everything listens.

    Raises:
        NotFoundError, KeyFileModeError, KeyFormatError: A certificate or key is missing or not usable.
        PortInUseError: An address is taken.
    """
    api = Api.of_contract()
    closing = asyncio.Event()
    registry = CollectorRegistry()
    credentials = server_only_channel_credentials(read_certificates(settings.authority_file))
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(_tracing(settings, registry))
        channel = open_channel(settings.control_plane, credentials, api.routes)
        stack.push_async_callback(channel.close, None)
        control_plane = ControlPlane(
            channel=channel,
            routes=api.routes,
            deadlines=api.deadlines,
            name=settings.name,
            max_calls=settings.max_calls,
            clock=SystemClock(),
        )
        metrics = GatewayMetrics(registry)
        if settings.certificate is not None:
            metrics.watch_certificate(settings.certificate, SystemClock())
        app = _application(settings, api, control_plane, closing, metrics, tracer)
        admin_port = await stack.enter_async_context(
            admin_server(
                host=settings.admin_host,
                port=settings.admin_port,
                registry=registry,
                readiness=control_plane.readiness,
            )
        )
        port = await stack.enter_async_context(serving(app, _listen(settings)))
        # First of all at the end: streams say nothing more, and their readers connect to another gateway.
        stack.callback(closing.set)
        settle()
        started(Ports(http=port, admin=admin_port))
        await stop.wait()


def _application(
    settings: GatewaySettings,
    api: Api,
    control_plane: ControlPlane,
    closing: asyncio.Event,
    metrics: GatewayMetrics,
    tracer: Tracer,
) -> ASGIApp:
    bounds = Bounds(
        json_bytes=settings.max_json_bytes,
        upload_bytes=settings.max_upload_bytes,
        streams=settings.max_streams,
        read_timeout=settings.read_timeout,
        heartbeat_every=settings.heartbeat_every,
    )
    handlers = Handlers(control_plane=control_plane, bounds=bounds, deadlines=api.deadlines, closing=closing)
    public = PublicLog(control_plane=control_plane, routes=api.routes, clock=SystemClock())
    return Front(
        build_app([*api.served_by(handlers), *public.served()], api.document(RULES)),
        metrics=metrics,
        max_requests=settings.max_requests,
        write_timeout=settings.write_timeout,
        tracer=tracer,
    )


def _tracing(settings: GatewaySettings, registry: CollectorRegistry) -> AbstractAsyncContextManager[Tracer]:
    return tracing(
        TraceOptions(
            endpoint=settings.otlp_endpoint,
            authority=settings.otlp_ca_file,
            ratio=settings.trace_ratio,
            max_per_second=settings.trace_max_per_s,
        ),
        service="agentfactory-gateway",
        instance=settings.name,
        registry=registry,
        clock=SystemClock(),
        random=SystemRandom(),
    )


def _listen(settings: GatewaySettings) -> Listen:
    return Listen(
        host=settings.host,
        port=settings.port,
        certificate=settings.certificate,
        key=settings.key,
        max_head_bytes=settings.max_head_bytes,
        max_connections=settings.max_connections,
        head_timeout=settings.head_timeout,
        stop_grace=settings.stop_grace,
    )


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises as `run`."""
    stop = asyncio.Event()
    with stop_signals(stop.set):
        await run(settings, stop=stop, started=_log_start)
    logger.info("gateway stopped")


def _log_start(ports: Ports) -> None:
    logger.info("gateway serves", http=ports.http, admin=ports.admin)

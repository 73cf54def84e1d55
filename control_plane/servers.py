"""The gRPC servers of one replica: what they listen on, health, reflection, and how they stop.

Knows no service: the composition root registers them.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from shared.errors import PortInUseError
from shared.rpc.channel import SERVER_OPTIONS
from shared.rpc.identity import Gatekeeper
from shared.rpc.inflight import MAX_CONCURRENT_RPCS, RpcBounds
from shared.rpc.server import Guard, RpcObserver
from shared.rpc.turns import Turns

SERVICES: Final = tuple(
    f"agentfactory.v1.{name}"
    for name in (
        "TemplateService",
        "AgentService",
        "ExecutionService",
        "NodeService",
        "CompileService",
        "FleetService",
        "StopService",
        "AuditService",
        "AccessService",
        "KeyService",
        "PolicyService",
        "ReplayService",
        "EngineService",
    )
)

Register = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What one server listens on."""

    host: str
    port: int
    credentials: grpc.ServerCredentials


class Front:
    """All servers of a replica, as one thing to start, ask and stop."""

    def __init__(
        self, *, gatekeeper: Gatekeeper, observer: RpcObserver, turns: Turns, register: Register
    ) -> None:
        self._gatekeeper = gatekeeper
        self._observer = observer
        self._turns = turns
        self._register = register
        self._health = health.aio.HealthServicer()
        self._servers: list[grpc.aio.Server] = []
        self._guards: list[Guard] = []

    async def start(self, addresses: Sequence[Address]) -> list[int]:
        """Listen; returns the ports, in order.

        Raises:
            PortInUseError: An address is taken or not of this machine.
        """
        ports = [self._add(address) for address in addresses]
        for server in self._servers:
            await server.start()
        return ports

    async def report(self, *, serving: bool) -> None:
        """Tell health watchers whether this replica does its work."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in ("", *SERVICES):
            await self._health.set(service, status)

    async def idle(self) -> None:
        """Return when no RPC with a single answer is under way."""
        for guard in self._guards:
            await guard.idle()

    async def stop(self, grace: timedelta) -> None:
        """Refuse new RPCs at once, give those in flight `grace`, then cancel them."""
        await self._health.enter_graceful_shutdown()
        async with asyncio.TaskGroup() as group:
            for server in self._servers:
                group.create_task(_stop(server, grace))

    def _add(self, address: Address) -> int:
        # A guard for each server: it remembers handlers, and every server has its own.
        guard = Guard(
            gatekeeper=self._gatekeeper,
            observer=self._observer,
            bounds=RpcBounds.of(MAX_CONCURRENT_RPCS),
            turns=self._turns,
        )
        server = grpc.aio.server(
            interceptors=[guard], options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS
        )
        services = cast("grpc.aio.Server", _Services(server))
        self._register(services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, services)
        described = reflection.aio.ReflectionServicer(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        )
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(described, services)  # type: ignore[no-untyped-call]
        self._servers.append(server)
        self._guards.append(guard)
        where = f"{address.host}:{address.port}"
        _require_free(address)
        try:
            port = server.add_secure_port(where, address.credentials)
        except RuntimeError as error:
            raise PortInUseError(f"cannot listen on {where} (gRPC)") from error
        if port == 0:
            raise PortInUseError(f"cannot listen on {where} (gRPC)")
        return port


class _Services:
    """What generated code adds services to: the server, but none of their methods by name.

    Of methods added by name grpc.aio (1.85) awaits a call of each in one `asyncio.wait`, which every call
    takes down and builds again: with our 86 methods 0.2 ms, as much as all else that it does for a call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Leave it: the generic handlers of the service have the same methods."""


@asynccontextmanager
async def serving(
    front: Front, addresses: Sequence[Address], *, grace: timedelta, last: Callable[[], None]
) -> AsyncIterator[list[int]]:
    """Serve for the length of the block. `last` is called when nobody waits for an answer any more.

    The stop takes `grace` at most: half of it for the answers in flight, then `last` (it ends the sessions of
    nodes, without which those answers would not come), then the rest.
    """
    try:
        yield await front.start(addresses)
    finally:
        await front.report(serving=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(front.stop(grace))
            with suppress(TimeoutError):
                async with asyncio.timeout(grace.total_seconds() / 2):
                    await front.idle()
            last()


async def _stop(server: grpc.aio.Server, grace: timedelta) -> None:
    await server.stop(grace.total_seconds())


def _require_free(address: Address) -> None:
    """Find a taken port before gRPC does, which would say so in a log line of its own."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise PortInUseError(
                f"cannot listen on {address.host}:{address.port} (gRPC): {error.strerror}"
            ) from error

"""Agents as tools over streamable HTTP: a token names each caller, and the control plane judges it.

This process has no rights of its own: it verifies no token by itself, and keeps none.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, cast

import grpc
from agentfactory.v1 import access_pb2
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Route

from cli.client import Client, typed_errors
from cli.mcp_server import Context
from control_plane.gateway.server import Listen, serving
from shared.errors import AgentFactoryError, SettingsError, UnauthenticatedError
from shared.rpc.credentials import MAX_TENANT_CHARS, MAX_TOKEN_CHARS, TENANT, bearer

PATH: Final = "/mcp"
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
MAX_HEAD_BYTES: Final = 16 * 1024
MAX_CONNECTIONS: Final = 256
MAX_SESSIONS: Final = 256
SESSION_IDLE_SECONDS: Final = 600.0
HEAD_TIMEOUT: Final = timedelta(seconds=10)
STOP_GRACE: Final = timedelta(seconds=5)
KNOWN_FOR_SECONDS: Final = 30.0
"""How long a token that was good may open requests unasked; what they do is judged each time."""
MAX_KNOWN: Final = 1024


class _Bearing:
    """A channel whose every call carries the metadata of one caller; many share one connection."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        """Return how calls of this kind (`unary_unary`, `unary_stream` …) are made, as stubs ask for it."""
        make = getattr(self._channel, kind)
        return lambda *args, **options: partial(make(*args, **options), metadata=self._metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class BearerClients:
    """A `ClientSource`: the client of each request is the bearer of that request's token."""

    channel: grpc.aio.Channel
    timeout: float

    def bearing(self, token: str, tenant: str = "") -> Client:
        """Return a client that presents a token with each call."""
        channel = _Bearing(self.channel, bearer(token, tenant))
        return Client(channel=cast("grpc.aio.Channel", channel), timeout=self.timeout)

    @asynccontextmanager
    async def __call__(self, context: Context) -> AsyncIterator[Client]:
        """Act as the request's caller for the time of the context.

        Raises:
            UnauthenticatedError: The request carries no token.
            AgentFactoryError: As the control plane says within.
        """
        headers = context.request.headers if context.request is not None else {}
        scheme, _, token = headers.get("authorization", "").partition(" ")
        tenant = headers.get(TENANT, "")
        if scheme.lower() != "bearer" or not token or len(tenant) > MAX_TENANT_CHARS:
            raise UnauthenticatedError("the request carries no bearer token")
        with typed_errors():
            yield self.bearing(token, tenant)


@dataclass(slots=True, kw_only=True)
class ControlPlaneTokens:
    """Implements the SDK's `TokenVerifier` by asking the control plane whose token it is."""

    clients: BearerClients
    _known: OrderedDict[str, tuple[float, AccessToken]] = field(default_factory=OrderedDict)
    """By the token's digest."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return who presents the token; None: nobody that the control plane knows, or it cannot be asked."""
        if not 0 < len(token) <= MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable():
            return None
        digest = hashlib.sha256(token.encode()).hexdigest()
        known = self._known.get(digest)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        try:
            with typed_errors():
                client = self.clients.bearing(token)
                request = access_pb2.GetCallerIdentityRequest()
                answer = await client.access.GetCallerIdentity(request, timeout=client.timeout)
        except AgentFactoryError:
            return None  # fail closed: nobody else can say whose token it is
        # The session of one caller is not another's, whatever token it shows later.
        found = AccessToken(token=token, client_id=answer.identity, scopes=[], subject=answer.identity)
        self._known[digest] = (time.monotonic() + KNOWN_FOR_SECONDS, found)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpBind:
    """Where the server listens, and under which names it may be called."""

    host: str
    port: int
    names: tuple[str, ...] = ()
    """`host` or `host:port` of Host headers beside loopback's own."""
    origins: tuple[str, ...] = ()
    """Of browsers beside loopback's own."""


def require_loopback(host: str) -> None:
    """Refuse to hand out tokens in clear: TLS is for a proxy in front to end.

    Raises:
        SettingsError: The host is no loopback address.
    """
    try:
        is_loopback = ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise SettingsError(
            f"{host} is no loopback address, and tokens would travel in clear",
            hint="listen on 127.0.0.1 behind a proxy that ends TLS, and name it with --allow-host",
        )


def make_app(server: Server[Any], clients: BearerClients, bind: HttpBind) -> Starlette:
    """Return the application: one path, a bearer token on every request, Host and Origin checked."""
    manager = StreamableHTTPSessionManager(
        app=server,
        security_settings=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=["127.0.0.1:*", "localhost:*", "[::1]:*", *bind.names],
            allowed_origins=["http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*", *bind.origins],
        ),
        session_idle_timeout=SESSION_IDLE_SECONDS,
        max_request_body_size=MAX_REQUEST_BYTES,
        max_sessions=MAX_SESSIONS,
    )
    tokens = ControlPlaneTokens(clients=clients)
    return Starlette(
        routes=[Route(PATH, endpoint=RequireAuthMiddleware(StreamableHTTPASGIApp(manager), []))],
        middleware=[Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(tokens))],
        lifespan=lambda _: manager.run(),
    )


@asynccontextmanager
async def http_server(server: Server[Any], clients: BearerClients, bind: HttpBind) -> AsyncIterator[str]:
    """Serve for the time of the context; yields the URL.

    Raises:
        SettingsError: The host is no loopback address.
        PortInUseError: The address is taken.
    """
    require_loopback(bind.host)
    app = make_app(server, clients, bind)
    listen = Listen(
        host=bind.host,
        port=bind.port,
        certificate=None,
        key=None,
        max_head_bytes=MAX_HEAD_BYTES,
        max_connections=MAX_CONNECTIONS,
        head_timeout=HEAD_TIMEOUT,
        stop_grace=STOP_GRACE,
    )
    async with app.router.lifespan_context(app), serving(app, listen) as port:
        host = f"[{bind.host}]" if ":" in bind.host else bind.host
        yield f"http://{host}:{port}{PATH}"

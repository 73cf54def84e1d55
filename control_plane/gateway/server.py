"""The HTTP server: uvicorn with h11, told when to stop, with the bounds on slow and many peers that it lacks.

Knows no route.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from shared.errors import AgentFactoryError, KeyFormatError, NotFoundError, PortInUseError
from shared.key_files import read_secret_file
from shared.logs import get_logger

logger = get_logger(__name__)

KEEP_ALIVE: Final = timedelta(seconds=30)
"""How long a connection may be without a request."""

LINGER: Final = timedelta(seconds=2)
"""How long a body that was refused is read on, so that its sender gets to read the answer."""

BACKLOG: Final = 1024
DEFAULT_HEAD_BYTES: Final = 16 * 1024
MAX_KEY_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """What the server listens on, and what it bears."""

    host: str
    port: int
    certificate: Path | None
    key: Path | None
    max_head_bytes: int
    max_connections: int
    head_timeout: timedelta
    stop_grace: timedelta


@asynccontextmanager
async def serving(app: ASGIApp, listen: Listen) -> AsyncIterator[int]:
    """Serve for the length of the block; yields the port. Its end waits `stop_grace` for requests under way.

    Raises:
        PortInUseError: The address is taken or not of this machine.
        NotFoundError, KeyFileModeError, KeyFormatError: Certificate or key is missing or not usable.
    """
    bound = _bound(listen)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it tells each step, in sentences of its own
    config = uvicorn.Config(
        app,
        http=_protocol(listen.head_timeout),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=listen.max_connections,
        h11_max_incomplete_event_size=listen.max_head_bytes,
        timeout_keep_alive=int(KEEP_ALIVE.total_seconds()),
        timeout_graceful_shutdown=int(listen.stop_grace.total_seconds()),
    )
    config.load()
    config.ssl = (
        following_context(listen.certificate, listen.key) if listen.certificate and listen.key else None
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        await server.ready.wait()
        yield int(bound.getsockname()[1])
    finally:
        server.should_exit = True
        await task


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return what HTTPS is served with: TLS 1.2 and later.

    Raises:
        NotFoundError: A file is missing.
        KeyFileModeError: The key may be read by others.
        KeyFormatError: They do not decode, or do not belong together.
    """
    read_secret_file(key, max_bytes=MAX_KEY_BYTES)
    if not certificate.is_file():
        raise NotFoundError(f"there is no certificate at {certificate}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise KeyFormatError(f"{certificate} and {key} are not usable together: {error.reason}") from error
    return context


def following_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return like `tls_context` what follows the files: a rotated certificate serves the next handshake.

    Raises:
        NotFoundError, KeyFileModeError, KeyFormatError: As `tls_context`, of what is there now.
    """
    first = tls_context(certificate, key)
    files = _Followed(certificate, key, first)
    # Called at every handshake, also where the client names no server.
    first.sni_callback = files.hand_over
    return first


class _Followed:
    """A certificate and its key on disk, and the context made of what they last were."""

    def __init__(self, certificate: Path, key: Path, context: ssl.SSLContext) -> None:
        self._files = (certificate, key)
        self._context = context
        self._stamp = self._stamps()

    def hand_over(self, handshake: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        """Let a handshake go on with the newest usable files."""
        try:
            stamp = self._stamps()
            if stamp != self._stamp:
                self._context = tls_context(*self._files)
                self._stamp = stamp
                logger.info("rotated certificate loaded", certificate=str(self._files[0]))
        except (OSError, AgentFactoryError) as error:
            # Half-written or broken files must not end a server whose certificate still works.
            logger.warning(
                "rotated certificate not loaded", certificate=str(self._files[0]), error=str(error)
            )
        handshake.context = self._context

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        return tuple((found.st_ino, found.st_mtime_ns) for found in (path.stat() for path in self._files))


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class _BoundedHeads(h11.Connection):
    """Bounds whole heads too: h11 looks at the length of those only that came in several pieces."""

    def __init__(self, role: type[h11.SERVER], max_head_bytes: int | None) -> None:
        self._most = max_head_bytes or DEFAULT_HEAD_BYTES
        super().__init__(role, self._most)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request) and _head_bytes(event) > self._most:
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        return event


def _head_bytes(head: h11.Request) -> int:
    lines = sum(len(name) + len(value) + len(": \r\n") for name, value in head.headers.raw_items())
    return len(head.method) + len(head.target) + len("  HTTP/1.1\r\n\r\n") + lines


def _protocol(head_timeout: timedelta) -> type["_Patient"]:
    # uvicorn makes its protocols of the class alone.
    return type("Protocol", (_Patient,), {"head_timeout": head_timeout})


class _Patient(H11Protocol):
    """Gives the head of a request, and the rest of a refused body, a bound in time."""

    head_timeout: ClassVar[timedelta]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _BoundedHeads(h11.SERVER, self.config.h11_max_incomplete_event_size)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for(self.head_timeout)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_wait()
        elif self._timer is None and not self.transport.is_closing():
            self._wait_for(self.head_timeout)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._wait_for(LINGER)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def _wait_for(self, time: timedelta) -> None:
        self._end_wait()
        self._timer = self.loop.call_later(time.total_seconds(), self.transport.abort)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _bound(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    # Named TCP, because asyncio turns Nagle's algorithm off only then: without it each answer waits 40 ms.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((listen.host, listen.port))
    except OSError as error:
        found.close()
        if error.errno not in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}:
            raise
        raise PortInUseError(f"cannot listen on {listen.host}:{listen.port}: {error.strerror}") from error
    return found

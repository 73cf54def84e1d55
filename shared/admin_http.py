"""The small HTTP server beside every process: `/metrics`, `/healthz`, `/readyz`. Plain asyncio, GET only.

Serves numbers and yes or no; nothing that acts, and nothing that names a caller's data. Alive means that this
loop runs; ready is what the process says.
"""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from shared.errors import PortInUseError

MAX_REQUEST_BYTES: Final = 8 * 1024
MAX_CONNECTIONS: Final = 64
REQUEST_TIMEOUT: Final = timedelta(seconds=5)
"""For one whole connection: a request, its answer, the end."""

READINESS_TIMEOUT: Final = timedelta(seconds=2)

_TEXT: Final = "text/plain; charset=utf-8"
_PHRASES: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a process can do its work now, and if not, why (one line, shown to whoever asks)."""

    ready: bool
    detail: str = ""


ReadinessCheck = Callable[[], Awaitable[Readiness]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _TEXT


@asynccontextmanager
async def admin_server(
    *, host: str, port: int, registry: CollectorRegistry, readiness: ReadinessCheck
) -> AsyncIterator[int]:
    """Serve until the context ends; yields the port that is listened on (of use when `port` is 0).

    Raises:
        PortInUseError: The address is taken or not of this machine.
    """
    handler = _Handler(registry, readiness)
    try:
        server = await asyncio.start_server(handler.serve, host, port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EADDRNOTAVAIL}:
            raise
        raise PortInUseError(f"cannot listen on {host}:{port} (admin HTTP): {error.strerror}") from error
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        handler.close()
        await server.wait_closed()


class _Handler:
    def __init__(self, registry: CollectorRegistry, readiness: ReadinessCheck) -> None:
        self._registry = registry
        self._readiness = readiness
        self._open: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        for writer in tuple(self._open):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            # A slow or silent peer ends here, a vanished one in the write.
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(REQUEST_TIMEOUT.total_seconds()):
                    await self._answer_one(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            answer, with_body = _Answer(status=400, body=b"request too large\n"), True
        else:
            method, _, rest = head.partition(b" ")
            path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
            answer = await self._answer(method, path, takes_openmetrics=_takes_openmetrics(head))
            with_body = method != b"HEAD"
        lines = (
            f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        )
        writer.write("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + (answer.body if with_body else b""))
        await writer.drain()

    async def _answer(self, method: bytes, path: bytes, *, takes_openmetrics: bool) -> _Answer:
        if method not in {b"GET", b"HEAD"}:
            return _Answer(status=405, body=b"only GET and HEAD\n")
        match path:
            case b"/healthz":
                return _Answer(status=200, body=b"ok\n")
            case b"/readyz":
                return await self._ready()
            case b"/metrics":
                return _metrics(self._registry, takes_openmetrics=takes_openmetrics)
            case _:
                return _Answer(status=404, body=b"not found: /metrics /healthz /readyz\n")

    async def _ready(self) -> _Answer:
        try:
            async with asyncio.timeout(READINESS_TIMEOUT.total_seconds()):
                state = await self._readiness()
        except TimeoutError:
            return _Answer(status=503, body=b"not ready: the readiness check timed out\n")
        if state.ready:
            return _Answer(status=200, body=b"ready\n")
        return _Answer(status=503, body=f"not ready: {state.detail}\n".encode())


def _metrics(registry: CollectorRegistry, *, takes_openmetrics: bool) -> _Answer:
    """Return the numbers; in the one form that has room for exemplars, if the reader knows it."""
    if takes_openmetrics:
        body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        content_type = openmetrics.CONTENT_TYPE_LATEST
    else:
        body = exposition.generate_latest(registry)
        content_type = exposition.CONTENT_TYPE_LATEST
    return _Answer(status=200, body=body, content_type=content_type)


def _takes_openmetrics(head: bytes) -> bool:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"accept":
            kinds = {kind.split(b";")[0].strip().lower() for kind in value.split(b",")}
            if b"application/openmetrics-text" in kinds:
                return True
    return False

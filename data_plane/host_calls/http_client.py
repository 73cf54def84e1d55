"""One HTTP/1.1 exchange over a connection to a given address; h11 does the protocol. Keeps nothing after it.

Has no proxy, cookie, cache, redirect or decompression: what is not there cannot be turned on by an
environment variable or a server.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import h11

from data_plane.host_calls.domain import Refusal, refused
from data_plane.host_calls.ports import HttpRequest, HttpResponse
from shared.urls import IpAddress, Url

READ_BYTES: Final = 64 * 1024
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_INTERIM_RESPONSES: Final = 8
USER_AGENT: Final = "agentfactory"


class DirectHttp:
    """Implements `HttpTransport`."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls

    async def exchange(
        self, request: HttpRequest, addresses: tuple[IpAddress, ...], *, max_body_bytes: int
    ) -> HttpResponse:
        """See `HttpTransport.exchange`."""
        async with self._connection(request.url, addresses) as (reader, writer):
            try:
                return await _exchange(request, reader, writer, max_body_bytes)
            except h11.ProtocolError as error:
                raise refused(Refusal.HTTP_INVALID, f"not HTTP as it must be: {error}") from error
            except OSError as error:
                raise refused(Refusal.CONNECT_FAILED, "the connection broke") from error

    @asynccontextmanager
    async def _connection(
        self, url: Url, addresses: tuple[IpAddress, ...]
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await self._connect(url, addresses)
        try:
            yield reader, writer
        finally:
            # At once: a peer that does not answer the farewell must not keep the call.
            writer.transport.abort()

    async def _connect(
        self, url: Url, addresses: tuple[IpAddress, ...]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    str(address),
                    url.port,
                    limit=READ_BYTES,
                    ssl=self._tls if url.scheme == "https" else None,
                    server_hostname=url.host if url.scheme == "https" else None,
                )
            except ssl.SSLError as error:
                detail = getattr(error, "verify_message", "") or error.reason or "handshake failed"
                raise refused(Refusal.TLS_FAILED, f"{url.host}: {detail}") from error
            except OSError:
                continue
        raise refused(Refusal.CONNECT_FAILED, f"no connection to {url.host} port {url.port}")


def make_tls(ca_file: str | None) -> ssl.SSLContext:
    """Return the client's side of TLS: the system's roots, or those of `ca_file` alone.

    Raises:
        OSError: The file cannot be read, or holds no certificates.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _exchange(
    request: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_body_bytes: int
) -> HttpResponse:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
    for event in _request_events(request):
        data = connection.send(event)
        if data:
            writer.write(data)
    # A server may answer before it has read all: reading must not wait for writing.
    sending = asyncio.create_task(_drain(writer))
    try:
        return await _response(connection, reader, max_body_bytes)
    finally:
        sending.cancel()
        await asyncio.wait([sending])


async def _drain(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.drain()
    except OSError:
        return  # whoever reads learns more


def _request_events(request: HttpRequest) -> list[h11.Event]:
    headers = [
        ("Host", request.url.authority),
        ("User-Agent", USER_AGENT),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        *request.headers,
    ]
    if request.body or request.method not in {"GET", "HEAD", "DELETE", "OPTIONS"}:
        headers.append(("Content-Length", str(len(request.body))))
    events: list[h11.Event] = [h11.Request(method=request.method, target=request.url.target, headers=headers)]
    if request.body:
        events.append(h11.Data(data=request.body))
    return [*events, h11.EndOfMessage()]


async def _response(
    connection: h11.Connection, reader: asyncio.StreamReader, max_body_bytes: int
) -> HttpResponse:
    head: h11.Response | None = None
    body = bytearray()
    interim = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.InformationalResponse):
            interim += 1
            if interim > MAX_INTERIM_RESPONSES:
                raise refused(Refusal.HTTP_INVALID, f"more than {MAX_INTERIM_RESPONSES} interim responses")
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_body_bytes:
                raise refused(Refusal.RESPONSE_TOO_LARGE, f"the body has more than {max_body_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return HttpResponse(status=head.status_code, headers=_headers(head), body=bytes(body))
        else:
            raise refused(Refusal.HTTP_INVALID, "the connection ended without a response")


def _headers(head: h11.Response) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers)

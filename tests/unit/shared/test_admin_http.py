"""The admin server over a loopback socket: it is its own adapter, and a socket is its only door."""

import asyncio
import contextlib

import pytest
from prometheus_client import CollectorRegistry, Counter

from shared import admin_http
from shared.admin_http import Readiness, admin_server
from shared.errors import PortInUseError

LIMIT_SECONDS = 30


class Ready:
    def __init__(self) -> None:
        self.state = Readiness(ready=True)
        self.hang = False

    async def __call__(self) -> Readiness:
        if self.hang:
            await asyncio.Event().wait()
        return self.state


@pytest.fixture
def readiness():
    return Ready()


@pytest.fixture
async def port(readiness):
    registry = CollectorRegistry()
    Counter("af_orders", "orders", registry=registry).inc(3)
    async with admin_server(host="127.0.0.1", port=0, registry=registry, readiness=readiness) as port:
        yield port


async def send(port: int, request: bytes) -> bytes:
    async with asyncio.timeout(LIMIT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


async def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    answer = await send(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def test_metrics_health_and_readiness(port):
    status, body = await get(port, "/metrics")
    assert status == 200
    assert b"af_orders_total 3.0" in body
    assert await get(port, "/healthz") == (200, b"ok\n")
    assert await get(port, "/readyz?verbose") == (200, b"ready\n")
    assert await get(port, "/healthz", "HEAD") == (200, b"")


async def test_process_that_is_alive_but_not_ready_says_why(port, readiness):
    readiness.state = Readiness(ready=False, detail="database is away")
    assert await get(port, "/readyz") == (503, b"not ready: database is away\n")
    assert (await get(port, "/healthz"))[0] == 200


async def test_readiness_that_hangs_is_not_ready(port, readiness, monkeypatch):
    monkeypatch.setattr(admin_http, "READINESS_TIMEOUT", admin_http.timedelta(milliseconds=20))
    readiness.hang = True
    status, body = await get(port, "/readyz")
    assert status == 503
    assert b"timed out" in body


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/", "GET", 404), ("/metrics/../x", "GET", 404), ("/metrics", "POST", 405)],
)
async def test_everything_else_is_refused(port, path, method, status):
    assert (await get(port, path, method))[0] == status


async def test_request_beyond_its_bound_is_refused(port):
    answer = await send(port, b"GET /" + b"a" * 20_000)
    assert answer.startswith(b"HTTP/1.1 400") or answer == b""


async def test_silent_peer_is_dropped_after_the_timeout(port, monkeypatch):
    monkeypatch.setattr(admin_http, "REQUEST_TIMEOUT", admin_http.timedelta(milliseconds=20))
    assert await send(port, b"GET /metr") == b""


async def test_connections_beyond_the_bound_are_dropped(port, monkeypatch):
    monkeypatch.setattr(admin_http, "MAX_CONNECTIONS", 1)
    async with asyncio.timeout(LIMIT_SECONDS):
        _, first = await asyncio.open_connection("127.0.0.1", port)
        try:
            first.write(b"GET /healthz HTTP/1.1\r\n")
            await first.drain()
            with pytest.raises((ConnectionError, ValueError, IndexError)):
                await get(port, "/healthz")
        finally:
            first.close()


async def test_taken_port_is_one_typed_error(port, readiness):
    with pytest.raises(PortInUseError, match=f"127.0.0.1:{port}"):
        async with admin_server(
            host="127.0.0.1", port=port, registry=CollectorRegistry(), readiness=readiness
        ):
            pass


async def test_open_connection_does_not_hold_the_stop_up(readiness):
    async with asyncio.timeout(LIMIT_SECONDS):
        async with admin_server(
            host="127.0.0.1", port=0, registry=CollectorRegistry(), readiness=readiness
        ) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /hea")
            await writer.drain()
            await get(port, "/healthz")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

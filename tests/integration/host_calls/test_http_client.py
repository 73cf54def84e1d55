"""The HTTP transport against servers that do what they should not, over real sockets."""

import asyncio
import socket
import ssl
import threading
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trustme

from data_plane.host_calls.addresses import parse_networks
from data_plane.host_calls.http_client import MAX_HEADER_BYTES, DirectHttp, make_tls
from data_plane.host_calls.http_fetch import AllowedHttp, HttpPolicy
from data_plane.host_calls.ports import HttpRequest
from data_plane.host_calls.resolver import MAX_LOOKUPS, SystemResolver
from shared.errors import HostCallRefusedError
from shared.manifest import Capabilities
from shared.urls import parse_url
from tests.fakes.host_calls import FakeResolver, WatchedTransport
from tests.unit.data_plane.host_calls.builders import World, get

LOOPBACK = ip_address("127.0.0.1")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: x\r\n\r\nhello"
SOON = 0.2


class Server:
    """Answers every connection with the same script: bytes, or seconds to wait."""

    def __init__(self, *script: bytes | float) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)  # fmt: skip
            self.requests.append(head + await reader.readexactly(length))
            for step in self.script:
                if isinstance(step, bytes):
                    writer.write(step)
                    await writer.drain()
                else:
                    await asyncio.sleep(step)
        except OSError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None):
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority, tmp_path) -> DirectHttp:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return DirectHttp(make_tls(str(tmp_path / "ca.pem")))


PLAIN = DirectHttp(ssl.create_default_context())


async def exchange(
    server: Server,
    *,
    http: DirectHttp = PLAIN,
    bound: int = 1000,
    url: str = "http://api.test:{}/x",
    **changes,
):
    request = HttpRequest(
        **{"method": "GET", "url": parse_url(url.format(server.port)), "headers": ()} | changes
    )
    return await http.exchange(request, (LOOPBACK,), max_body_bytes=bound)


async def refusal(server: Server, **changes) -> str:
    with pytest.raises(HostCallRefusedError) as error:
        await exchange(server, **changes)
    return error.value.refusal


async def test_exchange():
    async with Server(OK).listening() as server:
        response = await exchange(server, method="POST", headers=(("x-a", "b"),), body=b"body")
    assert (response.status, response.body) == (200, b"hello")
    (sent,) = server.requests
    assert sent.startswith(f"POST /x HTTP/1.1\r\nHost: api.test:{server.port}\r\n".encode())
    assert sent.endswith(b"\r\n\r\nbody")
    assert b"Accept-Encoding: identity\r\n" in sent
    assert b"Connection: close\r\n" in sent
    assert b"x-a: b\r\n" in sent


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",  # until the connection ends
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK,
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
    ],
)
async def test_forms_of_a_response(answer):
    async with Server(answer).listening() as server:
        assert (await exchange(server)).body == b"hello"


async def test_response_to_head_has_no_body():
    async with Server(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n").listening() as server:
        assert (await exchange(server, method="HEAD")).body == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 20 + OK,
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 2 * MAX_HEADER_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_HEADER_BYTES // 4),
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_what_is_no_response(answer):
    async with Server(answer).listening() as server:
        assert await refusal(server) == "HTTP_INVALID"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n" + bytes(100_000),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + bytes(1024) + b"\r\n",
    ],
)
async def test_body_above_the_bound_is_cut_off(answer):
    async with Server(answer, 30.0).listening() as server, asyncio.timeout(5):
        assert await refusal(server, bound=1000) == "RESPONSE_TOO_LARGE"


async def test_body_of_the_bound():
    async with Server(OK).listening() as server:
        assert (await exchange(server, bound=5)).body == b"hello"
        assert await refusal(server, bound=4) == "RESPONSE_TOO_LARGE"


async def test_server_that_answers_before_it_reads():
    async def answer(_reader, writer):
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(SOON)
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    server = Server()
    server.port = listener.sockets[0].getsockname()[1]
    try:
        assert (await exchange(server, method="POST", body=bytes(8 << 20))).status == 413
    finally:
        listener.close()


async def test_nobody_listens():
    async with Server().listening() as server:
        pass
    await asyncio.sleep(0)
    assert await refusal(server) == "CONNECT_FAILED"


def slow(server: Server, **changes) -> World:
    """A run that may call the server, which is at a named private address."""
    url = f"http://api.test:{server.port}/"
    policy = HttpPolicy(allowed=(AllowedHttp.parse(f"* {url}"),), networks=parse_networks(["127.0.0.0/8"]))
    capability = get(url, addresses=("127.0.0.1/32",))
    transport = WatchedTransport(PLAIN)
    return World(
        capabilities=Capabilities(http=(capability,)),
        policy=policy,
        transport=transport,
        resolver=FakeResolver(api_test="127.0.0.1"),
        **changes,
    )


_DRIP = [item for _ in range(100) for item in (b"x", 0.02)]


@pytest.mark.parametrize(
    "script",
    [
        (30.0,),
        (b"HTTP/1.1 200 OK\r\nX: ", *_DRIP),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *_DRIP),
        (b"HTTP/1.1 200 OK\r\n\r\n", *_DRIP),
    ],
    ids=["silence", "slow header", "slow body", "slow body without a length"],
)
async def test_slow_loris_ends_at_the_deadline_of_the_whole_call(script):
    async with Server(*script).listening() as server, asyncio.timeout(5):
        world = slow(server)
        started = asyncio.get_running_loop().time()
        assert await world.fetch_refused(f"http://api.test:{server.port}/", timeout_ms=300) == "TIMEOUT"
        assert asyncio.get_running_loop().time() - started < 2


async def test_redirect_to_loopback_by_another_name_connects_to_nothing():
    async with Server(OK).listening() as inner:
        target = f"http://127.0.0.1:{inner.port}/"
        async with Server(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()).listening() as server:  # fmt: skip
            world = slow(server)
            assert await world.fetch_refused(f"http://api.test:{server.port}/") == "NOT_GRANTED"
        assert inner.connections == 0
        assert len(world.transport.tried) == 1


async def test_forbidden_address_is_not_connected_to():
    async with Server(OK).listening() as server:
        url = f"http://api.test:{server.port}/"
        world = World(
            capabilities=Capabilities(http=(get(url),)),
            policy=HttpPolicy(allowed=(AllowedHttp.parse(f"* {url}"),)),
            transport=WatchedTransport(PLAIN),
            resolver=FakeResolver(api_test="127.0.0.1"),
        )
        assert await world.fetch_refused(url) == "ADDRESS_FORBIDDEN"
    assert (server.connections, world.transport.tried) == (0, [])


async def test_proxy_of_the_environment_is_not_asked(monkeypatch):
    async with Server(OK).listening() as proxy, Server(OK).listening() as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await exchange(server)
        assert (proxy.connections, server.connections) == (0, 1)


def server_side(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_tls_is_checked_by_the_name_though_the_connection_is_to_an_address(authority, trusting):
    names = []
    tls = server_side(authority, "api.test")
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    async with Server(OK).listening(tls) as server:
        response = await exchange(server, http=trusting, url="https://api.test:{}/")
    assert (response.body, names) == (b"hello", ["api.test"])


async def test_certificate_of_another_name(authority, trusting):
    async with Server(OK).listening(server_side(authority, "other.test")) as server:
        assert await refusal(server, http=trusting, url="https://api.test:{}/") == "TLS_FAILED"
    assert server.requests == []


async def test_certificate_that_nobody_here_trusts(trusting):
    async with Server(OK).listening(server_side(trustme.CA(), "api.test")) as server:
        assert await refusal(server, http=trusting, url="https://api.test:{}/") == "TLS_FAILED"
    assert server.requests == []


async def test_plain_server_where_tls_is_due(trusting):
    async with Server(OK).listening() as server, asyncio.timeout(5):
        # It waits for a request that never comes as text.
        with pytest.raises((HostCallRefusedError, TimeoutError)):
            async with asyncio.timeout(SOON):
                await exchange(server, http=trusting, url="https://api.test:{}/")
    assert server.requests == []


async def test_system_resolver():
    resolver = SystemResolver()
    try:
        assert LOOPBACK in await resolver.resolve("localhost")
        with pytest.raises(HostCallRefusedError) as error:
            await resolver.resolve("nobody.invalid")
        assert error.value.refusal == "NAME_NOT_RESOLVED"
    finally:
        resolver.close()


async def test_slow_name_takes_one_thread_however_often_it_is_asked_for(monkeypatch):
    answer, asked = threading.Event(), []

    def getaddrinfo(host, *_, **__):
        asked.append(host)
        if host == "slow.test":
            answer.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))]

    monkeypatch.setattr("data_plane.host_calls.resolver.socket.getaddrinfo", getaddrinfo)
    resolver = SystemResolver()
    try:
        for _ in range(2 * MAX_LOOKUPS):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(resolver.resolve("slow.test"), 0.001)
        async with asyncio.timeout(5):
            assert await resolver.resolve("quick.test") == (ip_address("93.184.216.34"),)
            answer.set()
            assert await resolver.resolve("slow.test")
        assert asked.count("slow.test") <= 2
    finally:
        answer.set()
        resolver.close()

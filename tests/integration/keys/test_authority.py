"""Rotation of the authority that issues certificates: no handshake is refused that should not be."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from control_plane.installation import authorities, files
from control_plane.installation.authorities import InstallationAuthority, pinned_pem, rotate_authority
from control_plane.keys.ca import chain_pem, make_csr, new_private_key, private_key_pem
from shared.clock import SystemClock
from shared.errors import InvalidInputError, WrongStateError
from shared.ids import InstallationId
from shared.paths import InstallationPaths
from shared.rpc.tls import TlsFiles, server_credentials
from shared.trust import read_trust
from tests.fakes.clock import FakeClock

LOCAL = InstallationId("local")
NODE = "spiffe://local/node/nod_1"
DAY = timedelta(days=1)
LIMIT = 20.0


class Installation:
    """One data folder, and what its processes do with it."""

    def __init__(self, folder):
        self.paths = InstallationPaths(data_dir=folder)
        self.clock = FakeClock(datetime.now(UTC) - 3 * DAY)
        self.root = files.ensure_keys(self.paths).root.public
        files.ensure_authority(self.paths, LOCAL, self.clock)
        self.authority = InstallationAuthority(self.paths, self.clock)
        files.write_trust(self.paths, LOCAL, self.root, pinned_pem(self.paths))
        self.renew()

    def renew(self):
        """What the control plane's loop does."""
        return files.ensure_server_certificate(
            self.paths, LOCAL, self.authority.of_server(), server_names=("localhost",), clock=self.clock
        )

    def rotate(self, until):
        return rotate_authority(self.paths, LOCAL, self.root, until=until, clock=self.clock)

    def at(self, moment):
        self.clock.advance(moment - self.clock.now())

    async def node(self):
        """Enroll, or renew: the certificate of a node, and what it pins at this moment."""
        key = new_private_key()
        issued = await self.authority.issue(make_csr(key), spiffe_id=NODE, ttl=10 * DAY)
        pinned = read_trust(self.paths.trust).ca_certificate_pem
        return pinned, private_key_pem(key), chain_pem(issued.chain_der)

    @asynccontextmanager
    async def serving(self):
        server = grpc.aio.server()
        servicer = health.aio.HealthServicer()
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        tls = TlsFiles(
            certificate=self.paths.server_certificate,
            key=self.paths.server_key,
            authority=self.paths.ca_certificate,
        )
        port = server.add_secure_port("localhost:0", server_credentials(tls, require_client=True))
        await server.start()
        try:
            yield port
        finally:
            await server.stop(0)


async def gets_in(port, node):
    """Return whether a node gets through a fresh handshake."""
    pinned, key, chain = node
    # Without the pool that all channels of a process share: each handshake is its own.
    options = (("grpc.use_local_subchannel_pool", 1),)
    credentials = grpc.ssl_channel_credentials(pinned, key, chain)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True


def issuer_of(chain):
    return x509.load_pem_x509_certificates(chain)[-1].serial_number


@pytest.fixture
def plane(tmp_path):
    return Installation(tmp_path)


async def test_nodes_of_the_old_authority_keep_working_and_renew_under_the_new_one(plane):
    old = await plane.node()
    async with plane.serving() as port:
        assert await gets_in(port, old)
        plane.rotate(datetime.now(UTC) + 5 * DAY)
        assert not plane.renew(), "the server's certificate changed before nodes could know the new authority"
        renewed = await plane.node()
        assert issuer_of(renewed[2]) != issuer_of(old[2])
        assert await gets_in(port, old)
        # What it pins it was given before: the file in its folder is old.
        assert await gets_in(port, (old[0], *renewed[1:]))
        assert await gets_in(port, renewed)


async def test_the_server_moves_at_half_time_and_who_pins_both_never_notices(plane):
    until = datetime.now(UTC) + DAY
    moved_at = plane.rotate(until)
    assert plane.clock.now() < moved_at < until
    one = await plane.node()
    async with plane.serving() as port:
        plane.at(moved_at - timedelta(seconds=1))
        assert not plane.renew()
        assert await gets_in(port, one)
        plane.at(moved_at)
        assert plane.renew()
        assert await gets_in(port, one)
        assert not plane.renew()


async def test_after_its_end_nothing_of_the_old_authority_counts(plane):
    old = await plane.node()
    moved_at = plane.rotate(datetime.now(UTC) - DAY)
    new = await plane.node()
    plane.at(datetime.now(UTC))
    assert plane.clock.now() > moved_at
    plane.renew()
    async with plane.serving() as port:
        assert not await gets_in(port, (new[0], *old[1:]))
        assert await gets_in(port, new)


async def test_no_handshake_of_a_crowd_is_refused_while_the_authority_changes(plane):
    nodes = [await plane.node() for _ in range(4)]
    refused = done = 0

    async def connect_again_and_again(node):
        nonlocal refused, done
        while not stop.is_set():
            refused += not await gets_in(port, node)
            done += 1

    async with plane.serving() as port:
        stop = asyncio.Event()
        async with asyncio.timeout(3 * LIMIT), asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(connect_again_and_again(node))
            while done < 8:
                await asyncio.sleep(0.01)
            plane.rotate(datetime.now(UTC) + DAY)
            plane.renew()
            before = done
            while done < before + 16:
                await asyncio.sleep(0.01)
            stop.set()
    assert refused == 0


async def test_a_second_rotation_waits_for_the_end_of_the_first(plane):
    plane.rotate(datetime.now(UTC) + DAY)
    with pytest.raises(WrongStateError, match="counts until"):
        plane.rotate(datetime.now(UTC) + 5 * DAY)
    plane.at(datetime.now(UTC) + 2 * DAY)
    plane.rotate(datetime.now(UTC) + 5 * DAY)
    assert len(x509.load_pem_x509_certificates(pinned_pem(plane.paths))) == 2


async def test_the_end_is_in_the_future(plane):
    with pytest.raises(InvalidInputError):
        plane.rotate(plane.clock.now())


@pytest.mark.parametrize("step", ["_next", "_retire", "write_public_file", "write_trust"])
async def test_an_interrupted_rotation_goes_on(plane, monkeypatch, step):
    old = await plane.node()
    target = authorities if hasattr(authorities, step) else files
    real, left = getattr(target, step), 1

    def dies_after(*arguments, **named):
        nonlocal left
        answer = real(*arguments, **named)
        if left:
            left = 0
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(target, step, dies_after)
    until = datetime.now(UTC) + 5 * DAY
    with pytest.raises(KeyboardInterrupt):
        plane.rotate(until)
    assert issuer_of((await plane.node())[2]), "in between it cannot issue"
    plane.rotate(until)
    async with plane.serving() as port:
        assert await gets_in(port, old)
        assert await gets_in(port, await plane.node())
    assert not plane.paths.next_ca_key.exists()


async def test_a_repeated_init_leaves_a_rotation_as_it_is(plane):
    plane.rotate(datetime.now(UTC) + 5 * DAY)
    before = (pinned_pem(plane.paths), plane.paths.server_certificate.read_bytes())
    files.ensure_authority(plane.paths, LOCAL, SystemClock())
    plane.renew()
    assert (pinned_pem(plane.paths), plane.paths.server_certificate.read_bytes()) == before

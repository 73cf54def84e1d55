"""The control plane as a process: what it serves, how it stops, and what it says when it does not start."""

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import grpc
import pytest
from agentfactory.v1 import agents_pb2, agents_pb2_grpc, nodes_pb2, nodes_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cli.local_token import make_token
from control_plane.__main__ import main
from control_plane.installation.domain import InitRequest
from control_plane.main import run
from control_plane.servers import SERVICES
from control_plane.settings import ControlSettings
from control_plane.setup import initialize
from shared.clock import SystemClock
from shared.errors import (
    EnrollmentTokenInvalidError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from shared.ids import InstallationId
from shared.key_files import read_private_key
from shared.local_tokens import TokenRequest, sign_token
from shared.paths import InstallationPaths
from shared.rpc.channel import connect
from shared.rpc.credentials import bearer
from shared.rpc.errors import error_of
from shared.rpc.tls import TlsFiles, channel_credentials, server_only_channel_credentials
from tests.fixtures.postgres import SERVICE

SECONDS = 30
WAIT = timedelta(seconds=SECONDS)


@pytest.fixture
def home(tmp_path, postgres_18):
    """An installation: its data folder and the URL of its database for the service."""
    name = postgres_18.empty_database()
    asyncio.run(initialize(InitRequest(data_dir=tmp_path, owner_database_url=postgres_18.url(name))))
    yield tmp_path, postgres_18.url(name, user=SERVICE)
    postgres_18.drop_database(name)


@pytest.fixture
def environment(home, monkeypatch):
    """The same as variables, for a start by the command line."""
    folder, url = home
    for name, value in {
        "DATA_DIR": folder,
        "DATABASE_URL": url,
        "PORT": 0,
        "ENROLL_PORT": 0,
        "ADMIN_PORT": 0,
    }.items():
        monkeypatch.setenv(f"AF_CONTROL_{name}", str(value))
    return folder


class Running:
    def __init__(self, folder, ports):
        self.paths, self.ports = InstallationPaths(data_dir=folder), ports

    def channel(self):
        files = TlsFiles(
            certificate=self.paths.client_certificate("admin"),
            key=self.paths.client_key("admin"),
            authority=self.paths.ca_certificate,
        )
        return connect(f"localhost:{self.ports.grpc}", channel_credentials(files))

    def stranger(self):
        credentials = server_only_channel_credentials(self.paths.ca_certificate.read_bytes())
        return connect(f"localhost:{self.ports.enroll}", credentials)

    async def http(self, path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports.admin)
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        answer = (await asyncio.wait_for(reader.read(), SECONDS)).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]), body


@asynccontextmanager
async def running(home, **overrides):
    folder, url = home
    settings = ControlSettings(
        data_dir=folder,
        database_url=url,
        port=0,
        enroll_port=0,
        admin_port=0,
        **{"stop_grace": timedelta(seconds=2)} | overrides,
    )
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(run(settings, stop=stop, started=started.set_result))
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
    if serving.done():
        await serving
    try:
        yield Running(folder, started.result())
    finally:
        stop.set()
        await asyncio.wait_for(serving, SECONDS)


async def get_agent(channel, name="nobody", metadata=None):
    try:
        return await agents_pb2_grpc.AgentServiceStub(channel).GetAgent(
            agents_pb2.GetAgentRequest(name=name), timeout=SECONDS, metadata=metadata
        )
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def test_the_admin_of_init_is_served(home):
    async with running(home) as control, control.channel() as channel:
        with pytest.raises(NotFoundError):
            await get_agent(channel)


async def test_the_port_of_enrollment_serves_strangers_nothing_else(home):
    async with running(home) as control, control.stranger() as channel:
        with pytest.raises(UnauthenticatedError):
            await get_agent(channel)
        request = nodes_pb2.EnrollNodeRequest(
            token="x" * 20, csr_der=b"x", receipt_public_key=b"x", receipt_key_proof=b"x" * 64
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await nodes_pb2_grpc.NodeServiceStub(channel).EnrollNode(request, timeout=SECONDS)
    assert isinstance(error_of(caught.value), EnrollmentTokenInvalidError)


async def test_an_admin_is_no_node(home):
    async with running(home) as control, control.channel() as channel:
        call = nodes_pb2_grpc.NodeServiceStub(channel).Session(timeout=SECONDS)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert isinstance(error_of(caught.value), PermissionDeniedError)


async def test_health_and_reflection_name_every_service(home):
    async with running(home) as control, control.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=SECONDS)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await call.read()).list_services_response.service}
    assert set(SERVICES) <= listed


async def test_the_next_call_is_awaited_once_and_not_for_each_method(home):
    """grpc.aio does that for methods added by name, and takes it all down and builds it again with each call."""
    async with running(home) as control, control.channel() as channel:
        with pytest.raises(NotFoundError):
            await get_agent(channel)
        awaiting = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    assert "AioServer._server_main_loop" in awaiting  # or its names have changed and this test sees nothing
    assert not [name for name in awaiting if name.endswith("_request_registered_call")]


async def test_readiness_and_metrics_are_served(home):
    async with running(home) as control, control.channel() as channel:
        with pytest.raises(NotFoundError):
            await get_agent(channel)
        assert await until(control, 200) == (200, "ready\n")
        await eventually_shows(
            control, 'af_rpc_seconds_count{code="NOT_FOUND",method="AgentService/GetAgent"} 1.0'
        )
        status, metrics = await control.http("/metrics")
    assert status == 200
    for name in (
        "af_queue_depth 0.0",
        "af_queue_age_seconds 0.0",
        "af_sessions 0.0",
        "af_slots 0.0",
        "af_lease_expiries_total 0.0",
        'af_stage_seconds_count{stage="accept"}',
    ):
        assert name in metrics


async def eventually_shows(control, line):
    """Wait for a line of the metrics: an RPC is counted after its caller has been answered."""
    async with asyncio.timeout(SECONDS):
        while line not in (await control.http("/metrics"))[1]:
            await asyncio.sleep(0.02)


async def test_a_stopped_postgres_makes_it_not_ready_and_calls_unavailable_until_it_is_back(
    home, postgres_18
):
    async with running(home) as control, control.channel() as channel:
        with pytest.raises(NotFoundError):
            await get_agent(channel)
        await asyncio.to_thread(postgres_18.stop)
        try:
            assert (await until(control, 503))[0] == 503
            with pytest.raises(Exception, match="postgres is not available"):
                await get_agent(channel)
        finally:
            await asyncio.to_thread(postgres_18.start)
        assert (await until(control, 200))[0] == 200
        with pytest.raises(NotFoundError):
            await get_agent(channel)


async def until(control, status):
    """Wait, bounded, for the readiness that the next looks at Postgres bring."""
    async with asyncio.timeout(SECONDS):
        while True:
            answer = await control.http("/readyz")
            if answer[0] == status:
                return answer
            await asyncio.sleep(0.05)


async def test_a_watcher_of_health_hears_of_the_stop_before_the_end(home):
    async with AsyncExitStack() as last:
        async with running(home) as control:
            channel = await last.enter_async_context(control.channel())
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


# --- starts that fail: one line, a code, no traceback


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def test_unknown_setting(environment, monkeypatch, capsys):
    monkeypatch.setenv("AF_CONTROL_PROT", "1")
    assert main([]) == 2
    assert "did you mean AF_CONTROL_PORT?" in one_line(capsys)


def test_missing_setting(environment, monkeypatch, capsys):
    monkeypatch.delenv("AF_CONTROL_DATABASE_URL")
    assert main([]) == 2
    assert "AF_CONTROL_DATABASE_URL" in one_line(capsys)


def test_postgres_that_is_not_there_and_no_password_in_the_line(environment, monkeypatch, capsys):
    monkeypatch.setenv("AF_CONTROL_DATABASE_URL", "postgresql://af:hunter2@127.0.0.1:1/af")
    assert main([]) == 4
    line = one_line(capsys)
    assert "postgres is not available" in line
    assert "hunter2" not in line


def test_database_without_a_schema(environment, monkeypatch, capsys, postgres_18):
    name = postgres_18.empty_database()
    monkeypatch.setenv("AF_CONTROL_DATABASE_URL", postgres_18.url(name))
    assert main([]) == 2
    assert "agentfactory init" in one_line(capsys)


def test_data_folder_without_an_installation(environment, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("AF_CONTROL_DATA_DIR", str(tmp_path / "nowhere"))
    assert main([]) == 2
    assert "agentfactory init" in one_line(capsys)


def test_key_that_others_can_read(environment, capsys):
    InstallationPaths(data_dir=environment).order_key.chmod(0o644)
    assert main([]) == 3
    assert "chmod 600" in one_line(capsys)


def test_key_that_is_none(environment, capsys):
    path = InstallationPaths(data_dir=environment).order_key
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    assert main([]) == 3
    assert "order.key" in one_line(capsys)


def test_order_key_that_no_keyset_lists(environment, capsys):
    from shared.key_files import write_private_key  # noqa: PLC0415
    from tests.fixtures.keys import rsa_key  # noqa: PLC0415

    path = InstallationPaths(data_dir=environment).order_key
    path.unlink()
    write_private_key(path, rsa_key("intruder"))
    assert main([]) == 3
    assert "keyset" in one_line(capsys)


@pytest.mark.parametrize("name", ["PORT", "ENROLL_PORT", "ADMIN_PORT"])
def test_port_in_use(environment, monkeypatch, capsys, name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(f"AF_CONTROL_{name}", str(taken.getsockname()[1]))
        assert main([]) == 4
    assert "cannot listen on" in one_line(capsys)


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out.replace("\n", " ")
    assert caught.value.code == 0
    for name in ControlSettings.model_fields:
        assert name in text


async def test_a_local_token_opens_the_door_without_a_certificate(home):
    token = make_token(InstallationPaths(data_dir=home[0]), subject="admin", life=timedelta(minutes=1))
    async with running(home) as plane, plane.stranger() as channel:
        with pytest.raises(NotFoundError):
            await get_agent(channel, metadata=bearer(token))
        with pytest.raises(NotFoundError):
            await get_agent(channel, metadata=bearer(token, "default"))
        with pytest.raises(PermissionDeniedError, match="'red'"):
            await get_agent(channel, metadata=bearer(token, "red"))
        with pytest.raises(UnauthenticatedError):
            await get_agent(channel, metadata=bearer(token[:-8] + "AAAAAAAA"))


async def test_a_token_of_another_installation_is_nobody_here(home, tmp_path_factory):
    paths = InstallationPaths(data_dir=home[0])
    now = SystemClock().now()
    request = TokenRequest(
        installation=InstallationId("other"), subject="admin", issued_at=now, life=timedelta(minutes=1)
    )
    async with running(home) as plane, plane.stranger() as channel:
        with pytest.raises(UnauthenticatedError):
            await get_agent(channel, metadata=bearer(sign_token(read_private_key(paths.token_key), request)))

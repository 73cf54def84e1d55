"""Calls to the control plane: one mutually authenticated channel, deadlines, typed errors. Prints nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from agentfactory.v1 import (
    access_pb2_grpc,
    agents_pb2_grpc,
    audit_pb2_grpc,
    engines_pb2_grpc,
    executions_pb2_grpc,
    keys_pb2_grpc,
    nodes_pb2_grpc,
    policy_pb2_grpc,
    replay_pb2_grpc,
    stops_pb2_grpc,
    templates_pb2_grpc,
)

from cli.settings import DEFAULT_TARGET, DEFAULT_TLS_TARGET, CliSettings
from cli.state import read_stack
from shared.paths import InstallationPaths
from shared.rpc.channel import connect as open_channel
from shared.rpc.credentials import TENANT, bearer, with_metadata
from shared.rpc.errors import error_of
from shared.rpc.tls import (
    TlsFiles,
    channel_credentials,
    read_authority,
    server_only_channel_credentials,
)

T = TypeVar("T")

CHUNK_BYTES: Final = 512 * 1024
INLINE_BYTES: Final = 64 * 1024
"""Larger bodies travel on a stream of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Stubs of the services that people use, over one channel."""

    channel: grpc.aio.Channel
    timeout: float
    """Seconds; the deadline of a call that is not told otherwise."""

    @property
    def templates(self) -> "templates_pb2_grpc.TemplateServiceAsyncStub":
        return templates_pb2_grpc.TemplateServiceStub(self.channel)

    @property
    def agents(self) -> "agents_pb2_grpc.AgentServiceAsyncStub":
        return agents_pb2_grpc.AgentServiceStub(self.channel)

    @property
    def executions(self) -> "executions_pb2_grpc.ExecutionServiceAsyncStub":
        return executions_pb2_grpc.ExecutionServiceStub(self.channel)

    @property
    def fleet(self) -> "nodes_pb2_grpc.FleetServiceAsyncStub":
        return nodes_pb2_grpc.FleetServiceStub(self.channel)

    @property
    def keys(self) -> "keys_pb2_grpc.KeyServiceAsyncStub":
        return keys_pb2_grpc.KeyServiceStub(self.channel)

    @property
    def policy(self) -> "policy_pb2_grpc.PolicyServiceAsyncStub":
        return policy_pb2_grpc.PolicyServiceStub(self.channel)

    @property
    def stops(self) -> "stops_pb2_grpc.StopServiceAsyncStub":
        return stops_pb2_grpc.StopServiceStub(self.channel)

    @property
    def audit(self) -> "audit_pb2_grpc.AuditServiceAsyncStub":
        return audit_pb2_grpc.AuditServiceStub(self.channel)

    @property
    def replay(self) -> "replay_pb2_grpc.ReplayServiceAsyncStub":
        return replay_pb2_grpc.ReplayServiceStub(self.channel)

    @property
    def engines(self) -> "engines_pb2_grpc.EngineServiceAsyncStub":
        return engines_pb2_grpc.EngineServiceStub(self.channel)

    @property
    def access(self) -> "access_pb2_grpc.AccessServiceAsyncStub":
        return access_pb2_grpc.AccessServiceStub(self.channel)


def tls_files(settings: CliSettings) -> TlsFiles:
    """Return where the client's side of mutual TLS lies in the data folder."""
    paths = InstallationPaths(data_dir=settings.data_dir)
    return TlsFiles(
        certificate=paths.client_certificate(settings.client),
        key=paths.client_key(settings.client),
        authority=paths.ca_certificate,
    )


def target_of(settings: CliSettings) -> str:
    """Return host:port of the control plane: what was asked for, or what runs on this data folder."""
    if settings.target is not None:
        return settings.target
    stack = read_stack(settings.data_dir)
    if settings.token is not None:
        return stack.enroll_target if stack is not None else DEFAULT_TLS_TARGET
    return stack.target if stack is not None else DEFAULT_TARGET


def credentials_of(settings: CliSettings) -> grpc.ChannelCredentials:
    """Return who this client is: the bearer of the token in the settings, else of the certificate.

    Raises:
        NotFoundError: There is no installation in the data folder, or no such client.
        KeyFileModeError: The client's key may be read by others.
    """
    files = tls_files(settings)
    if settings.token is not None:
        metadata = bearer(settings.token.get_secret_value(), settings.tenant)
        return with_metadata(server_only_channel_credentials(read_authority(files)), metadata)
    credentials = channel_credentials(files)
    return with_metadata(credentials, ((TENANT, settings.tenant),)) if settings.tenant else credentials


def open_token_channel(settings: CliSettings) -> grpc.aio.Channel:
    """Return a channel to the port of tokens, on which every call has to name its caller by itself.

    Raises:
        NotFoundError: There is no installation in the data folder.
    """
    stack = read_stack(settings.data_dir)
    found = stack.enroll_target if stack is not None else DEFAULT_TLS_TARGET
    authority = read_authority(tls_files(settings))
    return open_channel(settings.target or found, server_only_channel_credentials(authority))


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise what the control plane refuses within the block as it said it.

    Raises:
        AgentFactoryError: As the control plane said, or UnavailableError when it does not answer.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


@asynccontextmanager
async def connect(settings: CliSettings) -> AsyncIterator[Client]:
    """Open a channel for the time of the context. Errors of calls within it come out typed.

    Raises:
        NotFoundError: There is no installation in the data folder, or no such client.
        KeyFileModeError: The client's key may be read by others.
        AgentFactoryError: As the control plane said, or UnavailableError when it does not answer.
    """
    channel = open_channel(target_of(settings), credentials_of(settings))
    try:
        with typed_errors():
            yield Client(channel=channel, timeout=settings.call_timeout.total_seconds())
    finally:
        await channel.close(grace=None)


def call(settings: CliSettings, use: Callable[[Client], Awaitable[T]]) -> T:
    """Run ``use`` with a client and return what it returns."""

    async def run() -> T:
        async with connect(settings) as client:
            return await use(client)

    return asyncio.run(run())

"""A whole control plane in this process, on a real Postgres, and people who call it with tokens."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
import grpc
from agentfactory.v1 import access_pb2, access_pb2_grpc, nodes_pb2, nodes_pb2_grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cli.local_token import make_token
from control_plane.installation.domain import InitRequest
from control_plane.keys.ca import make_csr, new_private_key, private_key_pem
from control_plane.main import run
from control_plane.nodes.domain import ENROLL_PROOF_DOMAIN
from control_plane.settings import ControlSettings
from control_plane.setup import initialize
from shared.local_tokens import identity_of
from shared.paths import InstallationPaths
from shared.rpc.channel import connect
from shared.rpc.credentials import bearer, with_metadata
from shared.rpc.errors import error_of
from shared.rpc.tls import TlsFiles, channel_credentials, server_only_channel_credentials
from shared.signatures import PrivateKey
from tests.fixtures.postgres import SERVICE

SECONDS = 60
RETRIES = 5
LIFE = timedelta(minutes=10)
Access = access_pb2_grpc.AccessServiceStub


class Plane:
    """One running control plane."""

    def __init__(self, folder, ports, owner_url, bootstrap_secret):
        self.paths, self.ports, self.owner_url = InstallationPaths(data_dir=folder), ports, owner_url
        self.bootstrap_secret = bootstrap_secret

    @property
    def target(self) -> str:
        return f"localhost:{self.ports.enroll}"

    @property
    def authority(self) -> bytes:
        return self.paths.ca_certificate.read_bytes()

    def token(self, name, tenant=""):
        return make_token(self.paths, subject=name, life=LIFE, tenant=tenant)

    def stranger(self) -> grpc.aio.Channel:
        return connect(self.target, server_only_channel_credentials(self.authority))

    def bearer(self, token, tenant="") -> grpc.aio.Channel:
        """A channel whose every call carries this token."""
        credentials = server_only_channel_credentials(self.authority)
        return connect(self.target, with_metadata(credentials, bearer(token, tenant)))

    def person(self, name, tenant="") -> grpc.aio.Channel:
        """A channel of oidc:local/<name>."""
        return self.bearer(self.token(name), tenant)

    def administrator(self) -> grpc.aio.Channel:
        """A channel with the certificate that init made."""
        files = TlsFiles(
            certificate=self.paths.client_certificate("admin"),
            key=self.paths.client_key("admin"),
            authority=self.paths.ca_certificate,
        )
        return connect(f"localhost:{self.ports.grpc}", channel_credentials(files))

    async def bind(self, name, role, tenant="default"):
        """Give oidc:local/<name> a role."""
        async with self.administrator() as channel:
            await call(
                Access(channel).CreateRoleBinding,
                access_pb2.CreateRoleBindingRequest(
                    identity=identity_of(name),
                    role=access_pb2.Role.Value(f"ROLE_{role.upper()}"),
                    tenant_id=tenant,
                ),
            )

    async def make_tenant(self, name):
        async with self.administrator() as channel:
            await call(Access(channel).CreateTenant, access_pb2.CreateTenantRequest(tenant_id=name))

    async def enroll(self, **token) -> tuple[str, grpc.ChannelCredentials]:
        """Enroll a node; return its id and what it connects with."""
        async with self.administrator() as channel:
            fleet = nodes_pb2_grpc.FleetServiceStub(channel)
            made = await call(fleet.CreateEnrollmentToken, nodes_pb2.CreateEnrollmentTokenRequest(**token))
        return await self.use_token(made.token, zone=token.get("zone", ""))

    async def use_token(self, token, zone=""):
        key, receipts = new_private_key(), PrivateKey.generate_ed25519()
        csr = make_csr(key)
        request = nodes_pb2.EnrollNodeRequest(
            token=token,
            csr_der=csr,
            receipt_public_key=receipts.public.spki_der,
            receipt_key_proof=receipts.sign(ENROLL_PROOF_DOMAIN + csr),
            zone=zone,
        )
        async with self.stranger() as channel:
            answer = await call(nodes_pb2_grpc.NodeServiceStub(channel).EnrollNode, request)
        chain = b"".join(
            x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM)
            for one in answer.certificate_chain_der
        )
        credentials = grpc.ssl_channel_credentials(self.authority, private_key_pem(key), chain)
        return answer.node_id, credentials

    def node(self, credentials) -> grpc.aio.Channel:
        return connect(f"localhost:{self.ports.grpc}", credentials)

    async def rows(self, query, *arguments):
        """Ask the database as its owner."""
        connection = await asyncpg.connect(self.owner_url)
        try:
            return [dict(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()


async def call(method, request):
    """One call with a deadline; errors come out typed. A busy machine may be slow to shake hands."""
    for _ in range(RETRIES):
        try:
            return await method(request, timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            failure = error
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                break
    raise error_of(failure) from failure


@asynccontextmanager
async def running_plane(folder: Path, server, **overrides):
    """Make an installation on a database of its own and serve it."""
    name = await asyncio.to_thread(server.new_database)
    request = InitRequest(
        data_dir=folder, owner_database_url=server.url(name), bootstrap_life=timedelta(hours=1)
    )
    try:
        made = await initialize(request)
        settings = ControlSettings(
            data_dir=folder,
            database_url=server.url(name, user=SERVICE),
            port=0,
            enroll_port=0,
            admin_port=0,
            stop_grace=timedelta(seconds=1),
            **overrides,
        )
        stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(run(settings, stop=stop, started=started.set_result))
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
        if serving.done():
            await serving
        try:
            yield Plane(folder, started.result(), server.url(name), made.bootstrap_secret)
        finally:
            stop.set()
            await asyncio.wait_for(serving, SECONDS)
    finally:
        await asyncio.to_thread(server.drop_database, name)

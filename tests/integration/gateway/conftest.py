"""A gateway in this process, in front of a control plane that a test scripts: the other side of gRPC, over TLS."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import httpx
import pytest
import trustme
from agentfactory.v1 import access_pb2
from google.protobuf.message_factory import GetMessageClass

from control_plane.gateway.api import Api
from control_plane.gateway.main import run
from control_plane.gateway.routes import Kind
from control_plane.gateway.settings import GatewaySettings

LIMIT = timedelta(seconds=30)
ROUTES = {route.name: route for route in Api.of_contract().routes}
MAKERS = {
    Kind.UNARY: grpc.unary_unary_rpc_method_handler,
    Kind.EVENTS: grpc.unary_stream_rpc_method_handler,
    Kind.DOWNLOAD: grpc.unary_stream_rpc_method_handler,
    Kind.UPLOAD: grpc.stream_unary_rpc_method_handler,
}


async def tenant_of_token(_, context):
    """The part of a token before its first dot is its tenant."""
    token = dict(context.invocation_metadata())["authorization"].removeprefix("Bearer ")
    return access_pb2.GetCallerIdentityResponse(tenant_id=token.partition(".")[0])


class Scripted(grpc.GenericRpcHandler):
    """Answers RPCs by name with what a test gave, and remembers what came with them."""

    def __init__(self, answers):
        answers = {"GetCallerIdentity": tenant_of_token, **answers}
        self._answers = {ROUTES[name].rpc: (ROUTES[name], answer) for name, answer in answers.items()}
        self.metadata = []

    def service(self, details):
        if details.method not in self._answers:
            return None
        route, answer = self._answers[details.method]
        if route.name != "GetCallerIdentity":
            self.metadata.append(dict(details.invocation_metadata))
        return MAKERS[route.kind](
            answer,
            request_deserializer=GetMessageClass(route.request).FromString,
            response_serializer=GetMessageClass(route.response).SerializeToString,
        )


@asynccontextmanager
async def serving(answers, tmp_path, **settings):
    """Yield a client of a gateway, its settings, and the control plane behind it."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    server = grpc.aio.server()
    scripted = Scripted(answers)
    server.add_generic_rpc_handlers((scripted,))
    port = server.add_secure_port(
        "localhost:0",
        grpc.ssl_server_credentials([(leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())]),
    )
    await server.start()
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        run(
            GatewaySettings(
                data_dir=tmp_path,
                control_plane=f"localhost:{port}",
                port=0,
                admin_port=0,
                stop_grace=timedelta(seconds=1),
                **settings,
            ),
            stop=stop,
            started=started.set_result,
        )
    )
    try:
        async with asyncio.timeout(LIMIT.total_seconds()):
            await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        scheme = "https" if "certificate" in settings else "http"
        async with httpx.AsyncClient(
            base_url=f"{scheme}://localhost:{started.result().http}",
            headers={"Authorization": "Bearer a.b.c"},
            timeout=LIMIT.total_seconds(),
            verify=str(tmp_path / "ca.crt") if scheme == "https" else True,
        ) as client:
            yield client, scripted, stop, running
    finally:
        stop.set()
        async with asyncio.timeout(LIMIT.total_seconds()):
            await running
            await server.stop(0)


@pytest.fixture
def gateway(tmp_path):
    def make(answers, **settings):
        return serving(answers, tmp_path, **settings)

    return make

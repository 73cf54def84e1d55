"""What one refusal costs the server, beside a call that is answered: processor time, real TLS, the real guard.

``python -m tests.bench.pressure.refusal`` prints both; the client is a process of its own.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from agentfactory.v1 import agents_pb2, agents_pb2_grpc

from control_plane.call_turns import CallTurns, TurnBounds
from control_plane.installation.files import (
    ensure_authority,
    ensure_client_certificate,
    ensure_server_certificate,
)
from shared.clock import SystemClock
from shared.ids import InstallationId, TenantId
from shared.paths import InstallationPaths
from shared.rpc.channel import SERVER_OPTIONS, connect
from shared.rpc.identity import Admission, Caller
from shared.rpc.patience import Patience
from shared.rpc.server import Guard
from shared.rpc.tls import TlsFiles, channel_credentials, server_credentials
from tests.e2e.stack import ROOT

LOCAL: Final = InstallationId("local")
SERVICE: Final = "/agentfactory.v1.AgentService"
TENANT: Final = TenantId("admin")
AT_ONCE: Final = 64
CALLS: Final = 3_000
ROUNDS: Final = 5
NAME_CHARS: Final = 1_000
"""As long as a common input."""
SECONDS: Final = 120.0


class _Gate:
    async def admit(self, _method: str, identity: str | None) -> Admission:
        known = Caller(
            identity=identity or "", kind="caller", name="admin", tenant_id=TENANT, roles=frozenset()
        )
        return Admission(caller=known, deadline=timedelta(minutes=1))


class _Uncounted:
    def rpc(self, method: str, code: str, seconds: float) -> None:
        """Count nothing."""


class _Agents(agents_pb2_grpc.AgentServiceServicer):
    async def CreateAgent(self, request: Any, _: Any) -> Any:  # noqa: N802 - the contract names it
        return agents_pb2.CreateAgentResponse(agent=agents_pb2.Agent(name=request.name))


def _files(paths: InstallationPaths, *, of_server: bool) -> TlsFiles:
    return TlsFiles(
        certificate=paths.server_certificate if of_server else paths.client_certificate("admin"),
        key=paths.server_key if of_server else paths.client_key("admin"),
        authority=paths.ca_certificate,
    )


@asynccontextmanager
async def serving(folder: Path, turns: CallTurns) -> AsyncIterator[int]:
    """Serve behind the guard for the length of the block; the refusals of a bench are not held."""
    paths, clock = InstallationPaths(data_dir=folder), SystemClock()
    authority = ensure_authority(paths, LOCAL, clock)
    ensure_server_certificate(paths, LOCAL, authority, server_names=("localhost",), clock=clock)
    ensure_client_certificate(paths, LOCAL, authority, name="admin", clock=clock)
    server = grpc.aio.server(interceptors=[_guard(turns)], options=SERVER_OPTIONS)
    agents_pb2_grpc.add_AgentServiceServicer_to_server(_Agents(), server)
    port = server.add_secure_port(
        "127.0.0.1:0", server_credentials(_files(paths, of_server=True), require_client=True)
    )
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


def _guard(turns: CallTurns) -> Guard:
    return Guard(gatekeeper=_Gate(), observer=_Uncounted(), turns=turns, patience=Patience(per_second=1e9))


async def client_calls(folder: Path, port: int) -> None:
    """Make calls until all are answered in one way or the other."""
    paths, left = InstallationPaths(data_dir=folder), CALLS
    request = agents_pb2.CreateAgentRequest(name="a")
    request.template.digest = "sha256:" + "0" * 64
    request.parameters = b'"' + b"x" * NAME_CHARS + b'"'

    async with connect(f"localhost:{port}", channel_credentials(_files(paths, of_server=False))) as channel:
        stub = agents_pb2_grpc.AgentServiceStub(channel)

        async def one() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                try:
                    await stub.CreateAgent(request, timeout=SECONDS, wait_for_ready=True)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise

        await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def microseconds(folder: Path, port: int) -> float:
    """Return what this process takes for one call of a client's."""
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.pressure.refusal", str(folder), str(port)), cwd=ROOT
    )
    before = time.process_time()
    async with asyncio.timeout(SECONDS):
        if await client.wait():
            raise AssertionError("the client failed; why was printed")
    return (time.process_time() - before) / CALLS * 1e6


async def measure() -> dict[str, list[float]]:
    """Return microseconds of answered and of refused calls, in turn."""
    bounds = TurnBounds(waiting_of_tenant=1)
    turns = CallTurns(clock=SystemClock(), bounds=bounds)
    found: dict[str, list[float]] = {"answered": [], "refused": []}
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), turns) as port:
            for _ in range(ROUNDS):
                found["answered"].append(await microseconds(Path(folder), port))
                taken = [await turns.take(TENANT, SERVICE) for _ in range(bounds.at_once_of_tenant)]
                waiting = asyncio.create_task(turns.take(TENANT, SERVICE))
                await asyncio.sleep(0)
                found["refused"].append(await microseconds(Path(folder), port))
                waiting.cancel()
                for turn in taken:
                    turn.end()
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(client_calls(Path(sys.argv[1]), int(sys.argv[2])))
    else:
        sys.stdout.write(json.dumps(asyncio.run(measure())) + "\n")

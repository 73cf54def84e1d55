"""Reference, not a peer: grpc.aio handing 1 kB to another process and back. No protobuf, no TLS, no disk, no run."""

import sys
from contextlib import AsyncExitStack
from typing import ClassVar

import grpc

from cli.stack import probe
from tests.bench import echo
from tests.bench.peers.peer import Peer, System

READY_SECONDS = 30.0
CALL_SECONDS = 30.0


class GrpcEcho(Peer):
    durable: ClassVar[bool] = False

    async def prepare(self, kept: AsyncExitStack) -> None:
        pass

    async def start(self, running: AsyncExitStack) -> System:
        (port,) = probe.free_ports(1)
        server = await self.child(running, "echo", [sys.executable, "-m", "tests.bench.echo", str(port)])
        channel = await running.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(echo.METHOD)
        await unary(b"", wait_for_ready=True, timeout=READY_SECONDS)

        async def submit(body: bytes) -> bytes:
            # An echo runs nothing: what the module would have made of it is put in here.
            return (await unary(body, timeout=CALL_SECONDS)).upper()

        return System(submit=submit, roots={"server": server.pid})

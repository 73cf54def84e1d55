"""A real gateway process beside a stack, and a client of it with a token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import httpx

from cli.local_token import make_token
from cli.stack import probe
from cli.stack.children import Child, stop
from cli.stack.local import start_gateway
from tests.e2e.stack import READY, TestStack, show_logs

TOKEN_LIFE = timedelta(minutes=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestGateway:
    __test__ = False

    child: Child
    port: int
    admin_port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def client(self, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.token}"} | headers, timeout=30
        ) as client:
            yield client


@asynccontextmanager
async def running_gateway(stack: TestStack, **environment: str) -> AsyncIterator[TestGateway]:
    """Run a gateway in front of the stack's control plane for the time of the context."""
    port, admin_port = probe.free_ports(2)
    ports = replace(stack.ports, gateway=port, gateway_admin=admin_port)
    child = await start_gateway(stack.paths.data_dir, ports, port, **environment)
    try:
        await probe.wait_until_ready(child, admin_port, within=READY)
        token = make_token(stack.paths, subject="admin", life=TOKEN_LIFE)
        yield TestGateway(child=child, port=port, admin_port=admin_port, token=token)
    except BaseException:
        show_logs(stack.paths.data_dir / "logs")
        raise
    finally:
        await stop(child)

"""A node that dies in the middle of a call that cannot be taken back (rule 6), through the whole system."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from agentfactory.v1 import executions_pb2

from tests.e2e.outside import listening
from tests.e2e.stack import ROOT, TestStack, eventually, kill, running_stack

CALLER = ROOT / "tests" / "guests" / "caller.wasm"
LIMITS = "wall_ms = 30000\nhost_call_ms = 10000"


@dataclass
class Shop:
    """A server that takes orders: it answers when a test lets it."""

    port: int = 0
    keys: list[str] = field(default_factory=list)
    """Idempotency keys of the requests that came."""
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/orders"

    async def asked(self, times: int) -> None:
        async def count() -> int:
            return len(self.keys)

        await eventually(count, lambda found: found >= times, f"request {times}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        lines = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        self.keys.append(lines["idempotency-key"])
        await self.answers.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def open_shop() -> AsyncIterator[Shop]:
    shop = Shop()
    async with listening(shop.serve) as shop.port:
        try:
            yield shop
        finally:
            shop.answers.set()


async def buy(stack: TestStack, shop: Shop, agent: str, *, retry: str) -> str:
    """Publish an agent that orders something, and have it run."""
    capability = f'http = [{{ method = "POST", url = "{shop.url}", addresses = ["127.0.0.1/32"] }}]'
    await stack.make_agent(agent, CALLER, limits=LIMITS, capabilities=capability, retry=retry)
    params = {"method": "POST", "url": shop.url, "body": "one"}
    return await stack.submit(agent, json.dumps({"method": "http.fetch", "params": params}).encode() + b"\n")


async def test_rule_6_a_node_killed_in_an_unsafe_call_ends_the_execution_unless_a_retry_is_safe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_shop() as shop:
        monkeypatch.setenv("AF_CONTROL_ALLOWED_HTTP", json.dumps([f"* {shop.url}"]))
        environment = {
            "AF_NODE_ALLOWED_HTTP": json.dumps([f"* {shop.url}"]),
            "AF_NODE_ALLOWED_NETWORKS": json.dumps(["127.0.0.0/8"]),
        }
        async with running_stack(**environment) as stack:
            (node,) = stack.nodes
            once = await buy(stack, shop, "once", retry="unsafe")
            await shop.asked(1)
            await kill(node.running)
            lost = await stack.wait_for_end(once)
            assert (lost.state, lost.reason, len(lost.attempts)) == (
                executions_pb2.EXECUTION_STATE_LOST,
                "RETRY_UNSAFE",
                1,
            )

            await stack.start_node(node)
            again = await buy(stack, shop, "again", retry="safe")
            await shop.asked(2)
            await kill(node.running)
            await stack.start_node(node)
            await shop.asked(3)
            shop.answers.set()
            ended = await stack.wait_for_end(again)

            assert (ended.state, len(ended.attempts)) == (executions_pb2.EXECUTION_STATE_SUCCEEDED, 2)
            assert shop.keys[1] == shop.keys[2] != shop.keys[0], (
                "the shop can tell a repeat from another order"
            )

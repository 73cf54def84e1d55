"""An agent that fetches with a secret and keeps what came, through the whole system: who may say no, and where it shows."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agentfactory.v1 import executions_pb2

from shared.errors import PolicyDeniedError
from tests.bench.peers import postgres_server
from tests.e2e.outside import listening
from tests.e2e.stack import ROOT, Execution, TestStack, running_stack

FETCHER = ROOT / "tests" / "guests" / "fetcher.wasm"
TOKEN = "a-token-that-nobody-sees"
BODY = b"the weather is fine"


@dataclass
class Api:
    """A server that tells everybody the weather."""

    port: int = 0
    heads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY))
        await writer.drain()
        writer.close()


@asynccontextmanager
async def open_api() -> AsyncIterator[Api]:
    api = Api()
    async with listening(api.serve) as api.port:
        yield api


def node_settings(api: Api, folder: Path) -> dict[str, str]:
    """What an operator sets on a node whose agents may call the server."""
    secrets = folder / "secrets.json"
    secrets.write_text(json.dumps({"default": {"api-token": {"value": TOKEN, "urls": [api.url]}}}))
    secrets.chmod(0o600)
    return {
        "AF_NODE_ALLOWED_HTTP": json.dumps([f"GET {api.url}"]),
        "AF_NODE_ALLOWED_NETWORKS": json.dumps(["127.0.0.0/8"]),
        "AF_NODE_SECRETS_FILE": str(secrets),
    }


async def publish(stack: TestStack, api: Api) -> None:
    await stack.make_agent(
        "fetcher",
        FETCHER,
        capabilities=(
            f'http = [{{ method = "GET", url = "{api.url}", addresses = ["127.0.0.1/32"] }}]\n'
            'secrets = ["api-token"]\nkv = true\nrecord_host_calls = true'
        ),
    )


async def fetch(stack: TestStack, *urls: str) -> tuple[Execution, list[dict]]:
    """Run the agent, which has to succeed; returns what it was answered."""
    execution, output = await stack.execute("fetcher", "\n".join(urls).encode() + b"\n")
    assert execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED, execution
    return execution, [json.loads(line) for line in output.splitlines()]


async def denied_in_receipt(stack: TestStack, execution: Execution) -> str:
    """Return the line of the verified receipt that names what was denied."""
    shown = (await stack.cli("receipt", "get", execution.execution_id)).out.splitlines()
    (line,) = [line for line in shown if line.startswith("denied")]
    return line.removeprefix("denied").strip()


async def test_an_agent_fetches_what_template_control_plane_and_node_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with open_api() as api:
        monkeypatch.setenv("AF_CONTROL_ALLOWED_HTTP", json.dumps([f"GET {api.url}"]))
        async with running_stack(**node_settings(api, tmp_path)) as stack:
            await publish(stack, api)

            execution, (answer, outside) = await fetch(stack, f"{api.url}weather", f"{api.url}../v2/")
            assert answer["ok"]["status"] == 200
            assert outside["error"]["reason"] == "NOT_GRANTED"
            (head,) = api.heads
            assert head.startswith("GET /v1/weather HTTP/1.1\r\n")
            assert f"authorization: Bearer {TOKEN}\r\n" in head

            assert await denied_in_receipt(stack, execution) == "http.fetch (not_granted): 1"
            await _recorded(stack, execution)
            await _kept(stack, execution)
            # The node's own word stands beside the grant: without it the same agent gets nothing.
            await _not_allowed_by_the_node(stack, api)


async def _recorded(stack: TestStack, execution: Execution) -> None:
    text = (await stack.cli("execution", "recording", execution.execution_id)).out
    calls = [json.loads(line) for line in text.splitlines()]
    assert [(one["method"], one["status"]) for one in calls] == [
        ("secret.ref", "ok"),
        ("http.fetch", "ok"),
        ("kv.put", "ok"),
        ("http.fetch", "NOT_GRANTED"),
    ]
    assert TOKEN not in text


async def _kept(stack: TestStack, execution: Execution) -> None:
    sql = await postgres_server.connect(stack.database.url())
    try:
        kept = await sql.fetch("SELECT key, value, written_by FROM kv_entries")
    finally:
        await sql.close()
    assert [tuple(row) for row in kept] == [("last", BODY, execution.execution_id)]


async def _not_allowed_by_the_node(stack: TestStack, api: Api) -> None:
    (node,) = stack.nodes
    assert node.child is not None
    node.child.process.terminate()
    await node.child.process.wait()
    node.environment["AF_NODE_ALLOWED_HTTP"] = "[]"
    await stack.start_node(node)
    asked = len(api.heads)

    execution, (answer,) = await fetch(stack, api.url)

    assert answer["error"]["reason"] == "NOT_ALLOWED_HERE"
    assert await denied_in_receipt(stack, execution) == "http.fetch (not_allowed_here): 1"
    assert len(api.heads) == asked


async def test_without_the_control_planes_setting_nobody_publishes_such_a_template(tmp_path: Path) -> None:
    async with open_api() as api, running_stack(nodes=0) as stack:
        with pytest.raises(PolicyDeniedError, match="CAPABILITY_NOT_ALLOWED"):
            await publish(stack, api)

"""Agents as tools: a client of the protocol's own SDK lists and calls them over both transports, in both of its ages."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import httpx2
import pytest
import wasmtime
from agentfactory.v1 import agents_pb2, executions_pb2
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from cli.agents import create_with
from cli.local_token import make_token
from cli.stack import probe
from cli.templates import publish_with
from shared.key_files import read_private_key
from shared.package_files import build_package, read_unsigned_package, write_envelope, write_package
from shared.packages import sign_package
from shared.signatures import FileSigner
from tests.e2e.gateway import TOKEN_LIFE
from tests.e2e.stack import ACTOR, READY, ROOT, eventually, running_stack
from tests.e2e.test_inheritance import ECHO, write_template

INPUT = {
    "type": "object",
    "description": "Says again what it is told.",
    "properties": {"depth": {"$ref": "#/$defs/depth"}},
    "required": ["depth"],
    "$defs": {"depth": {"type": "integer"}},
}
OUTPUT = {"type": "object", "properties": {"depth": {"type": "integer", "maximum": 5}}, "required": ["depth"]}
CANCELLED = executions_pb2.EXECUTION_STATE_CANCELLED


async def make_agent(stack, name, module, *, media_type="application/json", **schemas):
    lines = [f'{kind}_schema = "{kind}.json"\n' for kind in schemas]
    source = write_template(
        stack.folder / "sources" / name,
        f'[template]\nname = "{name}"\nversion = "1.0.0"\nmodule = "agent.wasm"\nmedia_type = "{media_type}"\n'
        f"[parameters]\n{''.join(lines)}[limits]\nwall_ms = 60000\n",
        **schemas,
    )
    (source / "agent.wasm").write_bytes(module)
    package = write_package(build_package(source), stack.folder / "sources")
    signer = FileSigner(key=read_private_key(stack.paths.publisher_key))
    write_envelope(package, (await sign_package(read_unsigned_package(package), [signer])).envelope)
    async with stack.client() as client:
        digest = (await publish_with(client, package)).digest
        await create_with(client, name, digest, b"{}")


@asynccontextmanager
async def agents():
    async with running_stack() as stack:
        echo = bytes(wasmtime.wat2wasm(ECHO))
        await make_agent(stack, "echo", echo, input=INPUT, output=OUTPUT)
        await make_agent(stack, "numbers", echo, input={"type": "array"}, output={"type": "array"})
        await make_agent(stack, "actor", ACTOR.read_bytes(), media_type="text/plain")
        yield stack


def environment(stack, **more):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AF_")}
    return clean | {"AF_CLI_DATA_DIR": str(stack.paths.data_dir)} | more


def over_stdio(stack, *arguments, mode="auto", **options):
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "cli.main", "mcp", *arguments],
        env=environment(stack, AF_CLI_TARGET=f"localhost:{stack.ports.grpc}"),
        cwd=ROOT,
    )
    return Client(server, mode=mode, **options)


@asynccontextmanager
async def http_server(stack):
    """Run `agentfactory mcp --http`; yields its URL."""
    (port,) = probe.free_ports(1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "mcp", "--http", "--port", str(port)),
        env=environment(stack, AF_CLI_TARGET=f"localhost:{stack.ports.enroll}"),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(READY.total_seconds()):
            line = (await process.stderr.readline()).decode()
        assert "serving agents" in line, line
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        async with asyncio.timeout(READY.total_seconds()):
            _, rest = await process.communicate()
        assert process.returncode == 0, rest.decode()


@asynccontextmanager
async def over_http(url, token, *, mode="auto"):
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


async def use_tools(client):
    """What every transport has to do."""
    listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {"echo", "numbers", "actor"} == listed.keys()
    assert listed["echo"].input_schema == INPUT
    assert listed["echo"].output_schema == OUTPUT
    assert listed["echo"].description.startswith("Says again")
    assert listed["numbers"].input_schema["properties"]["input"] == {"type": "array"}
    assert listed["actor"].input_schema["properties"]["input"]["type"] == "string"
    assert listed["echo"].annotations.read_only_hint

    progress = []

    async def note(value, total, message):
        progress.append((value, message))

    said = await client.call_tool("echo", {"depth": 3}, progress_callback=note)
    assert not said.is_error
    assert said.structured_content == {"depth": 3}
    assert said.meta["agentfactory.dev/execution-id"].startswith("exe_")
    assert said.meta["agentfactory.dev/receipt-id"].startswith("rcp_")
    assert progress
    assert "succeeded" in progress[-1][1]

    assert (await client.call_tool("numbers", {"input": [1, 2]})).structured_content == {"result": [1, 2]}
    assert (await client.call_tool("actor", {"input": "sleep 1"})).content[0].text == '{"slept_ms":1}\n'

    wrong = await client.call_tool("echo", {"depth": "three"})
    assert wrong.is_error
    assert "INVALID_INPUT" in wrong.content[0].text
    assert "depth" in wrong.content[0].text
    failed = await client.call_tool("actor", {"input": "exit 3"})
    assert failed.is_error
    assert "failed (exit code 3)" in failed.content[0].text
    assert "hint:" in failed.content[0].text
    odd = await client.call_tool("actor", {"words": "sleep 1"})
    assert odd.is_error
    with pytest.raises(MCPError, match="no tool"):
        await client.call_tool("nobody", {})


async def cancel_one(stack, client):
    """Cancel a call that runs; the execution ends with it."""
    known = set()
    async with stack.client() as api:
        listing = executions_pb2.ListExecutionsRequest(agent="actor")
        known = {
            one.execution_id for one in (await api.executions.ListExecutions(listing, timeout=10)).executions
        }
    call = asyncio.create_task(client.call_tool("actor", {"input": "sleep 50000"}))

    async def newest():
        async with stack.client() as api:
            found = (await api.executions.ListExecutions(listing, timeout=10)).executions
            return next((one for one in found if one.execution_id not in known), None)

    running = await eventually(
        newest,
        lambda one: one is not None and one.state == executions_pb2.EXECUTION_STATE_RUNNING,
        "the start of the call's execution",
    )
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    ended = await stack.wait_for_end(running.execution_id)
    assert ended.state == CANCELLED


async def test_agents_are_tools_over_both_transports():
    async with agents() as stack:
        for mode in ("auto", "legacy"):
            async with over_stdio(stack, mode=mode) as client:
                await use_tools(client)
                await cancel_one(stack, client)
        token = make_token(stack.paths, subject="admin", life=TOKEN_LIFE)
        async with http_server(stack) as url:
            for mode in ("auto", "legacy"):
                async with over_http(url, token, mode=mode) as client:
                    await use_tools(client)
                    await cancel_one(stack, client)
            await refuse_strangers(stack, url, token)
        await tell_of_new_agents(stack)


async def tell_of_new_agents(stack):
    """On stdio a client hears that the list is another one."""
    heard = asyncio.Event()

    async def listen(message):
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            heard.set()

    async with over_stdio(stack, "--agent", "echo", mode="legacy", message_handler=listen) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
        with pytest.raises(MCPError, match="no tool"):
            await client.call_tool("actor", {"input": "sleep 1"})
        async with stack.client() as api:
            await api.agents.DeleteAgent(agents_pb2.DeleteAgentRequest(name="numbers"), timeout=10)
        async with asyncio.timeout(30):
            await heard.wait()


async def refuse_strangers(stack, url, token):
    """No token, a forged one, one without a role, another origin, another name, too large a body."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accept = {"accept": "application/json, text/event-stream"}
    good = accept | {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(timeout=30) as http:
        answer = await http.post(url, json=call, headers=accept)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        forged = token[:-8] + "AAAAAAAA"
        assert (
            await http.post(url, json=call, headers=accept | {"authorization": f"Bearer {forged}"})
        ).status_code == 401
        assert (
            await http.post(url, json=call, headers=good | {"origin": "https://evil.test"})
        ).status_code == 403
        assert (await http.post(url, json=call, headers=good | {"host": "evil.test"})).status_code == 421
        assert (await http.post(url, content=b"[" * 5_000_000, headers=good)).status_code == 413
    stranger = make_token(stack.paths, subject="stranger", life=TOKEN_LIFE)
    async with over_http(url, stranger) as client:
        with pytest.raises(MCPError, match="PERMISSION_DENIED"):
            await client.list_tools()
    await refuse_taken_session(url, stack, token)


async def refuse_taken_session(url, stack, token):
    """The id of a session is no credential: another caller cannot use it."""
    start = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        },
    }
    accept = {"accept": "application/json, text/event-stream"}
    other = make_token(stack.paths, subject="stranger", life=TOKEN_LIFE)
    async with httpx2.AsyncClient(timeout=30) as http:
        opened = await http.post(url, json=start, headers=accept | {"authorization": f"Bearer {token}"})
        assert opened.status_code == 200
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        stop = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        taken = await http.post(
            url, json=stop, headers=accept | session | {"authorization": f"Bearer {other}"}
        )
        assert taken.status_code in {401, 403, 404}

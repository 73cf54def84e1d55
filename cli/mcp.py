"""`agentfactory mcp`: published agents as tools of the Model Context Protocol, over stdio or HTTP."""

import asyncio
import importlib.util
import signal
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cli.client import Client
    from cli.mcp_http import HttpBind
    from cli.mcp_server import Context

app = typer.Typer(add_completion=False)

DEFAULT_PORT: Final = 7460
LOOK_EVERY: Final = timedelta(seconds=5)
"""How often a client on stdio is told of agents that came or went."""


@app.command()
def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP on loopback instead of stdio.")
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Loopback address of --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = DEFAULT_PORT,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Name of a proxy in front, as in its Host header."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="Origin of a web page that may call.")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option("--agent", help="Serve only this agent; may be repeated.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=86400, help="Seconds that one call may take.")
    ] = 300.0,
    data_dir: DataDir = None,
    target: Target = None,
) -> None:
    """Serve agents as tools to an MCP client.

    On stdio the tools are those of this command's own identity. Over HTTP each request carries a bearer token
    of its caller, and af-tenant where that is bound in several tenants.

    Example: agentfactory mcp --agent desk

    Example: agentfactory mcp --http --port 7460
    """
    if importlib.util.find_spec("mcp_types") is None:
        raise UnavailableError(
            "the SDK of the protocol is not installed", hint="pip install 'agentfactory[mcp]'"
        )
    from cli.mcp_http import HttpBind

    if not http and (allow_host or allow_origin):
        raise InvalidInputError("--allow-host and --allow-origin are for --http")
    settings, limit = read_settings(data_dir, target), timedelta(seconds=timeout)
    bind = HttpBind(host=host, port=port, names=tuple(allow_host or ()), origins=tuple(allow_origin or ()))
    only = tuple(agent or ())
    asyncio.run(_serve_http(settings, bind, limit, only) if http else _serve_stdio(settings, limit, only))


async def _serve_stdio(settings: CliSettings, limit: timedelta, only: tuple[str, ...]) -> None:
    from mcp.server.lowlevel import NotificationOptions
    from mcp.server.stdio import stdio_server

    from cli.client import connect, typed_errors
    from cli.mcp_server import AgentTools, ListChanges, announced_changes, make_server

    async with connect(settings) as client:

        @asynccontextmanager
        async def own(_: "Context") -> "AsyncIterator[Client]":
            with typed_errors():
                yield client

        changes = ListChanges()
        tools = AgentTools(clients=own, timeout=limit, only=only, changes=changes)
        server = make_server(tools, version=version("agentfactory"))
        options = server.create_initialization_options(NotificationOptions(tools_changed=True))
        async with stdio_server() as (read, write), announced_changes(client, LOOK_EVERY, changes):
            await server.run(read, write, options)


async def _serve_http(
    settings: CliSettings, bind: "HttpBind", limit: timedelta, only: tuple[str, ...]
) -> None:
    from cli.client import open_token_channel
    from cli.mcp_http import BearerClients, http_server
    from cli.mcp_server import AgentTools, make_server

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_token_channel(settings) as channel:
        clients = BearerClients(channel=channel, timeout=settings.call_timeout.total_seconds())
        tools = AgentTools(clients=clients, timeout=limit, only=only)
        server = make_server(tools, version=version("agentfactory"))
        async with http_server(server, clients, bind) as url:
            output.note(f"serving agents as tools on {url}; every request needs a bearer token")
            await stop.wait()

"""The MCP server: lists agents as tools and runs them, each call as whoever asks. Keeps manifests alone."""

import asyncio
import hashlib
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import anyio
import mcp_types as types
from agentfactory.v1 import agents_pb2, common_pb2, executions_pb2, templates_pb2
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from cli.client import Client, typed_errors
from cli.mcp_tools import MAX_RESULT_BYTES, REQUEST_ID, AgentTool, to_body, to_error, to_result, to_tool
from cli.run import MAX_BODY_BYTES, Request, download, outcome, to_message
from shared.errors import AgentFactoryError, InvalidInputError, NotFoundError, UnavailableError
from shared.manifest import Manifest, decode_manifest

Context = ServerRequestContext[Any, Any]
ClientSource = Callable[[Context], AbstractAsyncContextManager[Client]]

PAGE_TOOLS: Final = 50
MAX_MANIFESTS: Final = 256
MAX_CALLS: Final = 64
"""Calls that run at once; more wait for their turn."""
MAX_RECONNECTS: Final = 5
RECONNECT_SECONDS: Final = 0.5
WATCH_GRACE: Final = timedelta(seconds=5)
CANCEL_SECONDS: Final = 5.0
MAX_REQUEST_ID_CHARS: Final = 128
_ACTIVE: Final = templates_pb2.TEMPLATE_STATE_ACTIVE
_ENDED: Final = frozenset(
    range(executions_pb2.EXECUTION_STATE_SUCCEEDED, executions_pb2.EXECUTION_STATE_LOST + 1)
)


@dataclass(slots=True, kw_only=True)
class ListChanges:
    """Tells the client of a connection that its list of tools changed, in either age of the protocol."""

    bus: InMemorySubscriptionBus = field(default_factory=InMemorySubscriptionBus)
    _session: ServerSession | None = None

    def listed(self, context: Context) -> None:
        """Remember a client that has seen the list, and is told without having asked."""
        if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            self._session = context.session

    async def announce(self) -> None:
        """Tell it."""
        await self.bus.publish(ToolsListChanged())
        if self._session is not None:
            await self._session.send_tool_list_changed()


@dataclass(slots=True, kw_only=True)
class AgentTools:
    """Handlers of the protocol's requests. Who may see and run what is the control plane's to say."""

    clients: ClientSource
    timeout: timedelta
    """Of one execution."""
    only: Sequence[str] = ()
    """Names of the agents that are served; empty: all."""
    changes: ListChanges | None = None
    _manifests: OrderedDict[str, Manifest] = field(default_factory=OrderedDict)
    """By digest: what was signed never changes. Whoever names a digest has it from an agent of its tenant."""
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CALLS))

    async def list_tools(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        """Return one page of the agents whose template may run."""
        cursor = (params.cursor if params is not None else None) or ""
        try:
            async with self.clients(context) as client:
                page = common_pb2.PageRequest(page_size=PAGE_TOOLS, page_token=cursor)
                answer = await client.agents.ListAgents(
                    agents_pb2.ListAgentsRequest(page=page), timeout=client.timeout
                )
                shown = [agent for agent in answer.agents if not self.only or agent.name in self.only]
                found = await asyncio.gather(*(self._find(client, agent) for agent in shown))
        except InvalidInputError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from error
        except AgentFactoryError as error:
            raise _protocol_error(error) from error
        tools = [to_tool(tool) for tool in found if tool is not None]
        if self.changes is not None:
            self.changes.listed(context)
        return types.ListToolsResult(tools=tools, next_cursor=answer.next_page_token or None)

    async def call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        """Run an agent to its end, tell how it comes along, and cancel it when the caller does."""
        async with self._turns:
            try:
                async with self.clients(context) as client:
                    tool = await self._tool(client, params.name)
                    return await self._run(client, context, tool, params)
            except AgentFactoryError as error:
                return to_error(error)

    async def _tool(self, client: Client, name: str) -> AgentTool:
        if self.only and name not in self.only:
            raise MCPError(INVALID_PARAMS, f"there is no tool {name[:64]!r}")
        try:
            request = agents_pb2.GetAgentRequest(name=name)
            with typed_errors():
                agent = (await client.agents.GetAgent(request, timeout=client.timeout)).agent
        except (NotFoundError, InvalidInputError) as error:
            raise MCPError(INVALID_PARAMS, f"there is no tool {name[:64]!r}") from error
        manifest = self._manifests.get(agent.template_digest)
        if manifest is not None:
            return AgentTool(agent=agent, manifest=manifest)
        tool = await self._find(client, agent)
        if tool is None:
            raise NotFoundError(f"the template of agent {name} does not run any more")
        return tool

    async def _find(self, client: Client, agent: agents_pb2.Agent) -> AgentTool | None:
        reference = templates_pb2.TemplateRef(digest=agent.template_digest)
        request = templates_pb2.GetTemplateRequest(template=reference)
        answer = await client.templates.GetTemplate(request, timeout=client.timeout)
        version = answer.template_version
        if version.state != _ACTIVE:
            return None
        manifest = decode_manifest(version.manifest)
        self._manifests[agent.template_digest] = manifest
        while len(self._manifests) > MAX_MANIFESTS:
            self._manifests.popitem(last=False)
        return AgentTool(agent=agent, manifest=manifest)

    async def _run(
        self, client: Client, context: Context, tool: AgentTool, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        body = to_body(tool, params.arguments or {})
        if len(body) > MAX_BODY_BYTES:
            raise InvalidInputError(f"the input has more than {MAX_BODY_BYTES} bytes")
        request = Request(
            agent=tool.agent.name, body=body, request_id=_request_id(params), timeout=self.timeout
        )
        message = executions_pb2.SubmitExecutionRequest(execution=await to_message(client, request))
        submitted = await client.executions.SubmitExecution(message, timeout=client.timeout)
        execution_id = submitted.execution.execution_id
        try:
            ended = await self._watch(client, context, execution_id)
            return to_result(tool, ended, await _output(client, ended))
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await _cancel(client, execution_id)
            raise
        except AgentFactoryError as error:
            return to_error(error, execution_id=execution_id)

    async def _watch(self, client: Client, context: Context, execution_id: str) -> executions_pb2.Execution:
        """Return the execution once it has ended; a watch that breaks off is begun again, some times."""
        request = executions_pb2.WatchExecutionRequest(execution_id=execution_id)
        wait = (self.timeout + WATCH_GRACE).total_seconds()
        seen = 0
        for left in reversed(range(MAX_RECONNECTS)):
            try:
                with typed_errors():
                    async for change in client.executions.WatchExecution(request, timeout=wait):
                        seen += 1
                        await context.session.report_progress(
                            float(seen), message=_progress(change.execution)
                        )
                        if change.execution.state in _ENDED:
                            return change.execution
            except UnavailableError:
                if not left:
                    raise
            await asyncio.sleep(RECONNECT_SECONDS)
        raise UnavailableError(f"the watch of {execution_id} breaks off again and again")


def make_server(tools: AgentTools, *, version: str) -> Server[Any]:
    """Return the protocol's server over these handlers."""
    changes = tools.changes
    return Server(
        "agentfactory",
        version=version,
        title="Agent Factory",
        instructions="Each tool is an agent: a signed program, run in a sandbox under policy and limits. "
        "A result's _meta names its execution and receipt.",
        get_tool_input_schema=lambda _: None,  # no argument is repeated in a header
        on_list_tools=tools.list_tools,
        on_call_tool=tools.call_tool,
        on_subscriptions_listen=ListenHandler(changes.bus, max_subscriptions=MAX_CALLS) if changes else None,
    )


@asynccontextmanager
async def announced_changes(client: Client, every: timedelta, changes: ListChanges) -> AsyncIterator[None]:
    """Announce for the time of the context whenever the list of agents is another one."""

    async def look() -> None:
        last = await _list_digest(client)
        while True:
            await asyncio.sleep(every.total_seconds())
            now = await _list_digest(client)
            if now and last and now != last:
                await changes.announce()
            last = now or last

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])


async def _list_digest(client: Client) -> str:
    """Return what tells one list of agents from another; empty while it cannot be read."""
    digest, token = hashlib.sha256(), ""
    try:
        while True:
            page = common_pb2.PageRequest(page_size=500, page_token=token)
            with typed_errors():
                answer = await client.agents.ListAgents(
                    agents_pb2.ListAgentsRequest(page=page), timeout=client.timeout
                )
            for agent in answer.agents:
                digest.update(f"{agent.name}\0{agent.revision}\0{agent.template_digest}\n".encode())
            token = answer.next_page_token
            if not token:
                return digest.hexdigest()
    except AgentFactoryError:
        return ""


async def _output(client: Client, execution: executions_pb2.Execution) -> bytes:
    if execution.state != executions_pb2.EXECUTION_STATE_SUCCEEDED or not execution.output_bytes:
        return b""
    if execution.output_bytes > MAX_RESULT_BYTES:
        raise InvalidInputError(
            f"the output has {execution.output_bytes} bytes, a tool's result has at most {MAX_RESULT_BYTES}",
            hint=f"agentfactory execution show {execution.execution_id} --output",
        )
    if len(execution.output) == execution.output_bytes:
        return execution.output
    with typed_errors():
        return await download(client, execution.execution_id, executions_pb2.BODY_KIND_OUTPUT)


async def _cancel(client: Client, execution_id: str) -> None:
    request = executions_pb2.CancelExecutionRequest(execution_id=execution_id)
    try:
        with typed_errors():
            await client.executions.CancelExecution(request, timeout=CANCEL_SECONDS)
    except AgentFactoryError:
        return  # it has ended, or its deadline ends it


def _request_id(params: types.CallToolRequestParams) -> str:
    """Return the client's own id of the call, so that it may repeat it; else a new one."""
    said = (params.meta or {}).get(REQUEST_ID)
    if said is None:
        return str(uuid.uuid4())
    if not isinstance(said, str) or not 0 < len(said) <= MAX_REQUEST_ID_CHARS:
        raise InvalidInputError(
            f"_meta {REQUEST_ID} is not a string of 1 to {MAX_REQUEST_ID_CHARS} characters"
        )
    return said


def _progress(execution: executions_pb2.Execution) -> str:
    words = [outcome(execution)]
    if execution.pending_reason:
        words.append(f"({execution.pending_reason})")
    if execution.attempts:
        words.append(f"attempt {len(execution.attempts)}")
    return " ".join(words)


def _protocol_error(error: AgentFactoryError) -> MCPError:
    reason = str(getattr(error, "remote_reason", error.reason))
    return MCPError(INTERNAL_ERROR, f"{error} [{reason}]", data={"reason": reason, "hint": error.hint or ""})

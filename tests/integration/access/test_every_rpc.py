"""Every RPC of the contract, called by every kind of caller, at a real server: the table says who gets in."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from agentfactory.v1 import audit_pb2, nodes_pb2, nodes_pb2_grpc

from control_plane.access.domain import OF_NODES, Role
from control_plane.access.rules import RULES
from shared.clock import SystemClock
from shared.ids import InstallationId
from shared.key_files import read_private_key
from shared.local_tokens import TokenRequest, sign_token
from shared.rpc.errors import error_of
from tests.integration.access.stage import LIFE, RETRIES, Plane, call, running_plane
from tests.unit.control_plane.access.test_rules import SERVICE_DESCRIPTORS

PEOPLE = tuple(role for role in Role if role not in OF_NODES)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in SERVICE_DESCRIPTORS
    for method in service.methods
}
MESSAGES = {
    # An empty one would be served until somebody goes.
    "/agentfactory.v1.AuditService/WatchAuditEntries": audit_pb2.WatchAuditEntriesRequest(after="x" * 65),
}
SECONDS = 60
AT_ONCE = 8


async def stopped_at_the_door(channel: grpc.aio.Channel, path: str) -> bool:
    """Whether access refuses a call with an empty message. Whatever comes after access is another matter."""
    for _ in range(RETRIES):
        try:
            await _call(channel, path, METHODS[path])
        except grpc.aio.AioRpcError as error:
            message = str(error_of(error))
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                continue  # nobody was let in, and nobody was refused: the machine is busy
            if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise AssertionError(f"{path}: {message}") from error
            return (
                error.code() is grpc.StatusCode.UNAUTHENTICATED
                or "may not call" in message
                or "holds no role" in message
            )
        return False
    raise AssertionError(f"{path} is not available")


async def _call(channel, path, method):
    message = MESSAGES[path].SerializeToString() if path in MESSAGES else b""
    if method.client_streaming and method.server_streaming:
        async for _ in channel.stream_stream(path)(_nothing(), timeout=SECONDS):
            return
    elif method.client_streaming:
        await channel.stream_unary(path)(_nothing(), timeout=SECONDS)
    elif method.server_streaming:
        async for _ in channel.unary_stream(path)(message, timeout=SECONDS):
            return
    else:
        await channel.unary_unary(path)(message, timeout=SECONDS)


async def _nothing():
    return
    yield


async def walk(channel, let_in) -> list[str]:
    """Call everything; return where the door is not as `let_in` says of the method's rule."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(path):
        async with limit:
            refused = await stopped_at_the_door(channel, path)
        rule = RULES[path]
        return None if refused != let_in(rule) else path

    return [path for path in await asyncio.gather(*map(one, METHODS)) if path]


@pytest.fixture
async def plane(tmp_path, postgres_18):
    async with running_plane(tmp_path, postgres_18) as plane:
        yield plane


async def kinds(plane: Plane, stack: AsyncExitStack):
    """Yield a name, a channel and what lets it in, for every kind of caller."""

    async def entered(channel):
        return await stack.enter_async_context(channel)

    yield "nobody", await entered(plane.stranger()), lambda rule: rule.anonymous
    yield (
        "a stranger with roles nowhere",
        await entered(plane.person("stranger")),
        lambda rule: rule.anonymous or rule.identified,
    )
    foreign = TokenRequest(
        installation=InstallationId("other"), subject="admin", issued_at=SystemClock().now(), life=LIFE
    )
    token = sign_token(read_private_key(plane.paths.token_key), foreign)
    # Also where nobody has to be anybody: who shows something shows something good.
    yield "a token of another installation", await entered(plane.bearer(token)), lambda rule: False
    for role in PEOPLE:
        await plane.bind(f"the-{role}", role)
        opens = lambda rule, role=role: role in rule.roles or rule.anonymous or rule.identified  # noqa: E731
        yield role, await entered(plane.person(f"the-{role}")), opens
    _, credentials = await plane.enroll()
    yield (
        "a node",
        await entered(plane.node(credentials)),
        lambda rule: rule.anonymous or Role.NODE in rule.roles,
    )
    _, credentials = await plane.enroll(duty=nodes_pb2.NODE_DUTY_COMPILE)
    yield (
        "a node that compiles",
        await entered(plane.node(credentials)),
        lambda rule: rule.anonymous or Role.COMPILER in rule.roles,
    )
    node_id, credentials = await plane.enroll()
    async with plane.administrator() as channel:
        await call(
            nodes_pb2_grpc.FleetServiceStub(channel).EvictNode,
            nodes_pb2.EvictNodeRequest(node_id=node_id, reason="test"),
        )
    yield "an evicted node", await entered(plane.node(credentials)), lambda rule: rule.anonymous


@pytest.mark.timeout(600)
async def test_every_rpc_lets_in_whom_the_table_names_and_nobody_else(plane):
    wrong = {}
    async with AsyncExitStack() as stack:
        async for name, channel, let_in in kinds(plane, stack):
            if found := await walk(channel, let_in):
                wrong[str(name)] = found
    assert wrong == {}

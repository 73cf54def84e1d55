"""The gateway as a client of the control plane: the caller's own token, a deadline, typed errors. No rights.

Holds one channel, of which each tenant gets a share; what a call may do is decided by the control plane from
the token that is passed on.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final, TypeAlias, TypeVar

import grpc
from agentfactory.v1 import access_pb2, access_pb2_grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.gateway.problems import Problem, ProblemError, Violation, invalid
from control_plane.gateway.routes import Kind, Route
from control_plane.gateway.shares import CallShares, KnownTenants
from shared.admin_http import Readiness
from shared.clock import Clock
from shared.errors import AgentFactoryError, UnavailableError
from shared.rpc.channel import CHANNEL_OPTIONS
from shared.rpc.credentials import AUTHORIZATION, FORWARDED_BY, MAX_TENANT_CHARS, MAX_TOKEN_CHARS, TENANT
from shared.rpc.errors import DETAILS_KEY, error_of

READINESS_DEADLINE: Final = timedelta(seconds=1)
ASK_DEADLINE: Final = timedelta(seconds=10)
"""For whose a token is."""

RETRIES: Final = 3
"""Tries of a read that a replica did not answer."""

WRITE_FAILED: Final = "Internal error from Core"
"""What grpc.aio says of a write that failed."""

SETTLE_TRIES: Final = 500
SETTLE_PAUSE: Final = timedelta(milliseconds=10)

_BEARER = re.compile(r"[Bb]earer [A-Za-z0-9._~+/=-]+")
_TENANT = re.compile(rf"[!-~]{{1,{MAX_TENANT_CHARS}}}")

Metadata: TypeAlias = Sequence[tuple[str, str]]
Call: TypeAlias = Any
"""Of grpc.aio; its stubs know no common type."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    start: Any
    deadline: float


class ControlPlane:
    """Calls the RPCs that have routes."""

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        routes: Sequence[Route],
        deadlines: Mapping[str, timedelta],
        name: str,
        max_calls: int,
        clock: Clock,
    ) -> None:
        self._channel = channel
        self._shares = CallShares(max_calls)
        self._tenants = KnownTenants(shares=self._shares, ask=self._ask_tenant, clock=clock)
        self._access: Any = access_pb2_grpc.AccessServiceStub(channel)
        self._forwarded = f"gateway/{name}"
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._methods = {
            route.rpc: _Method(start=_stub(channel, route), deadline=deadlines[route.rpc].total_seconds())
            for route in routes
        }

    def metadata(self, headers: Mapping[str, str]) -> Metadata:
        """Return what is passed on of a request's headers (by lower-case name).

        Raises:
            ProblemError: There is no bearer token, or a header is none that gRPC can carry.
        """
        token = headers.get(AUTHORIZATION, "")
        if len(token) > len("Bearer ") + MAX_TOKEN_CHARS or _BEARER.fullmatch(token) is None:
            raise ProblemError(
                Problem(
                    status=HTTPStatus.UNAUTHORIZED,
                    reason="UNAUTHENTICATED",
                    detail="the request carries no bearer token",
                    hint="send 'Authorization: Bearer <token>'",
                )
            )
        found = [(AUTHORIZATION, token), (FORWARDED_BY, self._forwarded)]
        tenant = headers.get(TENANT)
        if tenant is not None:
            if _TENANT.fullmatch(tenant) is None:
                raise invalid([Violation(location="header", pointer="AF-Tenant", detail="is no tenant's id")])
            found.append((TENANT, tenant))
        return found

    def anonymous(self) -> Metadata:
        """Return what is passed on where the caller need not be anybody."""
        return [(FORWARDED_BY, self._forwarded)]

    async def unary(self, route: Route, request: Message, metadata: Metadata) -> Message:
        """Return the answer of an RPC with one request and one answer.

        Raises:
            AgentFactoryError: As the control plane said.
            ResourceExhaustedError: The caller's tenant has its share of calls under way.
        """
        method = self._methods[route.rpc]
        async with self._share(metadata):
            try:
                answer: Message = await method.start(request, timeout=method.deadline, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise typed(error) from error
        return answer

    async def stream(self, route: Route, request: Message, metadata: Metadata) -> AsyncGenerator[Message]:
        """Yield the answers of a server stream; closing the iterator ends the RPC.

        Raises:
            AgentFactoryError: As the control plane said.
            ResourceExhaustedError: The caller's tenant has its share of calls under way.
        """
        method = self._methods[route.rpc]
        async with self._share(metadata):
            call: Call = method.start(request, timeout=method.deadline, metadata=metadata)
            try:
                async for answer in call:
                    yield answer
            except grpc.aio.AioRpcError as error:
                raise typed(error) from error
            finally:
                call.cancel()

    async def upload(self, route: Route, messages: AsyncGenerator[Message], metadata: Metadata) -> Message:
        """Send a client stream as it comes and return the answer, which may come before its end.

        Raises:
            AgentFactoryError: As the control plane said.
            ResourceExhaustedError: The caller's tenant has its share of calls under way.
            ProblemError: As `messages` does.
        """
        async with self._share(metadata):
            return await self._upload(self._methods[route.rpc], messages, metadata)

    async def _upload(
        self, method: _Method, messages: AsyncGenerator[Message], metadata: Metadata
    ) -> Message:
        call: Call = method.start(timeout=method.deadline, metadata=metadata)
        ends: list[grpc.aio.AioRpcError] = []
        call.add_done_callback(lambda call: ends.append(_now(_end(call))))
        try:
            # Written here and not by gRPC's own task: an error in the body is this request's error.
            async with aclosing(messages):
                async for message in messages:
                    if call.done():
                        break
                    await call.write(message)
            await call.done_writing()
            answer: Message = await call
        except grpc.aio.AioRpcError as error:
            raise typed(await _settled(call, ends or [error])) from error
        finally:
            call.cancel()
        return answer

    @asynccontextmanager
    async def _share(self, metadata: Metadata) -> AsyncIterator[None]:
        """Count one call, of its tenant or of nobody, for the length of the block."""
        if all(name != AUTHORIZATION for name, _ in metadata):
            async with self._shares.of_stranger():
                yield
            return
        with self._shares.of(await self._tenants.of(metadata)):
            yield

    async def _ask_tenant(self, metadata: Metadata) -> str:
        try:
            answer = await self._access.GetCallerIdentity(
                access_pb2.GetCallerIdentityRequest(),
                timeout=ASK_DEADLINE.total_seconds(),
                metadata=metadata,
            )
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error
        return str(answer.tenant_id)

    async def readiness(self) -> Readiness:
        """Return whether a replica that serves can be reached."""
        try:
            answer = await self._health.Check(
                health_pb2.HealthCheckRequest(), timeout=READINESS_DEADLINE.total_seconds()
            )
        except grpc.aio.AioRpcError as error:
            return Readiness(ready=False, detail=f"the control plane does not answer: {error.code().name}")
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return Readiness(ready=serving, detail="" if serving else "the control plane does not serve")


def open_channel(
    target: str, credentials: grpc.ChannelCredentials, routes: Sequence[Route]
) -> grpc.aio.Channel:
    """Return a channel that spreads calls over the addresses of `target` and tries reads again."""
    options = (*CHANNEL_OPTIONS, ("grpc.service_config", _service_config(routes)))
    return grpc.aio.secure_channel(target, credentials, options=options)


def _service_config(routes: Sequence[Route]) -> str:
    reads = [route.rpc.strip("/").split("/") for route in routes if _is_read(route)]
    policy = {
        "maxAttempts": RETRIES,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service, "method": method} for service, method in reads]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": names, "retryPolicy": policy}],
        }
    )


def _is_read(route: Route) -> bool:
    return route.method == "GET" and route.kind is Kind.UNARY


def _stub(channel: grpc.aio.Channel, route: Route) -> Any:
    start = {
        Kind.UNARY: channel.unary_unary,
        Kind.EVENTS: channel.unary_stream,
        Kind.DOWNLOAD: channel.unary_stream,
        Kind.UPLOAD: channel.stream_unary,
    }[route.kind]
    return start(
        route.rpc,
        request_serializer=GetMessageClass(route.request).SerializeToString,
        response_deserializer=GetMessageClass(route.response).FromString,
    )


async def _settled(call: Call, ends: Sequence[grpc.aio.AioRpcError]) -> grpc.aio.AioRpcError:
    """Return how an upload failed, which grpc.aio hides behind a write that met the end of its RPC.

    That is said before the status is there or put in the place of one that was: `ends` holds what came first.
    """
    end = ends[0]
    for _ in range(SETTLE_TRIES):
        if end.details() != WRITE_FAILED:
            break
        await asyncio.sleep(SETTLE_PAUSE.total_seconds())
        end = await _end(call)
    return end


async def _end(call: Call) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code=await call.code(),
        initial_metadata=await call.initial_metadata(),
        trailing_metadata=await call.trailing_metadata(),
        details=await call.details(),
    )


def _now(ready: Coroutine[Any, Any, Result]) -> Result:
    """Return what a coroutine returns that has nothing to wait for: within a callback."""
    try:
        ready.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    raise RuntimeError("an RPC that is done has no status")


def typed(error: grpc.aio.AioRpcError) -> AgentFactoryError:
    """Return what a failed RPC stands for; of a lost connection nothing that names addresses."""
    from_control_plane = any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())
    if error.code() is grpc.StatusCode.UNAVAILABLE and not from_control_plane:
        return UnavailableError(
            "the control plane cannot be reached", hint="try again", retry_after=timedelta(seconds=1)
        )
    return error_of(error)

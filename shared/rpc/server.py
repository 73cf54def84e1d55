"""The one interceptor of every server: what happens to an RPC before its servicer, and to its errors after.

Order, from outside in: errors and counting, identity, its share, access, room, deadline, reading, turn,
validation, servicer. One interceptor instead of nine, because each of grpc.aio's costs every call a
coroutine. Decides no rights: it asks the gatekeeper.

A single request is read here and not by grpc.aio, which would do it before it asks anybody: whoever may not
call, or comes while there is no room, is refused before one byte of its message is looked at.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from shared.errors import (
    AgentFactoryError,
    DeadlineExceededError,
    InternalError,
    InvalidInputError,
    ResourceExhaustedError,
)
from shared.logs import get_logger
from shared.rpc.credentials import Presented, presented
from shared.rpc.errors import typed_error, wire_error
from shared.rpc.identity import Admission, Caller, Gatekeeper, Principal, set_admitted, set_forwarder
from shared.rpc.inflight import InFlight, RpcBounds
from shared.rpc.patience import Patience, rest_of
from shared.rpc.tracing import note_traceparent
from shared.rpc.turns import NoTurns, Turns, end_turn, set_turn
from shared.rpc.validation import validate, validated

logger = get_logger(__name__)

_MAX_WRAPPED: Final = 256
"""Methods of one server. More would mean that names from outside got into the table."""

_TAKE_TURNS: Final = ("caller", "service")
"""Nodes and peers without a certificate do not: they have bounds of their own, and few unary calls."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RpcObserver(Protocol):
    """Counts RPCs; cheap and never raises."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """One RPC has ended with this status code."""


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server; see the module's docstring for the order."""

    def __init__(
        self,
        *,
        gatekeeper: Gatekeeper,
        observer: RpcObserver,
        bounds: RpcBounds | None = None,
        turns: Turns | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._turns = turns or NoTurns()
        self._in_flight = InFlight(bounds or RpcBounds.of())
        self._patience = Patience() if patience is None else patience
        self._observer = observer
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Return when no RPC with a single answer is under way. Streams, which have no end, do not count."""
        await self._idle.wait()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the wrapped handler of a method, the same object each time; None when nobody serves it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        wrapped = self._wrap(method, handler)
        if len(self._wrapped) < _MAX_WRAPPED:
            self._wrapped[method] = (handler, wrapped)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        # Any: the stubs know the handlers of the synchronous server only.
        inner: Any = handler
        codecs = (inner.request_deserializer, inner.response_serializer)
        if inner.request_streaming and inner.response_streaming:
            served = self._streaming(method, inner.stream_stream)
            return grpc.stream_stream_rpc_method_handler(served, *codecs)
        if inner.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streaming(method, inner.unary_stream), *codecs)
        if inner.request_streaming:
            served = self._collecting(method, inner.stream_unary)
        else:
            served = self._unary(method, inner.unary_unary)
        # On the wire both are the same; this one is begun before its message is read.
        return grpc.stream_unary_rpc_method_handler(served, *codecs)

    def _unary(self, method: str, inner: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        service = method.rpartition("/")[0]

        async def unary(_: object, context: Context) -> Any:
            call = _Call(method, context, self._observer)
            self._enter()
            try:
                shown = presented(context)
                note_traceparent(context)
                principal = await self._principal(method, shown)
                with self._in_flight.count(_name(principal), stream=False):
                    admission = await self._gatekeeper.admit(method, principal, shown.tenant)
                    set_admitted(admission)
                    try:
                        self._require_room(admission.caller, service)
                        async with asyncio.timeout(_limit(admission, context)) as call.scope:
                            request = await _read(context)
                            await self._take_turn(admission.caller, service)
                            validate(request)
                            return await inner(request, context)
                    except ResourceExhaustedError as refusal:
                        await self._hold(admission.caller, refusal, context)
                        raise
            except BaseException as error:
                await call.fail(error)
                raise
            finally:
                end_turn()
                self._leave()
                call.end()

        return unary

    async def _principal(self, method: str, shown: Presented) -> Principal | None:
        if shown.forwarded_by:
            set_forwarder(shown.forwarded_by)
        if shown.token is None:
            return None if shown.spiffe_id is None else Principal(identity=shown.spiffe_id)
        return await self._gatekeeper.authenticate(method, shown.token)

    def _require_room(self, caller: Caller, service: str) -> None:
        if caller.kind in _TAKE_TURNS:
            self._turns.require_room(caller.tenant_id, service)

    async def _take_turn(self, caller: Caller, service: str) -> None:
        if caller.kind in _TAKE_TURNS:
            set_turn(await self._turns.take(caller.tenant_id, service))

    async def _hold(self, caller: Caller, refusal: ResourceExhaustedError, context: Context) -> None:
        """Tell a refusal late to who has had many, in time for its deadline. The call counts as idle."""
        end_turn()
        if refusal.retry_after is None or caller.kind not in _TAKE_TURNS:
            return
        held = self._patience.hold(caller.tenant_id, asyncio.get_running_loop().time())
        remaining = context.time_remaining()
        if remaining is not None:
            held = min(held, remaining / 2)
        if held <= 0:
            return
        self._leave()
        try:
            await asyncio.sleep(held)
        finally:
            self._enter()
        refusal.retry_after = rest_of(refusal.retry_after, held)

    def _collecting(self, method: str, inner: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def collecting(requests: AsyncIterator[Any], context: Context) -> Any:
            call = _Call(method, context, self._observer)
            self._enter()
            try:
                shown = presented(context)
                note_traceparent(context)
                principal = await self._principal(method, shown)
                with self._in_flight.count(_name(principal), stream=True):
                    admission = await self._gatekeeper.admit(method, principal, shown.tenant)
                    set_admitted(admission)
                    async with asyncio.timeout(_limit(admission, context)) as call.scope:
                        return await inner(validated(requests), context)
            except BaseException as error:
                await call.fail(error)
                raise
            finally:
                self._leave()
                call.end()

        return collecting

    def _enter(self) -> None:
        self._active += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._active -= 1
        if not self._active:
            self._idle.set()

    def _streaming(self, method: str, inner: Callable[[Any, Context], Any]) -> Any:
        async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
            call = _Call(method, context, self._observer)
            try:
                shown = presented(context)
                note_traceparent(context)
                principal = await self._principal(method, shown)
                with self._in_flight.count(_name(principal), stream=True):
                    admission = await self._gatekeeper.admit(method, principal, shown.tenant)
                    set_admitted(admission)
                    async with asyncio.timeout(_stream_limit(admission, context)) as call.scope:
                        answers = inner(_checked(request), context)
                        if inspect.isawaitable(answers):
                            # The other style of grpc.aio, which writes to the context itself (the health
                            # service).
                            await answers
                            return
                        async for response in answers:
                            yield response
            except BaseException as error:
                await call.fail(error)
                raise
            finally:
                call.end()

        return streaming


class _Call:
    """One RPC: how it ends."""

    __slots__ = ("_context", "_method", "_observer", "_started", "code", "scope")

    def __init__(self, method: str, context: Context, observer: RpcObserver) -> None:
        self._method = method
        self._context = context
        self._observer = observer
        self._started = time.perf_counter()
        self.scope: asyncio.Timeout | None = None
        self.code = "OK"

    async def fail(self, error: BaseException) -> None:
        """Abort with the status of a typed error, masking all others; return when there is nobody to tell."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            # The caller went away, or the server stops.
            self.code = "CANCELLED"
            return
        if isinstance(error, grpc.aio.AbortError):
            self.code = "ABORTED_BY_SERVICER"
            return
        typed = self._typed(error)
        wire = wire_error(typed)
        self.code = wire.code.name
        await self._context.abort(wire.code, wire.message, wire.trailing_metadata)

    def end(self) -> None:
        self._observer.rpc(self._method, self.code, time.perf_counter() - self._started)

    def _typed(self, error: BaseException) -> AgentFactoryError:
        if isinstance(error, TimeoutError) and self.scope is not None and self.scope.expired():
            return DeadlineExceededError(f"{self._method} did not end before its deadline")
        found = typed_error(error)
        if found is None or isinstance(found, InternalError):
            logger.error("rpc failed unexpectedly", method=self._method, exc_info=error)
            return InternalError("internal error")
        return found


def _name(principal: Principal | None) -> str | None:
    return None if principal is None else principal.identity


async def _read(context: Context) -> Message:
    """Return the one message of a call.

    Raises:
        InvalidInputError: There is none, or it is not of the method's type.
    """
    try:
        request = await context.read()
    except DecodeError as error:
        raise InvalidInputError("the message is not one of this method's type") from error
    if request is grpc.aio.EOF:
        raise InvalidInputError("the call carries no message")
    assert isinstance(request, Message)
    return request


def _checked(request: Any) -> Any:
    if isinstance(request, Message):
        validate(request)
        return request
    return validated(request)


def _limit(admission: Admission, context: Context) -> float:
    limit = admission.deadline.total_seconds()
    remaining = context.time_remaining()
    return limit if remaining is None else min(limit, max(remaining, 0.0))


def _stream_limit(admission: Admission, context: Context) -> float:
    limit = _limit(admission, context)
    left = admission.identified_for
    return limit if left is None else min(limit, max(left.total_seconds(), 0.0))

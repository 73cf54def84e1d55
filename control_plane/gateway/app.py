"""The ASGI application: routes from the contract, one shape of error, bounds and headers around all of it."""

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as WebRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.gateway.handlers import Handler
from control_plane.gateway.metrics import GatewayMetrics
from control_plane.gateway.problems import CLIENT_CLOSED, Problem, problem_of, refused
from control_plane.gateway.trails import begin_trail, end_trail
from shared.errors import UnavailableError
from shared.logs import get_logger
from shared.tracing import NO_TRACER, Tracer

logger = get_logger(__name__)

OPENAPI_PATH: Final = "/openapi.json"
SERVER_ERRORS: Final = 500

_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
_OVER_TLS: Final = ((b"strict-transport-security", b"max-age=31536000"),)


class _Word(Convertor[str]):
    """What a parameter of a path matches: no part of the verb behind it, though a digest has a colon too."""

    regex = "(?:sha256:)?[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("word", _Word())
_PARAMETER = re.compile(r"{(\w+)}")


def build_app(handlers: Sequence[tuple[str, str, str, Handler]], document: Mapping[str, Any]) -> FastAPI:
    """Return the application. `handlers` are method, path, name of the RPC and what answers it."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    shown = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    async def openapi(_: Request) -> Response:
        return Response(shown, media_type="application/json")

    app.router.routes = [
        *(_web_route(method, path, name, handler) for method, path, name, handler in handlers),
        _web_route("GET", OPENAPI_PATH, "openapi", openapi),
    ]
    app.add_exception_handler(HTTPException, _by_http)
    return app


def _web_route(method: str, path: str, name: str, handler: Handler) -> WebRoute:
    async def answered(request: Request) -> Response:
        request.scope["af_name"] = name
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        except Exception as error:  # noqa: BLE001 - every failure becomes a problem document, masked if not ours
            return _problem(error, name).response()

    route = WebRoute(_PARAMETER.sub(r"{\1:word}", path), answered, methods=[method], name=name)
    route.methods = {method}  # without the HEAD that comes with GET: a HEAD of an event stream has no end
    return route


def _problem(error: Exception, name: str) -> Problem:
    problem = problem_of(error)
    if problem.status >= SERVER_ERRORS:
        logger.warning(
            "request failed", rpc=name, reason=problem.reason, exc_info=error if _is_bug(problem) else None
        )
    return problem


def _is_bug(problem: Problem) -> bool:
    return problem.reason == "INTERNAL"


async def _by_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods_of(request))
        return refused(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "METHOD_NOT_ALLOWED",
            f"{request.method[:16]} is not allowed here",
            hint=f"allowed: {allowed}",
            Allow=allowed,
        ).problem.response()
    return refused(
        HTTPStatus.NOT_FOUND, "NO_ROUTE", "there is nothing at this path", hint=f"see {OPENAPI_PATH}"
    ).problem.response()


def _methods_of(request: Request) -> list[str]:
    methods: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods
    return sorted(methods)


class Front:
    """ASGI around the application: requests at once, patience with readers, headers, counts."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: GatewayMetrics,
        max_requests: int,
        write_timeout: timedelta,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_requests = max_requests
        self._write_timeout = write_timeout.total_seconds()
        self._active = 0
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        exchange = _Exchange(send, self._write_timeout, over_tls=scope["scheme"] == "https")
        trail = begin_trail(self._tracer, scope)
        self._active += 1
        self._metrics.active(self._active)
        try:
            app = self._app if self._active <= self._max_requests else _too_many(self._max_requests)
            await app(scope, receive, exchange.send)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:  # noqa: BLE001 - the answer has begun: the server tears the connection
            _problem(error, scope.get("af_name", ""))
        finally:
            self._active -= 1
            self._metrics.active(self._active)
            seconds = time.perf_counter() - started
            name = scope.get("af_name", "")
            self._metrics.request(name, exchange.status, seconds, trail.sampled_id)
            end_trail(trail, scope, name=name, status=exchange.status)


class _Exchange:
    """One answer on its way."""

    def __init__(self, send: Send, write_timeout: float, *, over_tls: bool) -> None:
        self._send = send
        self._write_timeout = write_timeout
        self._headers = (*_HEADERS, *(_OVER_TLS if over_tls else ()))
        self.status = CLIENT_CLOSED

    async def send(self, message: Message) -> None:
        """Pass one piece on.

        Raises:
            ClientDisconnect: The reader did not take it in time.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            said = list(message.get("headers", ()))
            named = {name for name, _ in said}
            message["headers"] = [*said, *(one for one in self._headers if one[0] not in named)]
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._send(message)
        except TimeoutError:
            raise ClientDisconnect from None


def _too_many(most: int) -> ASGIApp:
    error = UnavailableError(
        f"{most} requests are under way here",
        hint="try again, or ask another gateway",
        retry_after=timedelta(seconds=1),
    )
    return problem_of(error).response()

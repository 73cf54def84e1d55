"""One handler for each kind of route: HTTP request in, one RPC, HTTP answer out. Keeps nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from control_plane.gateway.bodies import read_form, read_json
from control_plane.gateway.calls import ControlPlane
from control_plane.gateway.openapi import success_status
from control_plane.gateway.problems import with_violations
from control_plane.gateway.requests import RESUME_FIELD, RESUME_HEADER, Parts, RequestReader
from control_plane.gateway.routes import Kind, chunk_field
from control_plane.gateway.streams import (
    Answers,
    StreamedAnswers,
    Streams,
    by_number,
    by_resource,
    byte_stream,
    event_stream,
    to_json,
)
from control_plane.gateway.trails import note_outcome
from control_plane.gateway.uploads import UploadForm, UploadReader
from shared.errors import AgentFactoryError

T = TypeVar("T")

Handler = Callable[[Request], Awaitable[Response]]

FIRST_EVENT_WITHIN: Final = timedelta(milliseconds=500)
"""How long an event stream waits for its first message, so that a refusal is a status of its own."""

WATCHED_FROM: Final = timedelta(minutes=1)
"""RPCs that may last this long are ended when their caller goes away."""

_EVENT_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
_BYTES_HEADERS: Final = {"Content-Type": "application/octet-stream", "Content-Disposition": "attachment"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one request may take."""

    json_bytes: int
    upload_bytes: int
    streams: int
    read_timeout: timedelta
    heartbeat_every: timedelta


class Handlers:
    """Makes the handlers of all routes."""

    def __init__(
        self,
        *,
        control_plane: ControlPlane,
        bounds: Bounds,
        deadlines: Mapping[str, timedelta],
        closing: asyncio.Event,
    ) -> None:
        self._control_plane = control_plane
        self._bounds = bounds
        self._deadlines = deadlines
        self._closing = closing
        self._streams = Streams(bounds.streams)

    def of(self, reader: RequestReader, form: UploadForm | None) -> Handler:
        """Return the handler of a route."""
        if form is not None:
            return _naming_parts(reader, self._upload(form))
        makers = {Kind.UNARY: self._unary, Kind.EVENTS: self._events, Kind.DOWNLOAD: self._download}
        return _naming_parts(reader, makers[reader.route.kind](reader))

    def _unary(self, reader: RequestReader) -> Handler:
        route = reader.route
        status = success_status(route)
        long = self._deadlines[route.rpc] >= WATCHED_FROM

        async def unary(request: Request) -> Response:
            metadata = self._control_plane.metadata(request.headers)
            message = await self._message(reader, request)
            call = self._control_plane.unary(route, message, metadata)
            answer = await (while_connected(request, call) if long else call)
            note_outcome(request.scope, answer)
            return _json(answer, status)

        return unary

    def _events(self, reader: RequestReader) -> Handler:
        id_of = by_resource if resumes(reader) else by_number

        async def watch(request: Request) -> Response:
            answers = await self._start(reader, request, FIRST_EVENT_WITHIN)
            body = event_stream(
                answers, id_of=id_of, heartbeat_every=self._bounds.heartbeat_every, closing=self._closing
            )
            return StreamedAnswers(body, answers, self._streams, _EVENT_HEADERS)

        return watch

    def _download(self, reader: RequestReader) -> Handler:
        chunk = chunk_field(reader.route.response)
        name = chunk.name if chunk is not None else ""

        async def download(request: Request) -> Response:
            answers = await self._start(reader, request, None)
            return StreamedAnswers(byte_stream(answers, name), answers, self._streams, _BYTES_HEADERS)

        return download

    async def _start(self, reader: RequestReader, request: Request, within: timedelta | None) -> Answers:
        """Start a server stream and wait for its first answer: a refusal is a status, not a torn body."""
        metadata = self._control_plane.metadata(request.headers)
        message = await self._message(reader, request)
        self._streams.take()
        answers = Answers(self._control_plane.stream(reader.route, message, metadata))
        try:
            await answers.ready(within)
        except BaseException:
            self._streams.give_back()
            await answers.close()
            raise
        return answers

    def _upload(self, form: UploadForm) -> Handler:
        route = form.route
        status = success_status(route)

        async def upload(request: Request) -> Response:
            metadata = self._control_plane.metadata(request.headers)
            boundary, pieces = read_form(
                request, max_bytes=self._bounds.upload_bytes, within=self._bounds.read_timeout
            )
            messages = UploadReader(form, boundary).messages(pieces)
            return _json(await self._control_plane.upload(route, messages, metadata), status)

        return upload

    async def _message(self, reader: RequestReader, request: Request) -> Message:
        body = b""
        if reader.route.has_body:
            body = await read_json(
                request, max_bytes=self._bounds.json_bytes, within=self._bounds.read_timeout
            )
        parts = Parts(
            path=request.path_params, query=_query(reader, request), headers=request.headers, body=body
        )
        return reader.read(parts, max_bytes=self._bounds.json_bytes)


def _naming_parts(reader: RequestReader, handler: Handler) -> Handler:
    """Let what the control plane says of fields name the parts of the HTTP request that they came from."""

    async def named(request: Request) -> Response:
        try:
            return await handler(request)
        except AgentFactoryError as error:
            if not error.violations:
                raise
            raise with_violations(error, reader.located(error.violations)) from error

    return named


def resumes(reader: RequestReader) -> bool:
    """Whether an event stream can be taken up behind an event."""
    return reader.route.kind is Kind.EVENTS and RESUME_FIELD in reader.route.request.fields_by_name


def _query(reader: RequestReader, request: Request) -> list[tuple[str, str]]:
    pairs = request.query_params.multi_items()
    last = request.headers.get(RESUME_HEADER)
    if last and resumes(reader):
        return [*(pair for pair in pairs if pair[0] != RESUME_FIELD), (RESUME_FIELD, last)]
    return pairs


def _json(message: Message, status: int) -> Response:
    body = json.dumps(to_json(message), ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` returns, or cancel it when the caller goes away.

    Raises:
        ClientDisconnect: The caller went away.
    """
    call = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((call, gone), return_when=asyncio.FIRST_COMPLETED)
        if call.done():
            return call.result()
        raise ClientDisconnect
    finally:
        for task in (call, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

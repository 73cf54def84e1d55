"""Server streams as HTTP bodies: server-sent events, and plain bytes. Bounded, ended with the caller.

An event stream says its end: without the last event a browser would connect again for ever. Where the gateway
stops it says nothing, so that the browser does connect again.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from control_plane.gateway.problems import Problem, problem_of
from shared.errors import ResourceExhaustedError
from shared.logs import get_logger

logger = get_logger(__name__)

RECONNECT_MS: Final = 2_000
"""What a browser waits before it connects again."""

_HEARTBEAT: Final = b": still here\n\n"
_START: Final = f"retry: {RECONNECT_MS}\n\n".encode()


class Answers:
    """The answers of one server stream, of which the next can be waited for without taking it."""

    def __init__(self, source: AsyncGenerator[Message]) -> None:
        self._source = source
        self._next: asyncio.Task[Message | None] | None = None

    async def ready(self, within: timedelta | None, *also: asyncio.Future[Any]) -> bool:
        """Return whether the next answer, or the end, has come in time and before anything of `also`.

        Raises:
            AgentFactoryError: The stream failed instead.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self._pull())
        seconds = within.total_seconds() if within is not None else None
        await asyncio.wait({self._next, *also}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._next.done():
            self._next.result()
        return self._next.done()

    async def take(self) -> Message | None:
        """Return the next answer; None at the end.

        Raises:
            AgentFactoryError: The stream failed.
        """
        await self.ready(None)
        assert self._next is not None
        answer, self._next = self._next.result(), None
        return answer

    async def close(self) -> None:
        """End the stream, and with it the RPC. May be called again."""
        if self._next is not None:
            self._next.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._next
        await self._source.aclose()

    async def _pull(self) -> Message | None:
        return await anext(self._source, None)


class Streams:
    """Counts the streams that are open."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    def take(self) -> None:
        """Count one more.

        Raises:
            ResourceExhaustedError: There are too many.
        """
        if self._open >= self._most:
            raise ResourceExhaustedError(
                f"{self._most} streams are open here",
                hint="close some, or ask another gateway",
                retry_after=timedelta(seconds=1),
            )
        self._open += 1

    def give_back(self) -> None:
        """Count one less."""
        self._open -= 1


class StreamedAnswers(StreamingResponse):
    """An answer whose RPC ends with it, however it ends."""

    def __init__(
        self, body: AsyncGenerator[bytes], answers: Answers, streams: Streams, headers: Mapping[str, str]
    ) -> None:
        super().__init__(body, headers=headers)
        self._body = body
        self._answers = answers
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.give_back()
            await self._body.aclose()
            await self._answers.close()


async def event_stream(
    answers: Answers,
    *,
    id_of: Callable[[Message, int], str],
    heartbeat_every: timedelta,
    closing: asyncio.Event,
) -> AsyncGenerator[bytes]:
    """Yield a stream as server-sent events (HTML standard, section 9.2), and heartbeats in silence."""
    stopped = asyncio.ensure_future(closing.wait())
    number = 0
    try:
        yield _START
        while not stopped.done():
            if not await answers.ready(heartbeat_every, stopped):
                yield _HEARTBEAT
                continue
            answer = await answers.take()
            if answer is None:
                yield _event("end", "{}", "")
                return
            number += 1
            yield _event("message", _json_of(answer), id_of(answer, number))
    except Exception as error:  # noqa: BLE001 - whatever it is, the reader is told in the one way that is left
        yield _event("error", _failure(error).to_bytes().decode(), "")
    finally:
        stopped.cancel()


async def byte_stream(answers: Answers, field: str) -> AsyncGenerator[bytes]:
    """Yield the bytes of a stream. A failure tears the body, so that nobody takes a part for the whole."""
    while (answer := await answers.take()) is not None:
        yield getattr(answer, field)


def to_json(message: Message) -> dict[str, Any]:
    """Return a message as proto3 JSON, with everything that always has a value."""
    document: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return document


def _json_of(message: Message) -> str:
    return json.dumps(to_json(message), ensure_ascii=False, separators=(",", ":"))


def _event(kind: str, data: str, event_id: str) -> bytes:
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {kind}\ndata: {data}\n\n".encode()


def by_number(_: Message, number: int) -> str:
    """Return the id of an event of a stream that starts anew whenever it is asked for."""
    return str(number)


def by_resource(answer: Message, number: int) -> str:
    """Return the id of an event of a stream that can be taken up behind it: the one of its resource."""
    del number
    name = answer.DESCRIPTOR.fields[0].name
    return str(getattr(getattr(answer, name), f"{name}_id"))


def _failure(error: Exception) -> Problem:
    problem = problem_of(error)
    if problem.reason == "INTERNAL":
        logger.error("event stream failed unexpectedly", exc_info=error)
    return problem

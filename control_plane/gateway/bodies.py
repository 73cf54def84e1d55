"""Reads request bodies: bounded in length, in time, and in what they call themselves."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from http import HTTPStatus
from typing import Final

from starlette.requests import Request

from control_plane.gateway.problems import ProblemError, refused
from control_plane.gateway.uploads import boundary_of

_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data"


async def read_json(request: Request, *, max_bytes: int, within: timedelta) -> bytes:
    """Return a whole JSON body, not yet parsed; empty: there is none.

    Raises:
        ProblemError: It is longer than `max_bytes`, came too slowly, or says it is something else.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(within.total_seconds()):
            async for piece in pieces(request, max_bytes=max_bytes, within=within):
                body += piece
    except TimeoutError:
        raise _too_slow(within) from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != _JSON:
        raise _wrong_type(_JSON)
    return bytes(body)


def read_form(request: Request, *, max_bytes: int, within: timedelta) -> tuple[bytes, AsyncGenerator[bytes]]:
    """Return the boundary of a multipart body and its pieces as they come.

    Raises:
        ProblemError: It is longer than `max_bytes`, comes too slowly, or says it is something else.
    """
    boundary = boundary_of(request.headers.get("content-type", ""))
    if not boundary:
        raise _wrong_type(_FORM)
    return boundary, pieces(request, max_bytes=max_bytes, within=within)


async def pieces(request: Request, *, max_bytes: int, within: timedelta) -> AsyncGenerator[bytes]:
    """Yield a body as it comes; the next piece is read when the one before is done with.

    Raises:
        ProblemError: It is longer than `max_bytes`, or a piece takes longer than `within`.
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > max_bytes:
        raise _too_large(max_bytes)
    stream = aiter(request.stream())
    taken = 0
    while True:
        try:
            async with asyncio.timeout(within.total_seconds()):
                piece = await anext(stream, None)
        except TimeoutError:
            raise _too_slow(within) from None
        if piece is None:
            return
        taken += len(piece)
        if taken > max_bytes:
            raise _too_large(max_bytes)
        if piece:
            yield piece


def _too_large(max_bytes: int) -> ProblemError:
    return refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "BODY_TOO_LARGE",
        f"the body has more than {max_bytes} bytes",
        hint="upload large inputs with POST /v1/bodies",
    )


def _too_slow(within: timedelta) -> ProblemError:
    return refused(
        HTTPStatus.REQUEST_TIMEOUT,
        "BODY_TOO_SLOW",
        f"nothing of the body came for {within.total_seconds():g} s",
        hint="send the request again",
    )


def _wrong_type(wanted: str) -> ProblemError:
    return refused(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "UNSUPPORTED_MEDIA_TYPE",
        f"the body of this request is {wanted}",
        hint=f"send 'Content-Type: {wanted}'",
    )

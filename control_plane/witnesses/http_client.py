"""Witnesses over HTTP (C2SP tlog-witness). Implements `WitnessClient`. Decides nothing from what they say."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import httpx

from control_plane.witnesses.domain import Answer, Cosigned, Refusal, Refused, Stale, Witness, parse_size
from shared.errors import MalformedError

MAX_ANSWER_BYTES: Final = 16 * 1024
SIZE_TYPE: Final = "text/x.tlog.size"
"""Content type of a conflict that names a size; other conflicts are about roots."""

_REFUSALS: Final[Mapping[int, Refusal]] = {
    httpx.codes.FORBIDDEN: Refusal.UNKNOWN_KEY,
    httpx.codes.NOT_FOUND: Refusal.UNKNOWN_LOG,
    httpx.codes.CONFLICT: Refusal.OTHER_ROOT,
    httpx.codes.UNPROCESSABLE_ENTITY: Refusal.BAD_PROOF,
    httpx.codes.TOO_MANY_REQUESTS: Refusal.BUSY,
    httpx.codes.SERVICE_UNAVAILABLE: Refusal.BUSY,
}


class HttpWitnessClient:
    """One pool for all witnesses. Close it."""

    def __init__(self, *, timeout: timedelta, trusted: ssl.SSLContext) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._seconds = timeout.total_seconds()
        # No proxy of the environment and no redirect: settings alone say who is asked.
        self._client = httpx.AsyncClient(
            verify=trusted, trust_env=False, follow_redirects=False, timeout=self._seconds
        )

    async def add_checkpoint(self, witness: Witness, body: bytes) -> Answer:
        """See `WitnessClient.add_checkpoint`."""
        request = self._client.build_request(
            "POST",
            witness.url.rstrip("/") + "/add-checkpoint",
            content=body,
            # Not compressed: a bound on what comes is a bound on what it becomes.
            headers={"Content-Type": "text/plain; charset=utf-8", "Accept-Encoding": "identity"},
        )
        try:
            async with asyncio.timeout(self._seconds):
                response = await self._client.send(request, stream=True)
                try:
                    return _answer(response, await _bounded(response))
                finally:
                    await response.aclose()
        except MalformedError as error:
            return Refused(refusal=Refusal.MALFORMED, detail=str(error))
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError, OSError) as error:
            return Refused(refusal=Refusal.UNREACHABLE, detail=type(error).__name__)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _answer(response: httpx.Response, content: bytes) -> Answer:
    status = response.status_code
    if status == httpx.codes.OK:
        return Cosigned(lines=content)
    kind = response.headers.get("content-type", "").partition(";")[0].strip()
    if status == httpx.codes.CONFLICT and kind == SIZE_TYPE:
        return Stale(size=parse_size(content))
    return Refused(refusal=_REFUSALS.get(status, Refusal.FAILED), detail=f"status {status}")


async def _bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_raw(MAX_ANSWER_BYTES):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise MalformedError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)

"""Where issuers publish their keys for all: a URL, or what OpenID Connect discovery names.

Loaded only where such an issuer is configured: the HTTP library is a tenth of this process' memory.
"""

import asyncio
import json
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from control_plane.access.domain import is_trusted_url
from control_plane.access.jwks_files import MAX_DOCUMENT_BYTES
from shared.errors import UnavailableError

READ_SECONDS: Final = 5.0
"""Of one document, from the connection to its last byte."""

DISCOVERY: Final = "/.well-known/openid-configuration"


class HttpKeys:
    """Keys at a URL. Implements `KeySource`."""

    def __init__(self, *, url: str, trusted: ssl.SSLContext) -> None:
        self._url = url
        self._trusted = trusted

    async def read(self) -> bytes:
        """See `KeySource.read`."""
        return await fetch(self._url, self._trusted)


class DiscoveredKeys:
    """Keys at the URL that the issuer's discovery document names. Implements `KeySource`.

    OpenID Connect Discovery 1.0, section 4. Asked each time: issuers move their keys.
    """

    def __init__(self, *, issuer: str, trusted: ssl.SSLContext) -> None:
        self._issuer = issuer
        self._trusted = trusted

    async def read(self) -> bytes:
        """See `KeySource.read`."""
        address = self._issuer.rstrip("/") + DISCOVERY
        document = _json(await fetch(address, self._trusted), address)
        if document.get("issuer") != self._issuer:
            # Section 4.3: otherwise another issuer's document would name the keys.
            raise UnavailableError(f"{address} is the document of another issuer than {self._issuer}")
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not is_trusted_url(url):
            raise UnavailableError(f"{address} names no jwks_uri with https")
        return await fetch(url, self._trusted)


async def fetch(url: str, trusted: ssl.SSLContext) -> bytes:
    """Return the document at a URL: no redirects, no proxy of the environment, bounded in time and size.

    Raises:
        UnavailableError: It does not come so.
    """
    where = urlsplit(url)._replace(query="", fragment="").geturl()
    try:
        async with (
            asyncio.timeout(READ_SECONDS),
            httpx.AsyncClient(verify=trusted, trust_env=False, timeout=READ_SECONDS) as client,
            client.stream("GET", url, headers={"accept": "application/json"}) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise UnavailableError(f"{where} answers {answer.status_code}")
            return await _bounded(answer, where)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        raise UnavailableError(f"{where} does not answer: {type(error).__name__}") from error


async def _bounded(answer: httpx.Response, where: str) -> bytes:
    data = bytearray()
    async for chunk in answer.aiter_bytes(16 * 1024):
        data += chunk
        if len(data) > MAX_DOCUMENT_BYTES:
            raise UnavailableError(f"{where} sends more than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(data)


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnavailableError(f"{where} is not JSON") from error
    if not isinstance(document, dict):
        raise UnavailableError(f"{where} is no JSON object")
    return document

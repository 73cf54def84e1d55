"""Answers of the outside that a test brings along, so that an agent's checks run and no network is needed.

A file is a JSON list of `{"method": "GET", "url": "https://…", "status": 200, "headers": {…}, "body": …}`; a
body that is no text is sent as JSON. Every check of a node still runs before an answer is looked up.
"""

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data_plane.host_calls.domain import Refusal, refused
from data_plane.host_calls.ports import HttpRequest, HttpResponse
from data_plane.host_calls.secrets import Secret
from shared.errors import InvalidInputError
from shared.ids import TenantId
from shared.urls import IpAddress, Url

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_SOMEWHERE: Final = ipaddress.ip_address("8.8.8.8")
"""A public address, so that the check of addresses passes; nothing connects to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer that was recorded."""

    method: str
    url: str
    response: HttpResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Implements `HttpTransport` and `Resolver` by a file."""

    answers: tuple[Answer, ...]

    @classmethod
    def read(cls, path: Path) -> "Recorded":
        """Read a file of answers.

        Raises:
            InvalidInputError: It is too large, or not of that form.
        """
        try:
            data = path.read_bytes()
            if len(data) > MAX_FILE_BYTES:
                raise InvalidInputError(f"{path} has {len(data)} bytes, the bound is {MAX_FILE_BYTES}")
            return cls(answers=tuple(_answer(entry) for entry in json.loads(data)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(f"{path} is no list of recorded answers: {error!r}") from error

    async def exchange(
        self, request: HttpRequest, addresses: tuple[IpAddress, ...], *, max_body_bytes: int
    ) -> HttpResponse:
        """See `HttpTransport.exchange`."""
        del addresses
        for answer in self.answers:
            if (answer.method, answer.url) == (request.method, str(request.url)):
                if len(answer.response.body) > max_body_bytes:
                    raise refused(Refusal.RESPONSE_TOO_LARGE, f"more than {max_body_bytes} bytes")
                return answer.response
        raise refused(Refusal.CONNECT_FAILED, f"no answer is recorded for {request.method} {request.url}")

    async def resolve(self, host: str) -> tuple[IpAddress, ...]:
        """See `Resolver.resolve`."""
        del host
        return (_SOMEWHERE,)


def _answer(entry: dict[str, Any]) -> Answer:
    body = entry.get("body", "")
    text = body if isinstance(body, str) else json.dumps(body)
    headers = {"content-type": "application/json"} | dict(entry.get("headers", {}))
    return Answer(
        method=str(entry.get("method", "GET")),
        url=str(entry["url"]),
        response=HttpResponse(
            status=int(entry.get("status", 200)),
            headers=tuple((str(name).lower(), str(value)) for name, value in headers.items()),
            body=text.encode(),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInSecrets:
    """Implements `SecretStore`: each name has a value that opens nothing, for wherever the agent may call."""

    urls: tuple[Url, ...]

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:
        """See `SecretStore.find`."""
        del tenant_id
        return Secret(value=f"stand-in-for-{name}", urls=self.urls)

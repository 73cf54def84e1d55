"""What a guest may ask of `http.fetch`, and what of a response it may see. No I/O."""

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from data_plane.host_calls.domain import Params, Refusal, refused
from shared.manifest import HTTP_METHODS
from shared.urls import MAX_URL_CHARS, Url, parse_url

MAX_HEADERS: Final = 64
MAX_HEADER_CHARS: Final = 8192
MAX_HEADERS_CHARS: Final = 32 * 1024
"""Names and values together, of requests and of responses."""
MAX_PREFIX_CHARS: Final = 64
DEFAULT_TIMEOUT_MS: Final = 5_000
MAX_TIMEOUT_MS: Final = 60_000

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|", re.ASCII)
_OF_THE_NODE: Final = frozenset(
    {
        "accept-encoding", "connection", "content-length", "expect", "host", "http2-settings",
        "idempotency-key", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "via",
    }
)  # fmt: skip
_OF_PROXIES: Final = ("proxy-", "x-forwarded-", "forwarded")
_OVERRIDES: Final = frozenset(
    {
        "proxy", "x-http-method", "x-http-method-override", "x-method-override", "x-original-method",
        "x-original-uri", "x-original-url", "x-rewrite-url",
    }
)  # fmt: skip
"""By these some servers carry out another method, or another path, than the one that was checked."""
_SHOWN: Final = frozenset(
    {
        "age", "allow", "cache-control", "content-disposition", "content-encoding", "content-language",
        "content-length", "content-range", "content-type", "date", "etag", "expires", "last-modified", "link",
        "location", "retry-after", "vary", "x-request-id",
    }
)  # fmt: skip
_SHOWN_PREFIXES: Final = ("ratelimit-", "x-ratelimit-")
ORIGIN_BOUND_HEADERS: Final = frozenset({"authorization", "cookie"})
"""Left out when a redirect leads to another origin, whoever wrote them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretUse:
    """A header's value that the guest does not know."""

    handle: str
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One `http.fetch` as it was asked."""

    method: str
    url: Url
    headers: tuple[tuple[str, str | SecretUse], ...] = field(repr=False)
    body: bytes = field(repr=False)
    timeout: timedelta

    @property
    def is_unsafe(self) -> bool:
        """Whether it may change something at the other side (design.md, rule 6)."""
        return self.method not in {"GET", "HEAD"}


def read_fetch(params: Params) -> Fetch:
    """Take the request's fields.

    Raises:
        HostCallRefusedError: One is malformed, unknown, or not the guest's to say.
    """
    method = params.text("method", max_chars=16)
    if method not in HTTP_METHODS:
        raise refused(Refusal.INVALID_REQUEST, f"method is not one of {', '.join(sorted(HTTP_METHODS))}")
    url = parse_url(params.text("url", max_chars=MAX_URL_CHARS))
    timeout_ms = (
        params.integer("timeout_ms", minimum=1, maximum=MAX_TIMEOUT_MS)
        if params.has("timeout_ms")
        else DEFAULT_TIMEOUT_MS
    )
    fetch = Fetch(
        method=method,
        url=url,
        headers=_headers(params.object("headers")),
        body=_body(params),
        timeout=timedelta(milliseconds=timeout_ms),
    )
    params.end()
    return fetch


def shown_headers(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return the headers of a response that a guest sees, by lower-case name; repeated ones are joined.

    Raises:
        HostCallRefusedError: They are larger together than a guest gets.
    """
    shown: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in _SHOWN or lower.startswith(_SHOWN_PREFIXES):
            shown[lower] = f"{shown[lower]}, {value}" if lower in shown else value
    if sum(len(name) + len(value) for name, value in shown.items()) > MAX_HEADERS_CHARS:
        raise refused(
            Refusal.RESPONSE_TOO_LARGE, f"the headers have more than {MAX_HEADERS_CHARS} characters"
        )
    return shown


def _body(params: Params) -> bytes:
    if params.has("body") and params.has("body_base64"):
        raise refused(Refusal.INVALID_REQUEST, "body and body_base64 exclude each other")
    if params.has("body"):
        return params.text("body", max_chars=1 << 20).encode()
    return params.content("body_base64") or b""


def _headers(asked: dict[str, Any]) -> tuple[tuple[str, str | SecretUse], ...]:
    if len(asked) > MAX_HEADERS or len({name.lower() for name in asked}) != len(asked):
        raise refused(Refusal.INVALID_REQUEST, f"headers are not up to {MAX_HEADERS} different ones")
    size = 0
    headers = []
    for name, value in asked.items():
        lower = name.lower()
        if not _NAME.fullmatch(name):
            raise refused(Refusal.HEADER_FORBIDDEN, f"{name[:64]!r} is no name of a header")
        # Servers that hand headers on as variables cannot tell the two.
        plain = lower.replace("_", "-")
        if plain in _OF_THE_NODE | _OVERRIDES or plain.startswith(_OF_PROXIES):
            raise refused(Refusal.HEADER_FORBIDDEN, f"header {lower} is the node's to set")
        read = _secret_use(lower, value) if isinstance(value, dict) else _value(lower, value)
        size += len(name) + (len(read) if isinstance(read, str) else len(read.prefix))
        headers.append((lower, read))
    if size > MAX_HEADERS_CHARS:
        raise refused(Refusal.HEADER_FORBIDDEN, f"the headers have more than {MAX_HEADERS_CHARS} characters")
    return tuple(headers)


def _value(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_HEADER_CHARS or not _VALUE.fullmatch(value):
        raise refused(
            Refusal.HEADER_FORBIDDEN,
            f"header {name} is not up to {MAX_HEADER_CHARS} printable ASCII characters on one line",
        )
    return value


def _secret_use(name: str, value: dict[str, Any]) -> SecretUse:
    handle, prefix = value.get("secret"), value.get("prefix", "")
    known = set(value) <= {"secret", "prefix"}
    if not known or not isinstance(handle, str) or not isinstance(prefix, str):
        raise refused(Refusal.INVALID_REQUEST, f'header {name} is not a string or {{"secret", "prefix"}}')
    if len(prefix) > MAX_PREFIX_CHARS or not _VALUE.fullmatch(prefix.rstrip(" ")):
        raise refused(Refusal.HEADER_FORBIDDEN, f"the prefix of header {name} is not plain and short")
    return SecretUse(handle=handle, prefix=prefix)

"""Requests and answers of `agentfactory.call`, and why a call is refused. No I/O, no clock, no randomness."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from data_plane.orders.domain import AttemptRef
from data_plane.sandbox.domain import MAX_REQUEST_BYTES
from shared.canonical import JsonObject, parse_strict
from shared.digests import Digest
from shared.errors import HostCallRefusedError, MalformedError
from shared.ids import TenantId
from shared.limits import Limits
from shared.manifest import Capabilities
from shared.receipts import Denial
from shared.urls import URL_INVALID as _URL_INVALID

_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half of a character, which JSON can spell and UTF-8 cannot."""
_FIELDS: Final = frozenset({"method", "params"})
UNKNOWN_METHOD: Final = "unknown"
"""How denials name a method that nobody knows: the guest's text stays out of receipts."""
MAX_MESSAGE_CHARS: Final = 512


class Refusal(StrEnum):
    """Why a call has no result. Guests read these words; receipts carry the denials among them."""

    INVALID_REQUEST = "INVALID_REQUEST"
    UNKNOWN_METHOD = "UNKNOWN_METHOD"
    NOT_GRANTED = "NOT_GRANTED"
    URL_INVALID = _URL_INVALID
    NOT_ALLOWED_HERE = "NOT_ALLOWED_HERE"
    """The node's operator does not allow it, whatever was granted."""
    ADDRESS_FORBIDDEN = "ADDRESS_FORBIDDEN"
    HEADER_FORBIDDEN = "HEADER_FORBIDDEN"
    QUOTA_EXHAUSTED = "QUOTA_EXHAUSTED"
    SECRET_UNKNOWN = "SECRET_UNKNOWN"  # noqa: S105  # nosec B105 - a word
    SECRET_NOT_FOR_URL = "SECRET_NOT_FOR_URL"  # noqa: S105  # nosec B105 - a word
    MODEL_NOT_ALLOWED = "MODEL_NOT_ALLOWED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    LEASE_NOT_HELD = "LEASE_NOT_HELD"
    RECORDING_FULL = "RECORDING_FULL"
    TOO_MANY_REDIRECTS = "TOO_MANY_REDIRECTS"
    NAME_NOT_RESOLVED = "NAME_NOT_RESOLVED"
    CONNECT_FAILED = "CONNECT_FAILED"
    TLS_FAILED = "TLS_FAILED"
    HTTP_INVALID = "HTTP_INVALID"
    RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"
    ENDPOINT_AWAY = "ENDPOINT_AWAY"
    ENDPOINT_REFUSED = "ENDPOINT_REFUSED"
    ENDPOINT_INVALID = "ENDPOINT_INVALID"
    TIMEOUT = "TIMEOUT"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


FAILURES: Final = frozenset(
    {
        Refusal.INVALID_REQUEST,
        Refusal.TOO_MANY_REDIRECTS,
        Refusal.NAME_NOT_RESOLVED,
        Refusal.CONNECT_FAILED,
        Refusal.TLS_FAILED,
        Refusal.HTTP_INVALID,
        Refusal.RESPONSE_TOO_LARGE,
        Refusal.ENDPOINT_AWAY,
        Refusal.ENDPOINT_REFUSED,
        Refusal.ENDPOINT_INVALID,
        Refusal.TIMEOUT,
        Refusal.UNAVAILABLE,
        Refusal.INTERNAL,
    }
)
"""What went wrong rather than was denied. Every other word, also one of the control plane's, is a denial."""


def refused(refusal: Refusal, message: str) -> HostCallRefusedError:
    """Return the error that becomes the guest's answer."""
    return HostCallRefusedError(message, refusal=refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What decides what one run may call: the attempt, and of its verified order what was granted."""

    attempt: AttemptRef
    tenant_id: TenantId
    capabilities: Capabilities
    grants: frozenset[str]
    limits: Limits
    is_repeatable: bool
    """A profile that repeats a run exactly: no answer may tell the time."""
    key: bytes = field(repr=False)
    """Of the execution, the same for all its attempts; nobody outside the installation has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as the guest asked it."""

    index: int
    """0 for a run's first call."""
    method: str
    params: JsonObject = field(repr=False)
    digest: Digest
    """Of the exact bytes."""


class Params:
    """Takes the parameters of one call, each once; what is left over is refused."""

    def __init__(self, params: JsonObject) -> None:
        self._fields = dict(params)

    def text(self, name: str, *, max_chars: int) -> str:
        """Take a string."""
        value = self._fields.pop(name, None)
        if not isinstance(value, str) or len(value) > max_chars or _SURROGATE.search(value):
            raise refused(
                Refusal.INVALID_REQUEST, f"{name} is not a string of at most {max_chars} characters"
            )
        return value

    def has(self, name: str) -> bool:
        """Whether it is there and not null."""
        return self._fields.get(name) is not None

    def integer(self, name: str, *, minimum: int, maximum: int) -> int:
        """Take an integer."""
        value = self._fields.pop(name, None)
        if type(value) is not int or not minimum <= value <= maximum:
            raise refused(Refusal.INVALID_REQUEST, f"{name} is not an integer from {minimum} to {maximum}")
        return value

    def object(self, name: str) -> JsonObject:
        """Take an object; absent means empty."""
        value = self._fields.pop(name, None)
        if value is not None and not isinstance(value, dict):
            raise refused(Refusal.INVALID_REQUEST, f"{name} is not an object")
        return value or {}

    def objects(self, name: str, *, max_items: int) -> list[JsonObject]:
        """Take a list of objects, at least one."""
        value = self._fields.pop(name, None)
        if not isinstance(value, list) or not 0 < len(value) <= max_items:
            raise refused(Refusal.INVALID_REQUEST, f"{name} is not a list of 1 to {max_items} objects")
        if not all(isinstance(one, dict) for one in value):
            raise refused(Refusal.INVALID_REQUEST, f"{name} holds something that is no object")
        return value

    def raw(self, name: str) -> Any:
        """Take a value whatever it is: somebody else judges it."""
        return self._fields.pop(name)

    def content(self, name: str) -> bytes | None:
        """Take bytes in base64; null or absent is None."""
        value = self._fields.pop(name, None)
        if value is None:
            return None
        try:
            if not isinstance(value, str):
                raise TypeError  # noqa: TRY301 - one answer for both
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise refused(Refusal.INVALID_REQUEST, f"{name} is not base64") from error

    def end(self) -> None:
        """Refuse fields that nobody took: what is not known cannot be obeyed."""
        unknown = sorted(name for name, value in self._fields.items() if value is not None)
        if unknown:
            raise refused(Refusal.INVALID_REQUEST, f"unknown field {unknown[0][:64]!r}")


def parse_call(request: bytes, *, index: int, digest: Digest) -> Call:
    """Read the guest's bytes: `{"method": "…", "params": {…}}`.

    Raises:
        HostCallRefusedError: They are no JSON object with a method, or nested deeper than 32.
    """
    try:
        fields = parse_strict(request, max_bytes=MAX_REQUEST_BYTES)
    except MalformedError as error:
        raise refused(Refusal.INVALID_REQUEST, f"request: {error}") from error
    method, params = fields.get("method"), fields.get("params", {})
    if not isinstance(method, str) or not isinstance(params, dict) or not fields.keys() <= _FIELDS:
        raise refused(Refusal.INVALID_REQUEST, 'request is not {"method": "…", "params": {…}}')
    return Call(index=index, method=method, params=params, digest=digest)


def ok_response(result: Mapping[str, object]) -> bytes:
    """Return an answer's bytes."""
    return _dump({"ok": result})


def error_response(reason: str, message: str) -> bytes:
    """Return the bytes of a denial or failure."""
    return _dump({"error": {"reason": reason, "message": message[:MAX_MESSAGE_CHARS]}})


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def denial_of(method: str, refusal: str) -> Denial:
    """Return a denial as receipts spell it."""
    return Denial(method=method, reason=refusal.lower().replace(" ", "_")[:64])


def milliseconds(duration: timedelta) -> int:
    """Return whole milliseconds, never less than none."""
    return max(0, duration // timedelta(milliseconds=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWrite:
    """The last thing a run did to one key."""

    key: str
    value: bytes | None = field(repr=False)
    """None: removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """What the host calls of one run leave for its receipt."""

    recording: bytes = field(default=b"", repr=False)
    """Canonical JSON lines; empty when nothing was called."""
    denials: tuple[Denial, ...] = ()
    kv_writes: tuple[KvWrite, ...] = ()
    """In the order of their keys. They count only when the result does."""
    llm_tokens: int = 0
    llm_cost_micros: int = 0
    """Of language models; they count whatever comes of the run."""


NO_CALLS: Final = CallSummary()

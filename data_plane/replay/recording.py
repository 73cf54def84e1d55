"""Recordings of host calls: read strictly, and played to a guest that asks the same again.

The other side of `data_plane.host_calls.recorder`. Nothing here reaches outside.
"""

import base64
import binascii
import zlib
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry

from data_plane.host_calls.domain import CallContext, KvWrite, error_response, parse_call
from data_plane.host_calls.http_fetch import HttpPolicy
from data_plane.host_calls.ports import HttpRequest, HttpResponse
from data_plane.host_calls.secrets import Secret
from data_plane.host_calls.service import AttemptCalls, HostCallParts
from data_plane.metrics import NodeMetrics
from data_plane.orders.domain import AttemptRef
from data_plane.sandbox.domain import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, HostReply
from shared.canonical import JsonObject, parse_canonical
from shared.clock import SystemClock
from shared.digests import Digest, sha256_digest
from shared.errors import HostCallRefusedError, MalformedError, UnavailableError
from shared.fields import Fields
from shared.ids import TenantId
from shared.receipts import MAX_RECORDING_BYTES
from shared.resources import ResourcesUsed
from shared.urls import IpAddress

FREE: Final = frozenset({"log", "budget.left", "kv.put"})
"""What a replay answers itself as the node did: it depends on nothing outside the run."""
_MAX_METHOD_CHARS: Final = 64
_MAX_STATUS_CHARS: Final = 64
_MAX_CALLS: Final = 2**31 - 1
_NOT_AS_RECORDED: Final = "NOT_AS_RECORDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One line of a recording."""

    index: int
    method: str
    request_digest: Digest
    response_digest: Digest
    status: str
    is_scrubbed: bool
    response: bytes | None = field(default=None, repr=False)
    """None: only its digest was recorded."""

    @property
    def needs_recording(self) -> bool:
        """Whether nobody but the recording can answer it."""
        return self.method not in FREE


def parse_recording(data: bytes) -> tuple[RecordedCall, ...]:
    """Return the lines of a recording whose commitment was checked.

    Raises:
        MalformedError: It is longer than a node records, or a line is not one that a node writes.
    """
    if len(data) > MAX_RECORDING_BYTES:
        raise MalformedError(f"recording has {len(data)} bytes, the bound is {MAX_RECORDING_BYTES}")
    calls = tuple(_call(line) for line in data.splitlines())
    if [call.index for call in calls] != sorted({call.index for call in calls}):
        raise MalformedError("recording: its calls are not in their order, each once")
    return calls


def _call(line: bytes) -> RecordedCall:
    document: JsonObject = parse_canonical(line, max_bytes=MAX_RECORDING_BYTES)
    scrubbed = document.pop("scrubbed", None)
    request = _unpacked(document.pop("request", None), "request", MAX_REQUEST_BYTES)
    response = _unpacked(document.pop("response", None), "response", MAX_RESPONSE_BYTES)
    fields = Fields(document, "recording")
    call = RecordedCall(
        index=fields.integer("index", maximum=_MAX_CALLS),
        method=fields.text("method", max_chars=_MAX_METHOD_CHARS),
        request_digest=fields.digest("request_digest"),
        response_digest=fields.digest("response_digest"),
        status=fields.text("status", max_chars=_MAX_STATUS_CHARS),
        is_scrubbed=scrubbed is not None,
        response=response,
    )
    fields.end()
    if request is not None and sha256_digest(request) != call.request_digest:
        raise MalformedError(f"recording: the request of call {call.index} is not the one of its digest")
    if call.response is not None and sha256_digest(call.response) != call.response_digest:
        raise MalformedError(f"recording: the response of call {call.index} is not the one of its digest")
    return call


def _unpacked(text: object, name: str, max_bytes: int) -> bytes | None:
    if text is None:
        return None
    try:
        if not isinstance(text, str):
            raise TypeError  # noqa: TRY301 - one answer for all
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), max_bytes + 1)
    except (binascii.Error, ValueError, TypeError, zlib.error) as error:
        raise MalformedError(f"recording: {name} is not packed as nodes do") from error
    if len(data) > max_bytes or not unpacker.eof or unpacker.unused_data:
        raise MalformedError(f"recording: {name} has more than {max_bytes} bytes, or no end")
    return data


class PlayedCalls:
    """Implements `HostCalls`: what a guest asked before is answered as before, and nothing else is."""

    def __init__(self, recording: tuple[RecordedCall, ...], *, free: AttemptCalls) -> None:
        self._recorded = {call.index: call for call in recording}
        self._is_recorded = bool(recording)
        self._free = free
        self.asked = 0
        self.mismatch = ""
        """The first call that was not as recorded."""

    async def answer(self, request: bytes, used: ResourcesUsed) -> HostReply:
        """See `HostCalls.answer`."""
        index, self.asked = self.asked, self.asked + 1
        method = _method_of(request, index)
        # Also of what is recorded: a line in the log and a written key are more than their answers.
        own = await self._free.answer(request, used) if method in FREE else None
        if own is not None and (method == "log" or not self._is_recorded):
            return own  # lines of the log are in the log, and not recorded as well
        recorded = self._recorded.get(index)
        if recorded is None or recorded.request_digest != sha256_digest(request):
            return self._refuse(index, method, "it asks what was not asked then")
        if recorded.response is not None:
            return HostReply(response=recorded.response, log=b"" if own is None else own.log)
        if own is None or sha256_digest(own.response) != recorded.response_digest:
            return self._refuse(index, method, "its answer cannot be given again")
        return own

    def finish(self) -> None:
        """Note what was recorded and not asked again."""
        missing = [call for index, call in sorted(self._recorded.items()) if index >= self.asked]
        if missing and not self.mismatch:
            self.mismatch = f"host call {missing[0].index} ({missing[0].method}) was not asked again"

    @property
    def writes(self) -> tuple[KvWrite, ...]:
        """What was written this time."""
        return self._free.conclude().kv_writes

    def _refuse(self, index: int, method: str, why: str) -> HostReply:
        self.mismatch = self.mismatch or f"host call {index} ({method}): {why}"
        return HostReply(response=error_response(_NOT_AS_RECORDED, why))


def _method_of(request: bytes, index: int) -> str:
    try:
        return parse_call(request, index=index, digest=sha256_digest(request)).method
    except HostCallRefusedError:
        return "unknown"


class Nothing:
    """Implements the ports by which host calls reach outside: a replay reaches nothing."""

    async def get(self, attempt: AttemptRef, key: str) -> bytes | None:
        """See `KvStore.get`: the recording answers instead."""
        raise UnavailableError(f"a replay reads no key of {attempt.execution_id}: {key[:16]!r}")

    async def declare(self, attempt: AttemptRef) -> None:
        """See `UnsafeIntents.declare`: there is no effect outside."""

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:  # noqa: ARG002 - the port's
        """See `SecretStore.find`: a replay holds none."""
        return None

    async def resolve(self, host: str) -> tuple[IpAddress, ...]:
        """See `Resolver.resolve`."""
        raise UnavailableError(f"a replay resolves no name: {host[:64]!r}")

    async def exchange(
        self,
        request: HttpRequest,
        addresses: tuple[IpAddress, ...],
        *,
        max_body_bytes: int,  # noqa: ARG002 - the port's
    ) -> HttpResponse:
        """See `HttpTransport.exchange`."""
        raise UnavailableError(f"a replay sends nothing to {len(addresses)} addresses: {request.method}")


def free_calls(context: CallContext) -> AttemptCalls:
    """Return what answers the calls that depend on nothing outside their run, as a node does."""
    nothing = Nothing()
    parts = HostCallParts(
        policy=HttpPolicy(allowed=(), networks=()),
        transport=nothing,
        resolver=nothing,
        intents=nothing,
        kv=nothing,
        secrets=nothing,
        metrics=NodeMetrics(CollectorRegistry(), SystemClock()),
    )
    return parts.begin(context, lambda: True)

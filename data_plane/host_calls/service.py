"""The host calls of one run: reads each request, lets its method answer, and keeps what the receipt needs."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from data_plane.host_calls.domain import (
    FAILURES,
    UNKNOWN_METHOD,
    Call,
    CallContext,
    CallSummary,
    Params,
    Refusal,
    denial_of,
    error_response,
    milliseconds,
    ok_response,
    parse_call,
    refused,
)
from data_plane.host_calls.http_fetch import HttpFetcher, HttpPolicy
from data_plane.host_calls.kv import KvBuffer
from data_plane.host_calls.llm_complete import LlmCompleter, LlmPolicy
from data_plane.host_calls.ports import HttpTransport, KvStore, Resolver, SecretStore, UnsafeIntents
from data_plane.host_calls.recorder import Recorder
from data_plane.host_calls.secrets import Secret, handle_of
from data_plane.metrics import HostCallSeen, NodeMetrics
from data_plane.sandbox.domain import MAX_RESPONSE_BYTES, HostReply
from shared.canonical import JsonObject
from shared.digests import Digest, sha256_digest
from shared.errors import HostCallRefusedError, UnavailableError
from shared.logs import get_logger
from shared.receipts import Denial, merge_denials
from shared.resources import ResourcesUsed
from shared.tracing import NO_PART, Part, SpanKind

logger = get_logger(__name__)

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_LOG_MESSAGE_CHARS: Final = 8192
MAX_LOG_FIELDS: Final = 32
MAX_LOG_VALUE_CHARS: Final = 1024
MAX_NAME_CHARS: Final = 63
_FREE: Final = frozenset({"log", "budget.left"})
"""Granted to everybody: they reach nothing outside."""
_CANCELLED: Final = "CANCELLED"
_OTHER: Final = "OTHER"
"""In metrics: a word of the control plane's that this node does not know."""
_RESULTS: Final = frozenset({"ok", *Refusal})

Method = Callable[[Call, ResourcesUsed], Awaitable[Mapping[str, object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCallParts:
    """What all runs of a node share."""

    policy: HttpPolicy
    transport: HttpTransport
    resolver: Resolver
    intents: UnsafeIntents
    kv: KvStore
    secrets: SecretStore
    metrics: NodeMetrics
    llm: LlmPolicy = field(default_factory=LlmPolicy)

    def begin(
        self, context: CallContext, is_lease_live: Callable[[], bool], run: Part = NO_PART
    ) -> "AttemptCalls":
        """Return the calls of one run, none made yet; `run` is the span that theirs come below."""
        return AttemptCalls(context, self, is_lease_live, run)


class AttemptCalls:
    """Implements `HostCalls` for one run. Every call ends in an answer, whatever the guest sent."""

    def __init__(
        self,
        context: CallContext,
        parts: HostCallParts,
        is_lease_live: Callable[[], bool],
        run: Part = NO_PART,
    ) -> None:
        self._context = context
        self._run = run
        self._metrics = parts.metrics
        self._secret_store = parts.secrets
        self._secrets: dict[str, Secret] = {}
        self._kv = KvBuffer(parts.kv, context.attempt)
        self._http = HttpFetcher(
            context=context,
            policy=parts.policy,
            transport=parts.transport,
            resolver=parts.resolver,
            intents=parts.intents,
            is_lease_live=is_lease_live,
        )
        self._llm = LlmCompleter(
            context=context,
            policy=parts.llm,
            transport=parts.transport,
            resolver=parts.resolver,
            secrets=parts.secrets,
            is_lease_live=is_lease_live,
        )
        self._is_lease_live = is_lease_live
        self._recorder = Recorder(
            is_on=bool(context.grants), keeps_bytes=context.capabilities.record_host_calls
        )
        self._denials: list[Denial] = []
        self._next_index = 0
        self._log = b""
        self._methods: dict[str, Method] = {
            "log": self._write_log,
            "budget.left": self._budget_left,
            "http.fetch": self._fetch,
            "secret.ref": self._refer_to_secret,
            "kv.get": self._kv_get,
            "kv.put": self._kv_put,
            "llm.complete": self._complete,
        }

    async def answer(self, request: bytes, used: ResourcesUsed) -> HostReply:
        """See `HostCalls.answer`."""
        seen = HostCallSeen(method=UNKNOWN_METHOD, result=_CANCELLED, request_bytes=len(request))
        with self._metrics.host_call(seen):
            part = self._run.trail.part("host call", kind=SpanKind.CLIENT, parent=self._run)
            try:
                reply = await self._answer(request, used, seen)
                seen.response_bytes = len(reply.response)
            finally:
                _end_part(part, seen)
            return reply

    async def _answer(self, request: bytes, used: ResourcesUsed, seen: HostCallSeen) -> HostReply:
        index, self._next_index = self._next_index, self._next_index + 1
        digest = sha256_digest(request)
        self._log = b""
        method: str | None = None
        status = "ok"
        try:
            call = self._read(request, index=index, digest=digest)
            method = call.method if call.method in self._methods else None
            seen.method = method or UNKNOWN_METHOD
            if method != "log":
                self._recorder.require_room(request)
            response = ok_response(await self._carry_out(call, used))
        except HostCallRefusedError as error:
            status, response = (
                error.refusal,
                error_response(error.refusal, self._scrubbed(str(error))),
            )
        except UnavailableError as error:
            status, response = Refusal.UNAVAILABLE, error_response(Refusal.UNAVAILABLE, str(error))
        except asyncio.CancelledError:
            # The run has ended, but the call may have left: it is written down without an answer.
            self._recorder.add(
                index=index, method=method, request=request, digest=digest, response=b"", status=_CANCELLED
            )
            raise
        except Exception:
            logger.exception("a host call failed", method=method or UNKNOWN_METHOD)
            message = "the node could not answer; its log says why"
            status, response = Refusal.INTERNAL, error_response(Refusal.INTERNAL, message)
        if len(response) > MAX_RESPONSE_BYTES:
            status = Refusal.RESPONSE_TOO_LARGE
            response = error_response(status, f"the answer has more than {MAX_RESPONSE_BYTES} bytes")
        seen.result = status if status in _RESULTS else _OTHER
        if status != "ok" and status not in FAILURES:
            self._denials.append(denial_of(method or UNKNOWN_METHOD, status))
            self._denials = list(merge_denials(self._denials))
        # What was logged is in the log already; what found no room in the recording cannot be in it.
        if method != "log" and status != Refusal.RECORDING_FULL:
            self._recorder.add(
                index=index,
                method=method,
                request=request,
                digest=digest,
                response=response,
                status=status,
                is_scrubbed=(method == "http.fetch" and self._http.scrubber.is_armed)
                or (method == "llm.complete" and self._llm.has_scrubbed),
            )
        return HostReply(response=response, log=self._log)

    def conclude(self) -> CallSummary:
        """Return what the receipt says about the calls; call it once, when the run has ended."""
        self._metrics.recorded(plain=self._recorder.plain_bytes, packed=self._recorder.packed_bytes)
        return CallSummary(
            recording=self._recorder.content,
            denials=tuple(self._denials),
            kv_writes=self._kv.writes,
            llm_tokens=self._llm.tokens,
            llm_cost_micros=self._llm.cost_micros,
        )

    def _scrubbed(self, message: str) -> str:
        return self._llm.scrub_text(self._http.scrubber.scrub_text(message))

    def _read(self, request: bytes, *, index: int, digest: Digest) -> Call:
        try:
            return parse_call(request, index=index, digest=digest)
        except HostCallRefusedError:
            self._recorder.require_room(request)  # what nobody can read is written down too
            raise

    async def _carry_out(self, call: Call, used: ResourcesUsed) -> Mapping[str, object]:
        method = self._methods.get(call.method)
        if method is None:
            raise refused(
                Refusal.UNKNOWN_METHOD, f"there is no {call.method[:64]!r}; {', '.join(self._methods)}"
            )
        if call.method not in _FREE and call.method not in self._context.grants:
            raise refused(Refusal.NOT_GRANTED, f"{call.method} is not granted to this run")
        if call.method not in _FREE and not self._is_lease_live():
            raise refused(Refusal.LEASE_NOT_HELD, "the attempt's lease has run out")
        return await method(call, used)

    async def _write_log(self, call: Call, _: ResourcesUsed) -> Mapping[str, object]:
        params = Params(call.params)
        level = params.text("level", max_chars=16)
        if level not in LEVELS:
            raise refused(Refusal.INVALID_REQUEST, f"level is not one of {', '.join(LEVELS)}")
        message = params.text("message", max_chars=MAX_LOG_MESSAGE_CHARS)
        line = {"level": level, "message": message, **_log_fields(params.object("fields"))}
        params.end()
        # JSON escapes every line end within, so that one call is one line.
        self._log = (
            json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n"
        )
        return {}

    async def _budget_left(self, call: Call, used: ResourcesUsed) -> Mapping[str, object]:
        Params(call.params).end()
        limits = self._context.limits
        left: dict[str, object] = {
            "host_calls": limits.host_calls - used.host_calls,
            "host_call_bytes": limits.host_call_bytes - used.host_call_bytes,
            "output_bytes": limits.output_bytes - used.output_bytes,
            "log_bytes": limits.log_bytes - used.log_bytes,
            "log_lines": limits.log_lines - used.log_lines,
            "random_bytes": limits.random_bytes - used.random_bytes,
            "scratch_bytes": limits.scratch_bytes - used.scratch_bytes,
            "scratch_inodes": limits.scratch_inodes - used.scratch_inodes,
            "memory_bytes": limits.memory_bytes - used.peak_memory_bytes,
        }
        if not self._context.is_repeatable:
            left |= {
                "wall_ms": milliseconds(limits.wall - used.wall),
                "cpu_ms": milliseconds(limits.cpu - used.cpu),
                "host_call_ms": milliseconds(
                    timedelta(milliseconds=limits.host_call_ms) - used.host_call_time
                ),
            }
        return left

    async def _fetch(self, call: Call, _: ResourcesUsed) -> Mapping[str, object]:
        return await self._http.fetch(call, self._secrets)

    async def _complete(self, call: Call, _: ResourcesUsed) -> Mapping[str, object]:
        before = self._llm.tokens
        try:
            return await self._llm.complete(call)
        finally:
            self._metrics.llm_tokens.inc(self._llm.tokens - before)

    async def _refer_to_secret(self, call: Call, _: ResourcesUsed) -> Mapping[str, object]:
        params = Params(call.params)
        name = params.text("name", max_chars=MAX_NAME_CHARS)
        params.end()
        if name not in self._context.capabilities.secrets:
            raise refused(Refusal.NOT_GRANTED, "the secret is not granted to this run")
        secret = await self._secret_store.find(self._context.tenant_id, name)
        if secret is None:
            raise refused(Refusal.SECRET_UNKNOWN, f"this node has no secret {name}")
        handle = handle_of(self._context.key, name)
        self._secrets[handle] = secret
        return {"handle": handle}

    async def _kv_get(self, call: Call, _: ResourcesUsed) -> Mapping[str, object]:
        return await self._kv.get(Params(call.params))

    async def _kv_put(self, call: Call, _: ResourcesUsed) -> Mapping[str, object]:
        return self._kv.put(Params(call.params))


def _end_part(part: Part, seen: HostCallSeen) -> None:
    """Say of a call what the metrics say, and neither where it went nor what it carried."""
    if part is not NO_PART:
        part.name = seen.method
        part.end(
            failed="" if seen.result == "ok" else str(seen.result),
            result=str(seen.result),
            request_bytes=seen.request_bytes,
            response_bytes=seen.response_bytes,
        )


def _log_fields(fields: JsonObject) -> JsonObject:
    if len(fields) > MAX_LOG_FIELDS or fields.keys() & {"level", "message"}:
        raise refused(
            Refusal.INVALID_REQUEST, f"fields are not up to {MAX_LOG_FIELDS} beside level and message"
        )
    for name, value in fields.items():
        is_plain = value is None or isinstance(value, str | int | float | bool)
        size = len(value) if isinstance(value, str) else 0
        if not is_plain or max(size, len(name)) > MAX_LOG_VALUE_CHARS:
            raise refused(Refusal.INVALID_REQUEST, f"field {name[:64]!r} is no plain value of that size")
    return fields

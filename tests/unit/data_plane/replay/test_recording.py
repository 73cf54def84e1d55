"""Recordings: what a node writes is read and played, and nothing else is."""

import base64
import json
import zlib

import pytest

from data_plane.host_calls.domain import CallContext
from data_plane.host_calls.recorder import Recorder
from data_plane.orders.domain import AttemptRef
from data_plane.replay.recording import PlayedCalls, free_calls, parse_recording
from data_plane.sandbox.domain import MAX_RESPONSE_BYTES
from shared.digests import sha256_digest
from shared.errors import MalformedError, VerificationError
from shared.ids import ExecutionId, TenantId
from shared.limits import Limits
from shared.manifest import Capabilities
from shared.resources import NO_RESOURCES

FETCH = b'{"method":"http.fetch","params":{"method":"GET","url":"https://a.test/"}}'
PUT = b'{"method":"kv.put","params":{"key":"k","value_base64":"YQ=="}}'
ANSWER = b'{"ok":{"status":200}}'


def recorded(*calls: tuple[bytes, bytes, str], keeps_bytes: bool = True, scrubbed: bool = False) -> bytes:
    recorder = Recorder(is_on=True, keeps_bytes=keeps_bytes)
    for index, (request, response, method) in enumerate(calls):
        recorder.add(
            index=index,
            method=method,
            request=request,
            digest=sha256_digest(request),
            response=response,
            status="ok",
            is_scrubbed=scrubbed,
        )
    return recorder.content


def played(recording: bytes) -> PlayedCalls:
    context = CallContext(
        attempt=AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=1),
        tenant_id=TenantId("default"),
        capabilities=Capabilities(kv=True),
        grants=frozenset({"kv.put", "kv.get", "http.fetch"}),
        limits=Limits(),
        is_repeatable=True,
        key=bytes(32),
    )
    return PlayedCalls(parse_recording(recording), free=free_calls(context))


async def test_what_was_answered_is_answered_again_and_writes_are_made_again() -> None:
    calls = played(recorded((FETCH, ANSWER, "http.fetch"), (PUT, b'{"ok":{}}', "kv.put")))
    assert (await calls.answer(FETCH, NO_RESOURCES)).response == ANSWER
    assert (await calls.answer(PUT, NO_RESOURCES)).response == b'{"ok":{}}'
    calls.finish()
    assert [write.key for write in calls.writes] == ["k"]
    assert calls.mismatch == ""


async def test_lines_of_the_log_count_as_calls_and_are_not_in_the_recording() -> None:
    log = b'{"method":"log","params":{"level":"info","message":"x"}}'
    recorder = Recorder(is_on=True, keeps_bytes=True)
    recorder.add(
        index=1, method="http.fetch", request=FETCH, digest=sha256_digest(FETCH), response=ANSWER, status="ok"
    )
    calls = played(recorder.content)
    assert (await calls.answer(log, NO_RESOURCES)).log
    assert (await calls.answer(FETCH, NO_RESOURCES)).response == ANSWER
    calls.finish()
    assert calls.mismatch == ""


async def test_another_question_is_a_difference_and_reaches_nothing() -> None:
    calls = played(recorded((FETCH, ANSWER, "http.fetch")))
    answer = await calls.answer(FETCH.replace(b"a.test", b"b.test"), NO_RESOURCES)
    assert b"NOT_AS_RECORDED" in answer.response
    assert calls.mismatch.startswith("host call 0 (http.fetch)")


async def test_a_question_that_is_not_asked_again_is_a_difference() -> None:
    calls = played(recorded((FETCH, ANSWER, "http.fetch")))
    calls.finish()
    assert calls.mismatch == "host call 0 (http.fetch) was not asked again"


def test_digests_only_and_secrets_are_seen() -> None:
    (call,) = parse_recording(recorded((FETCH, ANSWER, "http.fetch"), keeps_bytes=False))
    assert call.needs_recording
    assert call.response is None
    (call,) = parse_recording(recorded((FETCH, ANSWER, "http.fetch"), scrubbed=True))
    assert call.is_scrubbed


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"response": packed(b"another")},
        {"request": packed(b"another")},
        {"response": packed(bytes(MAX_RESPONSE_BYTES + 1))},
        {"response": "no base64"},
        {"response": packed(ANSWER)[:-8]},
        {"index": -1},
        {"method": ""},
        {"unknown": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_line_that_no_node_writes_is_refused(changes: dict[str, object]) -> None:
    line = json.loads(recorded((FETCH, ANSWER, "http.fetch"))) | changes
    encoded = json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(VerificationError):
        parse_recording(encoded + b"\n")


def test_a_call_that_is_there_twice_is_refused() -> None:
    line = recorded((FETCH, ANSWER, "http.fetch"))
    with pytest.raises(MalformedError):
        parse_recording(line + line)

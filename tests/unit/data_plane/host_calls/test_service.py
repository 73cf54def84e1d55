"""Every call ends in an answer; what was denied, said and written is what the receipt gets."""

import asyncio
import base64
import json
import random
import zlib
from datetime import timedelta

import pytest

from data_plane.host_calls.domain import KvWrite
from data_plane.host_calls.kv import MAX_WRITTEN_BYTES, MAX_WRITTEN_KEYS, encode_writes
from data_plane.host_calls.ports import HttpResponse
from data_plane.sandbox.domain import MAX_RESPONSE_BYTES
from shared.digests import sha256_digest
from shared.errors import HostCallRefusedError, UnavailableError
from shared.limits import Limits
from shared.manifest import Capabilities
from shared.receipts import MAX_RECORDING_BYTES
from shared.resources import ResourcesUsed
from tests.fakes.host_calls import FakeTransport
from tests.unit.data_plane.host_calls.builders import ATTEMPT, World, b64, get

KV = Capabilities(kv=True)


async def test_log_becomes_one_line_of_the_guests_log():
    world = World()
    answer = await world.call(
        "log", level="info", message="a\nb\u2028\0", fields={"n": 1, "s": "x\n", "z": None}
    )
    line = answer.pop("log")
    assert answer == {"ok": {}}
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"level": "info", "message": "a\nb\u2028\0", "n": 1, "s": "x\n", "z": None}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"level": "loud", "message": "x"},
        {"level": "info", "message": 1},
        {"level": "info", "message": "x" * 8193},
        {"level": "info", "message": "x", "fields": {"level": "error"}},
        {"level": "info", "message": "x", "fields": {"a": [1]}},
        {"level": "info", "message": "x", "fields": {"a": {}}},
        {"level": "info", "message": "x", "fields": {str(index): 1 for index in range(33)}},
        {"level": "info", "message": "x", "fields": []},
        {"level": "info", "message": "x", "more": 1},
    ],
)
async def test_log_lines_that_are_none(params):
    assert await World().refusal("log", **params) == "INVALID_REQUEST"


async def test_what_is_left_is_the_limits_without_what_was_used():
    limits = Limits(wall_ms=1000, cpu_ms=500, host_calls=10, output_bytes=100)
    used = ResourcesUsed(
        wall=timedelta(milliseconds=250), cpu=timedelta(seconds=9), host_calls=3, output_bytes=40
    )
    answer = await World(limits=limits).raw(b'{"method":"budget.left"}', used)
    left = answer["ok"]
    assert (left["wall_ms"], left["cpu_ms"], left["host_calls"], left["output_bytes"]) == (750, 0, 7, 60)


async def test_what_is_left_tells_no_time_where_a_run_must_repeat_itself():
    answer = await World(is_repeatable=True).raw(b'{"method":"budget.left"}', ResourcesUsed())
    assert not [name for name in answer["ok"] if name.endswith("_ms")]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"method":1}',
        b'{"method":"log","params":[]}',
        b'{"method":"log","more":1}',
        b'{"method":"log","method":"log"}',
        b'{"method":"log","params":{"level":"info","message":"\\ud800"}}',
        b'{"method":"log","params":{"level":"info","message":"x","fields":{"n":' + b"9" * 5000 + b"}}}",
        b'{"method":"log","params":{"level":"info","message":"x","fields":{"n":1e999}}}',
        b'{"method":"log","params":{"level":"info","message":"x","fields":{"n":NaN}}}',
        b'{"a":' * 100_000,
        b"[" * 500_000,
        b'{"method":"log","params":{"level":"info","message":"x","fields":' + b"[" * 40 + b"]" * 40 + b"}}",
    ],
)
async def test_garbage_is_answered(request_bytes):
    world = World()
    answer = await world.raw(request_bytes)
    assert answer["error"]["reason"] == "INVALID_REQUEST"
    assert world.denials == {}


async def test_methods_that_are_not_granted_or_unknown_are_denied_and_counted():
    world = World()
    assert await world.refusal("http.fetch", method="GET", url="https://api.test/") == "NOT_GRANTED"
    assert await world.refusal("kv.get", key="a") == "NOT_GRANTED"
    assert await world.refusal("kv.put", key="a") == "NOT_GRANTED"
    assert await world.refusal("secret.ref", name="api") == "NOT_GRANTED"
    assert await world.refusal("exec\n" + "x" * 9999) == "UNKNOWN_METHOD"
    assert await world.refusal("kv.get", key="a") == "NOT_GRANTED"
    assert world.denials == {
        ("http.fetch", "not_granted"): 1,
        ("kv.get", "not_granted"): 2,
        ("kv.put", "not_granted"): 1,
        ("secret.ref", "not_granted"): 1,
        ("unknown", "unknown_method"): 1,
    }


async def test_grant_that_the_order_does_not_name_is_none():
    world = World(capabilities=KV, grants=frozenset({"kv.put"}))
    assert await world.refusal("kv.get", key="a") == "NOT_GRANTED"
    assert await world.ok("kv.put", key="a") == {}


async def test_nothing_outside_is_reached_after_the_lease():
    world = World(capabilities=Capabilities(kv=True, http=(get(),)), is_live=False)
    assert await world.refusal("kv.get", key="a") == "LEASE_NOT_HELD"
    assert await world.fetch_refused() == "LEASE_NOT_HELD"
    assert world.transport.tried == []
    assert "ok" in await world.call("budget.left")


async def test_reads_see_what_the_run_has_written():
    world = World(capabilities=KV)
    world.control_plane.values["kept"] = b"old"
    assert await world.ok("kv.get", key="kept") == {"found": True, "value_base64": b64(b"old")}
    assert await world.ok("kv.get", key="none") == {"found": False}
    await world.ok("kv.put", key="kept", value_base64=b64(b"new"))
    await world.ok("kv.put", key="empty", value_base64="")
    assert await world.ok("kv.get", key="kept") == {"found": True, "value_base64": b64(b"new")}
    await world.ok("kv.put", key="kept", value_base64=None)
    assert await world.ok("kv.get", key="kept") == {"found": False}
    assert await world.ok("kv.get", key="empty") == {"found": True, "value_base64": ""}
    writes = world.calls.conclude().kv_writes
    assert writes == (KvWrite(key="empty", value=b""), KvWrite(key="kept", value=None))
    assert encode_writes(()) == b""
    assert encode_writes(writes) == encode_writes(writes)
    assert world.control_plane.values == {"kept": b"old"}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"key": ""},
        {"key": "x" * 257},
        {"key": "a\0"},
        {"key": "a\n"},
        {"key": "a", "value_base64": "?"},
        {"key": "a", "value_base64": 1},
        {"key": "a", "value_base64": b64(bytes(65537))},
        {"key": "a", "value": "x"},
    ],
)
async def test_writes_that_are_none(params):
    world = World(capabilities=KV)
    assert await world.refusal("kv.put", **params) == "INVALID_REQUEST"
    assert world.calls.conclude().kv_writes == ()


async def test_run_that_writes_too_many_keys():
    world = World(capabilities=KV)
    for index in range(MAX_WRITTEN_KEYS):
        await world.ok("kv.put", key=f"k{index}", value_base64="")
    assert await world.refusal("kv.put", key="more", value_base64="") == "QUOTA_EXHAUSTED"
    await world.ok("kv.put", key="k0", value_base64=b64(b"again"))
    assert len(world.calls.conclude().kv_writes) == MAX_WRITTEN_KEYS
    assert world.denials == {("kv.put", "quota_exhausted"): 1}


async def test_run_that_writes_too_much():
    world = World(capabilities=KV)
    for index in range(MAX_WRITTEN_BYTES // 65536 - 1):
        await world.ok("kv.put", key=f"k{index}", value_base64=b64(bytes(65536)))
    await world.ok("kv.put", key="x", value_base64=b64(bytes(65536 - 7)))
    assert await world.refusal("kv.put", key="y", value_base64="") == "QUOTA_EXHAUSTED"
    await world.ok("kv.put", key="x", value_base64="")


@pytest.mark.parametrize(
    ("error", "reason", "denied"),
    [
        (UnavailableError("away"), "UNAVAILABLE", False),
        (HostCallRefusedError("gone", refusal="LEASE_NOT_HELD"), "LEASE_NOT_HELD", True),
        (RuntimeError("a defect"), "INTERNAL", False),
    ],
)
async def test_what_the_control_plane_says_is_the_answer(error, reason, denied):
    world = World(capabilities=KV)
    world.control_plane.error = error
    assert await world.refusal("kv.get", key="a") == reason
    assert bool(world.denials) is denied


async def test_recording_names_each_call_by_its_exact_bytes():
    world = World(capabilities=KV)
    request = b' {"method": "kv.get", "params": {"key": "a"}}'
    reply = await world.calls.answer(request, ResourcesUsed())
    await world.call("log", level="info", message="not again")
    await world.call("nothing")
    assert world.recording == [
        {
            "index": 0,
            "method": "kv.get",
            "request_digest": sha256_digest(request),
            "response_digest": sha256_digest(reply.response),
            "status": "ok",
        },
        {**world.recording[1], "index": 2, "method": "unknown", "status": "UNKNOWN_METHOD"},
    ]


async def test_recording_keeps_the_bytes_when_the_order_asks():
    world = World(capabilities=Capabilities(kv=True, record_host_calls=True))
    request = b'{"method":"kv.get","params":{"key":"a"}}'
    reply = await world.calls.answer(request, ResourcesUsed())
    (line,) = world.recording
    assert zlib.decompress(base64.b64decode(line["request"])) == request
    assert zlib.decompress(base64.b64decode(line["response"])) == reply.response


async def test_run_without_grants_leaves_no_recording():
    world = World()
    await world.call("budget.left")
    await world.call("kv.get", key="a")
    assert world.calls.conclude().recording == b""


async def test_nothing_is_called_that_cannot_be_recorded():
    world = World(capabilities=Capabilities(kv=True, record_host_calls=True))
    reasons = set()
    for index in range(120):
        value = b64(random.Random(index).randbytes(50_000))
        answer = await world.call("kv.put", key=f"k{index % 3}", value_base64=value)
        reasons.add(answer.get("error", {}).get("reason", "ok"))
    assert "RECORDING_FULL" in reasons
    summary = world.calls.conclude()
    assert MAX_RECORDING_BYTES // 2 < len(summary.recording) <= MAX_RECORDING_BYTES
    assert any(one.reason == "recording_full" for one in summary.denials)


async def test_garbage_cannot_make_a_recording_larger_than_it_may_be():
    world = World(capabilities=Capabilities(kv=True, record_host_calls=True))
    garbage = random.Random(7).randbytes(500_000)
    reasons = [(await world.raw(garbage))["error"]["reason"] for _ in range(12)]
    assert set(reasons) == {"INVALID_REQUEST", "RECORDING_FULL"}
    assert len(world.calls.conclude().recording) <= MAX_RECORDING_BYTES
    assert world.denials == {("unknown", "recording_full"): reasons.count("RECORDING_FULL")}


async def test_call_that_the_end_of_the_run_cuts_off_is_written_down():
    world = World(capabilities=Capabilities(http=(get(),)))
    world.transport.gate.clear()
    task = asyncio.create_task(world.fetch())
    while not world.transport.tried:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (line,) = world.recording
    assert (line["method"], line["status"]) == ("http.fetch", "CANCELLED")


async def test_answers_are_never_larger_than_a_guest_may_be_given():
    world = World(capabilities=Capabilities(http=(get(),)))
    transport = world.transport
    assert isinstance(transport, FakeTransport)
    transport.answer = lambda _: HttpResponse(status=200, headers=(), body=bytes(512 * 1024))
    reply = await world.calls.answer(
        b'{"method":"http.fetch","params":{"method":"GET","url":"https://api.test/v1/"}}', ResourcesUsed()
    )
    assert json.loads(reply.response)["ok"]["status"] == 200
    assert len(reply.response) <= MAX_RESPONSE_BYTES
    transport.answer = lambda _: HttpResponse(status=200, headers=(), body=bytes(512 * 1024 + 1))
    assert await world.fetch_refused() == "RESPONSE_TOO_LARGE"


async def test_denials_of_many_kinds_are_at_most_sixteen_lines():
    world = World(capabilities=KV)
    for index in range(40):
        world.control_plane.error = HostCallRefusedError("no", refusal=f"REASON_{index}")
        await world.refusal("kv.get", key="a")
    denials = world.calls.conclude().denials
    assert len(denials) == 16
    assert sum(one.count for one in denials) == 40
    assert ATTEMPT not in denials

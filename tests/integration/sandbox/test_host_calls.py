"""`agentfactory.call` through a real worker: what the guest reads, and every limit on the way."""

import asyncio
import json
from datetime import timedelta

import pytest

from data_plane.sandbox.domain import MAX_REQUEST_BYTES, HostReply
from shared.errors import WorkerCrashedError
from shared.outcomes import LimitName, Outcome
from tests.integration.sandbox.conftest import wat

CALL = b'{"method":"budget.left"}'


def caller(body: str, *, data: bytes = CALL, pages: int = 32) -> bytes:
    """A guest that has a request at 1024 and calls with it; `$print` writes a region to stdout."""
    text = "".join(f"\\{byte:02x}" for byte in data)
    return wat(f"""(module
  (import "agentfactory" "call" (func $call (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") {pages})
  (data (i32.const 1024) "{text}")
  (func $print (param $at i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $size))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $ask (param $size i32) (param $cap i32) (result i32)
    (call $call (i32.const 1024) (local.get $size) (i32.const 1048576) (local.get $cap)))
  (func (export "_start") (local $n i32) {body}))""")


ONCE = f"(call $print (i32.const 1048576) (call $ask (i32.const {len(CALL)}) (i32.const 65536)))"
FOREVER = f"(loop $again (drop (call $ask (i32.const {len(CALL)}) (i32.const 65536))) (br $again))"


class Host:
    """Implements `HostCalls`."""

    def __init__(self, *replies: HostReply) -> None:
        self._replies = list(replies)
        self.requests = []
        self.used = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = False

    async def answer(self, request, used):
        self.requests.append(request)
        self.used.append(used)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self._replies.pop(0) if self._replies else HostReply(response=b'{"ok":{}}')


async def test_guest_reads_what_the_node_answers_to_its_exact_bytes(run):
    host = Host(HostReply(response=b'{"ok":{"a":1}}'))
    result = await run(module=caller(ONCE), calls=host)
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, b'{"ok":{"a":1}}')
    assert host.requests == [CALL]
    assert result.resources.host_calls == 1
    assert result.resources.host_call_bytes == len(CALL) + 14
    assert result.resources.host_call_time > timedelta(0)


async def test_node_learns_what_was_used_until_then(run):
    host = Host()
    body = "(call $print (i32.const 1024) (i32.const 10))" + ONCE * 2
    await run(module=caller(body), calls=host)
    first, second = host.used
    assert (first.output_bytes, first.host_calls, second.host_calls) == (10, 1, 2)
    assert second.output_bytes == 10 + len(b'{"ok":{}}')
    assert second.host_call_bytes == 2 * len(CALL) + len(b'{"ok":{}}')
    assert timedelta(0) < first.wall < second.wall


async def test_without_host_calls_everything_is_denied(run):
    result = await run(module=caller(ONCE))
    assert json.loads(result.stdout)["error"]["reason"] == "NOT_GRANTED"


async def test_answer_that_does_not_fit_is_kept_and_the_call_not_repeated(run):
    host = Host(HostReply(response=b"first" * 20))
    ask = f"(call $ask (i32.const {len(CALL)}) (i32.const {{}}))"
    body = (
        f"(if (i32.ne {ask.format(99)} (i32.const 100)) (then unreachable))"
        "(if (i32.load8_u (i32.const 1048576)) (then unreachable))"  # nothing was copied
        f"(if (i32.ne {ask.format(0)} (i32.const 100)) (then unreachable))"
        f"(call $print (i32.const 1048576) {ask.format(100)})"
        f"(call $print (i32.const 1048576) {ask.format(100)})"  # delivered: now it is a new call
    )
    result = await run(module=caller(body), calls=host)
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, b"first" * 20 + b'{"ok":{}}')
    assert len(host.requests) == result.resources.host_calls == 2


async def test_another_request_discards_the_kept_answer(run):
    host = Host(HostReply(response=b"x" * 100), HostReply(response=b"other"))
    size = len(CALL)
    body = (
        f"(drop (call $ask (i32.const {size}) (i32.const 0)))"
        f"(call $print (i32.const 1048576) (call $ask (i32.const {size - 1}) (i32.const 100)))"
        f"(call $print (i32.const 1048576) (call $ask (i32.const {size}) (i32.const 100)))"
    )
    result = await run(module=caller(body), calls=host)
    assert result.stdout == b"other" + b'{"ok":{}}'
    assert host.requests == [CALL, CALL[:-1], CALL]


async def test_request_that_is_too_large_is_not_kept_beside_the_guests_memory(run):
    ask = f"(call $ask (i32.const {MAX_REQUEST_BYTES + 1}) (i32.const {{}}))"
    body = f"(drop {ask.format(0)}) (call $print (i32.const 1048576) {ask.format(65536)})"
    result = await run(module=caller(body), calls=Host())
    assert b"REQUEST_TOO_LARGE" in result.stdout
    assert result.resources.host_calls == 2


async def test_log_of_an_answer_comes_between_what_the_guest_writes(run):
    host = Host(HostReply(response=b"{}", log=b"by the host\n"))
    result = await run(module=caller(ONCE), calls=host)
    assert result.stderr == b"by the host\n"
    assert (result.resources.log_bytes, result.resources.log_lines) == (12, 1)


@pytest.mark.parametrize(("limit", "granted"), [(LimitName.LOG_BYTES, 5), (LimitName.LOG_LINES, 0)])
async def test_log_of_an_answer_counts_as_the_guests_own(run, limit, granted):
    host = Host(HostReply(response=b"{}", log=b"by the host\n"))
    result = await run(module=caller(ONCE), calls=host, **{limit.value: granted})
    assert (result.outcome, result.limit) == (Outcome.KILLED, limit)


async def test_input_that_arrives_before_an_answer_is_not_lost(run):
    body = (
        ONCE
        + "(loop $again (i32.store (i32.const 0) (i32.const 1048576)) (i32.store (i32.const 4) (i32.const 65536))"
        "(drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))"
        "(local.set $n (i32.load (i32.const 8)))"
        "(call $print (i32.const 1048576) (local.get $n)) (br_if $again (local.get $n)))"
    )
    content = bytes(range(256)) * 3000
    for _ in range(2):  # warm, too
        result = await run(module=caller(body), calls=Host(), stdin=content)
        assert result.stdout == b'{"ok":{}}' + content
    result = await run(module=caller(ONCE), calls=Host(), stdin=content)
    assert result.stdout == b'{"ok":{}}'
    result = await run(module=caller(body), calls=Host(), stdin=b"next")
    assert result.stdout == b'{"ok":{}}next'


@pytest.mark.parametrize(
    "call",
    [
        "(call $call (i32.const -1) (i32.const 1) (i32.const 0) (i32.const 0))",
        "(call $call (i32.const 2097151) (i32.const 2) (i32.const 0) (i32.const 0))",
        "(call $call (i32.const 0) (i32.const -1) (i32.const 0) (i32.const 0))",
        "(call $call (i32.const 1024) (i32.const 4) (i32.const 2097152) (i32.const 1))",
        "(call $call (i32.const 1024) (i32.const 4) (i32.const -1) (i32.const -1))",
    ],
)
async def test_ranges_outside_the_memory_trap(run, call):
    host = Host()
    result = await run(module=caller(f"(drop {call})"), calls=host)
    assert (result.outcome, result.trap.name) == (Outcome.TRAPPED, "HostCallFault")
    assert host.requests == []


async def test_request_of_the_largest_size_is_forwarded_and_one_above_is_not(run):
    host = Host()
    body = "".join(
        f"(call $print (i32.const 1048576) (call $ask (i32.const {size}) (i32.const 65536)))"
        for size in (MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1)
    )
    result = await run(module=caller(body), calls=host)
    assert [len(request) for request in host.requests] == [MAX_REQUEST_BYTES]
    assert b"REQUEST_TOO_LARGE" in result.stdout


@pytest.mark.parametrize(
    ("limit", "granted", "calls"),
    [
        (LimitName.HOST_CALLS, 3, 3),
        (LimitName.HOST_CALLS, 0, 0),
        (LimitName.HOST_CALL_BYTES, 3 * (len(CALL) + 9), 3),
        (LimitName.HOST_CALL_BYTES, 3 * (len(CALL) + 9) + len(CALL), 4),
        (LimitName.HOST_CALL_MS, 0, 0),
    ],
)
async def test_limit_on_calls_is_the_one_that_is_named(run, limit, granted, calls):
    host = Host()
    result = await run(module=caller(FOREVER), calls=host, **{limit.value: granted})
    assert (result.outcome, result.limit) == (Outcome.KILLED, limit)
    assert len(host.requests) == calls
    again = await run(module=caller(ONCE), calls=Host())
    assert again.outcome is Outcome.SUCCEEDED


async def test_call_that_waits_too_long_is_stopped_and_its_run_named(run):
    host = Host()
    host.gate.clear()
    result = await run(module=caller(ONCE), calls=host, host_call_ms=50)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.HOST_CALL_MS)
    assert host.cancelled
    assert result.resources.host_call_time >= timedelta(milliseconds=50)


async def test_wall_clock_runs_on_while_a_guest_waits(run):
    host = Host()
    host.gate.clear()
    result = await run(module=caller(ONCE), calls=host, wall_ms=100)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.WALL_MS)
    assert host.cancelled
    assert result.resources.host_calls == 1


async def test_cancelled_run_stops_its_call(run):
    host = Host()
    host.gate.clear()
    task = asyncio.create_task(run(module=caller(ONCE), calls=host))
    while not host.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.cancelled


async def test_fault_of_the_node_is_an_answer(run):
    class Broken:
        async def answer(self, _request, _used):
            raise RuntimeError("a defect")

    result = await run(module=caller(ONCE), calls=Broken())
    assert json.loads(result.stdout)["error"]["reason"] == "INTERNAL"


async def test_module_with_another_type_of_the_call_is_refused(run):
    module = wat("""(module (import "agentfactory" "call" (func (param i32 i32) (result i32)))
      (memory (export "memory") 1) (func (export "_start")))""")
    with pytest.raises(Exception, match=r"agentfactory.call is") as error:
        await run(module=module)
    assert not isinstance(error.value, WorkerCrashedError)

"""A guest that breaks a limit ends as killed by that limit's name; one that faults is a value, not an error."""

from datetime import timedelta

import pytest

from data_plane.sandbox.domain import Preopen
from shared.outcomes import LimitName, Outcome
from tests.integration.sandbox.conftest import wat

MIB = 1024 * 1024
SECOND = timedelta(seconds=1)

GROWS_TO_4_GIB = """(module (memory (export "memory") 1)
  (func (export "_start") (if (i32.eq (memory.grow (i32.const 65535)) (i32.const -1)) (then unreachable))))"""
GROWS_PAST_ITS_OWN_MAXIMUM = """(module (memory (export "memory") 1 2)
  (func (export "_start") (if (i32.eq (memory.grow (i32.const 9)) (i32.const -1)) (then unreachable))))"""
BEGINS_WITH_64_MIB = '(module (memory (export "memory") 1024) (func (export "_start")))'
BEGINS_WITH_4_GIB = '(module (memory (export "memory") 65536) (func (export "_start")))'
DIVIDES_BY_ZERO = """(module (memory (export "memory") 1)
  (func (export "_start") (drop (i32.div_u (i32.const 1) (i32.const 0)))))"""
CALLS_A_NULL = """(module (memory (export "memory") 1) (table 1 funcref) (type $t (func))
  (func (export "_start") (call_indirect (type $t) (i32.const 0))))"""


async def test_wall_clock_limit_ends_an_endless_loop(run):
    result = await run("spin", wall_ms=100, cpu_ms=30_000)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.WALL_MS)
    assert timedelta(milliseconds=100) <= result.resources.wall < SECOND


async def test_wall_clock_limit_ends_a_sleeping_guest(run):
    result = await run("sleep", "30", wall_ms=50)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.WALL_MS)
    assert result.resources.cpu < timedelta(milliseconds=50)


async def test_cpu_limit_ends_a_busy_guest_before_its_wall_clock(run):
    result = await run("spin", wall_ms=30_000, cpu_ms=100)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.CPU_MS)
    assert result.resources.cpu >= timedelta(milliseconds=100)
    assert result.resources.wall < 10 * SECOND


async def test_output_written_before_a_kill_is_kept(run):
    result = await run("say-and-spin", wall_ms=50)
    assert (result.outcome, result.stdout) == (Outcome.KILLED, b"last words\n")


async def test_memory_limit_ends_a_guest_that_grows(run):
    result = await run("grow", memory_bytes=16 * MIB)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.MEMORY_BYTES)
    assert 14 * MIB <= result.resources.peak_memory_bytes <= 16 * MIB


async def test_a_guest_that_copes_with_refused_memory_is_not_killed(run):
    result = await run("grow-and-cope", memory_bytes=16 * MIB)
    assert (result.outcome, result.exit_code) == (Outcome.SUCCEEDED, 0)


@pytest.mark.parametrize("text", [GROWS_TO_4_GIB, BEGINS_WITH_64_MIB, BEGINS_WITH_4_GIB])
async def test_memory_limit_refuses_what_passes_it_at_once(run, text):
    result = await run(module=wat(text), memory_bytes=32 * MIB)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.MEMORY_BYTES)
    assert result.resources.peak_memory_bytes <= 32 * MIB


async def test_a_modules_own_maximum_is_no_limit_of_ours(run):
    result = await run(module=wat(GROWS_PAST_ITS_OWN_MAXIMUM))
    assert (result.outcome, result.limit) == (Outcome.TRAPPED, None)


async def test_memory_limit_at_its_boundary(run):
    exactly = wat('(module (memory (export "memory") 2) (func (export "_start")))')
    assert (await run(module=exactly, memory_bytes=2 * 65536)).outcome is Outcome.SUCCEEDED
    assert (await run(module=exactly, memory_bytes=2 * 65536 - 1)).limit is LimitName.MEMORY_BYTES


async def test_output_limit_ends_a_flood_on_stdout(run):
    result = await run("flood-out", output_bytes=100_000)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.OUTPUT_BYTES)
    assert len(result.stdout) <= 100_000


async def test_log_limit_ends_a_flood_on_stderr(run):
    result = await run("flood-err", log_bytes=10_000)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.LOG_BYTES)
    assert len(result.stderr) <= 10_000


async def test_output_of_exactly_the_limit_is_allowed(run):
    body = b"y" * 100_000
    result = await run("echo", stdin=body, output_bytes=len(body))
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, body)
    result = await run("echo", stdin=body, output_bytes=len(body) - 1)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.OUTPUT_BYTES)


async def test_open_file_limit_is_named_when_the_guest_fails_by_it(run, tmp_path):
    result = await run(
        "open-files", "/d", open_files=8, preopens=(Preopen(host_path=str(tmp_path), guest_path="/d"),)
    )
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.OPEN_FILES)
    assert result.resources.peak_open_files <= 8


@pytest.mark.parametrize(
    ("text", "trap"),
    [
        (DIVIDES_BY_ZERO, "IntegerDivisionByZero"),
        (CALLS_A_NULL, "IndirectCallToNull"),
    ],
)
async def test_a_trap_is_named_and_tells_nothing_of_the_host(run, text, trap):
    result = await run(module=wat(text))
    assert (result.outcome, result.trap.name, result.limit) == (Outcome.TRAPPED, trap, None)
    assert "0x" not in result.trap.message


@pytest.mark.parametrize(
    ("what", "trap"), [("trap", "UnreachableCodeReached"), ("recurse", "HeapAccessOutOfBounds")]
)
async def test_traps_of_c_programs(run, what, trap):
    result = await run(what)
    assert (result.outcome, result.trap.name) == (Outcome.TRAPPED, trap)


@pytest.mark.parametrize("code", [0, 1, 7, 255])
async def test_the_exit_code_is_the_guests(run, code):
    result = await run("exit", str(code))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED if code else Outcome.SUCCEEDED, code)

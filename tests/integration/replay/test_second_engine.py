"""A second engine and a second WASI come to what the sandbox of nodes comes to, guest by guest, byte by byte."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agentfactory_engine import worker_path

from data_plane.attempt import PARAMETERS_VARIABLE
from data_plane.host_calls.domain import CallContext
from data_plane.orders.domain import AttemptRef
from data_plane.replay.domain import ALLOCATION_LIMITS, ENGINE_LIMITS, TIME_LIMITS
from data_plane.replay.recording import PlayedCalls, free_calls
from data_plane.replay.wasmtime_engine import WasmtimeEngine
from data_plane.replay.workers import WorkerEngine
from data_plane.sandbox.domain import RunRequest, RunResult
from shared.ids import ExecutionId, TenantId
from shared.limits import Limits
from shared.manifest import Capabilities, Profile
from shared.outcomes import LimitName, Outcome
from tests.guests.adversaries import ATTACKS

EXAMPLE = Path(__file__).parents[3] / "examples" / "redact"
GUESTS = Path(__file__).parents[2] / "guests"
ACTOR = (GUESTS / "actor.wasm").read_bytes()
NEVER_COMPARED = ENGINE_LIMITS | TIME_LIMITS
CALLS = b"\n".join(
    json.dumps(call).encode()
    for call in (
        {"method": "log", "params": {"level": "info", "message": "a\nb", "fields": {"n": 1.5}}},
        {"method": "budget.left"},
        {"method": "kv.put", "params": {"key": "k", "value_base64": "YQ=="}},
        {"method": "http.fetch", "params": {"method": "GET", "url": "https://a.test/"}},
        {"method": "nothing"},
        "no object",
    )
)


def request_of(stdin: bytes = b"", *args: str, limits: Limits | None = None) -> RunRequest:
    return RunRequest(
        args=("agent", *args),
        env=((PARAMETERS_VARIABLE, "{}"), ("B", "ü")),
        stdin=stdin,
        limits=limits or Limits(),
        profile=Profile.PORTABLE,
        seed=bytes(range(32)),
        clock=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    )


def calls_of(request: RunRequest) -> PlayedCalls:
    attempt = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=1)
    context = CallContext(
        attempt=attempt,
        tenant_id=TenantId("default"),
        capabilities=Capabilities(kv=True),
        grants=frozenset({"kv.put"}),
        limits=request.limits,
        is_repeatable=True,
        key=bytes(32),
    )
    return PlayedCalls((), free=free_calls(context))


async def both(module: bytes, request: RunRequest) -> tuple[RunResult, RunResult]:
    first = await WorkerEngine.open(worker_path())
    return (
        await first.run(module, request, calls_of(request)),
        await WasmtimeEngine.open().run(module, request, calls_of(request)),
    )


def seen(result: RunResult) -> tuple[object, ...]:
    trap = None if result.trap is None else result.trap.name
    return result.outcome, result.exit_code, result.limit, trap, result.stdout, result.stderr


@pytest.mark.parametrize(
    "asked", ["output 1000", "exit 7", "trap 0", "sleep 5000", "memory 8", "nonsense", ""]
)
async def test_an_agent_in_c_does_the_same(asked: str) -> None:
    first, second = await both(ACTOR, request_of(asked.encode()))
    assert seen(first) == seen(second)


@pytest.mark.parametrize("arguments", [("a",), ("look",), ()])
async def test_what_a_guest_can_see_of_its_machine_is_the_same(arguments: tuple[str, ...]) -> None:
    request = request_of(b"x" * 1000, *arguments)
    first, second = await both((GUESTS / "look.wasm").read_bytes(), request)
    assert first.stdout
    assert seen(first) == seen(second)


async def test_host_calls_are_asked_and_answered_the_same() -> None:
    first, second = await both((GUESTS / "caller.wasm").read_bytes(), request_of(CALLS))
    assert first.stdout.count(b"\n") == 6
    assert b'"ok"' in first.stdout
    assert seen(first) == seen(second)
    assert first.resources.host_call_bytes == second.resources.host_call_bytes


PORTABLE = [
    attack
    for attack in ATTACKS
    if attack.limit not in NEVER_COMPARED | ALLOCATION_LIMITS and "scratch_bytes" not in attack.granted
]


@pytest.mark.parametrize("attack", PORTABLE, ids=lambda attack: f"{attack.guest}-{attack.limit}")
async def test_a_limit_that_every_engine_counts_ends_the_same_guest_at_the_same_byte(attack) -> None:
    limits = Limits(**{"wall_ms": 20_000, "cpu_ms": 20_000, "fuel": 2**40} | attack.granted)
    first, second = await both(
        (GUESTS / "limits" / f"{attack.guest}.wasm").read_bytes(), request_of(limits=limits)
    )
    assert seen(first) == seen(second)


@pytest.mark.parametrize("guest", ["grow_at_once", "grow_by_pages"])
async def test_a_guest_that_gets_no_memory_ends_badly_on_both(guest: str) -> None:
    limits = Limits(memory_bytes=2**25)
    first, second = await both((GUESTS / "limits" / f"{guest}.wasm").read_bytes(), request_of(limits=limits))
    assert first.limit == LimitName.MEMORY_BYTES
    assert second.outcome in {Outcome.FAILED, Outcome.TRAPPED}


@pytest.fixture(scope="module")
def redact() -> bytes:
    subprocess.run([str(EXAMPLE / "build.sh")], check=True, timeout=300)
    return (EXAMPLE / "redact.wasm").read_bytes()


async def test_the_example_agent_takes_out_the_same_personal_data(redact: bytes) -> None:
    first, second = await both(redact, request_of((EXAMPLE / "data" / "tickets.jsonl").read_bytes()))
    assert first.outcome == Outcome.SUCCEEDED
    assert seen(first) == seen(second)

"""Rule 20: the same run twice is the same, to the byte and to the unit of fuel; and fuel bounds what a guest may take."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import Preopen, RunRequest
from data_plane.sandbox.pool import WorkerPool
from shared.digests import sha256_digest
from shared.errors import ArtifactInvalidError, ModuleInvalidError, UnavailableError
from shared.limits import Limits
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from tests.guests.adversaries import ATTACKS
from tests.integration.sandbox.conftest import GUESTS, TENANT, wat

REPEATABLE = (Profile.DETERMINISTIC, Profile.PORTABLE)
LONGEST_UNIT_S = 20e-9
"""Most CPU time that a unit of fuel may buy, whatever it is spent on."""
_MEMORY = '(memory (export "memory") 1)'
_EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'


def _start(body: str, *before: str) -> bytes:
    return wat(f'(module {" ".join(before)} {_MEMORY} (func (export "_start") {body}))')


@pytest.fixture
def look() -> bytes:
    return (GUESTS / "look.wasm").read_bytes()


def a_folder(path, names):
    path.mkdir()
    for name in names:
        (path / name).write_text(name)
    return Preopen(host_path=str(path), guest_path="/d", writable=True)


@pytest.mark.parametrize("profile", REPEATABLE)
async def test_what_a_guest_sees_is_the_same_on_two_machines(
    tmp_path, artifacts, engine, engines, look, profile
):
    names = [f"file-{number}" for number in range(40)]
    results = []
    for turn, order in enumerate((names, names[::-1])):
        folder = a_folder(tmp_path / str(turn), order)
        request = RunRequest(
            args=("look", "a"),
            env=(("B", "1"), ("A", "2")),
            stdin=b"x" * 1000,
            profile=profile,
            seed=bytes(32),
            clock=datetime(2026, 1, 2, tzinfo=UTC),
            preopens=(folder,),
            limits=Limits(scratch_bytes=1_000_000, scratch_inodes=100),
        )
        async with WorkerPool(worker_path=worker_path(), engine=engine, engines=engines, slots=1) as pool:
            results.append(
                await pool.run(
                    tenant_id=TENANT,
                    module_digest=sha256_digest(look),
                    artifact=artifacts.opener(await artifacts.of(look, profile)),
                    request=request,
                )
            )
        await asyncio.sleep(0.02)  # so that times of the host differ
    first, second = results
    assert first.outcome is Outcome.SUCCEEDED, first
    assert first.stdout.decode().splitlines() == second.stdout.decode().splitlines()
    assert first.resources.fuel == second.resources.fuel > 0
    assert b"entry file-0 " in first.stdout


async def test_input_is_the_same_in_whatever_pieces_it_comes(run, look):
    async def feed(size: int) -> AsyncIterator[bytes]:
        for start in range(0, 1000, size):
            yield bytes(1000)[start : start + size]
            await asyncio.sleep(0)

    results = [await run(module=look, profile=Profile.DETERMINISTIC, feed=feed(size)) for size in (1, 7, 999)]
    assert len({(result.stdout, result.resources.fuel) for result in results}) == 1
    assert b"read 64 as piece 0\n" in results[0].stdout


@pytest.mark.parametrize("profile", REPEATABLE)
@pytest.mark.parametrize(
    ("body", "fuel"),
    [
        ("", 0),
        ("(drop (i32.const 1))", 1),
        ("(drop (i32.div_s (i32.const 6) (i32.const 3)))", 10),
        ("(memory.fill (i32.const 0) (i32.const 0) (i32.const 65536))", 3 + 100 + 8192),
        ("(memory.fill (i32.const 0) (i32.const 0) (i32.const 7))", 3 + 100),
        ("(drop (memory.grow (i32.const 0)))", 501),
        ("(local i32) (loop (br_if 0 (i32.lt_s (local.tee 0 (i32.add (local.get 0) (i32.const 1))) (i32.const 10))))", 70),
        ("(if (i32.const 1) (then (drop (i32.const 1))) (else (drop (i64.const 1)) (drop (i64.const 1))))", 3),
        ("(call $callee)", 4),
    ],
)  # fmt: skip
async def test_each_instruction_costs_what_is_written_down(run, profile, body, fuel):
    module = _start(body, "(func $callee)")
    assert (await run(module=module, profile=profile)).resources.fuel == fuel


async def test_a_run_may_use_all_of_its_fuel_and_not_one_more(run):
    module = _start("(drop (i32.const 1)) (drop (i32.const 1))")
    for fuel, outcome in ((1, Outcome.KILLED), (2, Outcome.SUCCEEDED), (3, Outcome.SUCCEEDED)):
        result = await run(module=module, profile=Profile.DETERMINISTIC, fuel=fuel)
        assert (result.outcome, result.resources.fuel) == (outcome, min(fuel, 2))
        assert result.limit is (LimitName.FUEL if outcome is Outcome.KILLED else None)


async def test_a_bulk_operation_does_not_begin_on_fuel_that_is_not_there(run):
    module = wat(
        '(module (memory (export "memory") 1024) (func (export "_start")'
        f"{'(memory.fill (i32.const 0) (i32.const 1) (i32.const 67108864))' * 1000}))"
    )
    result = await run(module=module, profile=Profile.DETERMINISTIC, fuel=10_000_000, memory_bytes=1 << 26)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.FUEL)
    assert result.resources.cpu < timedelta(seconds=2)


async def test_a_start_function_runs_on_the_runs_own_fuel(run):
    module = wat(
        f'(module {_MEMORY} (start $first) (func $first (drop (i32.const 1))) (func (export "_start")))'
    )
    assert (await run(module=module, profile=Profile.DETERMINISTIC)).resources.fuel == 1
    loop = next(attack for attack in ATTACKS if attack.guest == "loop_in_start")
    result = await run(module=loop.module, profile=Profile.DETERMINISTIC, fuel=1000)
    assert (result.limit, result.resources.fuel) == (LimitName.FUEL, 1000)


async def test_a_guest_cannot_name_what_counts_its_fuel(run):
    module = wat(
        f"(module {_EXIT} {_MEMORY}"
        '(global (export "agentfactory:fuel") (mut i64) (i64.const 1000000000))'
        '(func (export "agentfactory:start") (call $exit (i32.const 9)))'
        '(func (export "_start") (loop (br 0))))'
    )
    result = await run(module=module, profile=Profile.DETERMINISTIC, fuel=1000)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.FUEL)


_NAN = """
  (i64.store (i32.const 16) (i64.reinterpret_f64 (f64.div (f64.load (i32.const 64)) (f64.load (i32.const 64)))))
  (i32.store (i32.const 24) (i32.reinterpret_f32 (f32.sqrt (f32.load (i32.const 96)))))
  (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 12))
  (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
"""
_WRITE = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'


async def test_nan_is_canonical_in_the_portable_profile(run):
    module = _start(_NAN, _WRITE, '(data (i32.const 96) "\\00\\00\\80\\bf")')
    portable = await run(module=module, profile=Profile.PORTABLE)
    assert portable.stdout == bytes.fromhex("000000000000f87f0000c07f")
    deterministic = await run(module=module, profile=Profile.DETERMINISTIC)
    if platform.machine() == "x86_64":  # whose own NaN has the sign set: the other profile shows the machine
        assert deterministic.stdout == bytes.fromhex("000000000000f8ff0000c0ff")
    assert deterministic.resources.fuel == portable.resources.fuel


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.limit is LimitName.FUEL], ids=lambda attack: attack.guest)  # fmt: skip
async def test_a_unit_of_fuel_buys_little_cpu_whatever_it_is_spent_on(run, tmp_path, attack):
    folder = Preopen(host_path=str(tmp_path), guest_path="/scratch", writable=True)
    options = {"profile": attack.profile, **attack.granted}
    await run("hello", profile=attack.profile)
    result = await run(module=attack.module, preopens=(folder,), **options)
    assert result.resources.cpu < timedelta(seconds=LONGEST_UNIT_S * result.resources.fuel) + timedelta(
        milliseconds=100
    )


async def test_an_artifact_of_one_profile_never_runs_under_another(pool, artifacts, probe):
    for made_for in Profile:
        for wanted in set(Profile) - {made_for}:
            with pytest.raises(ArtifactInvalidError, match="profile"):
                await pool.run(
                    tenant_id=TENANT,
                    module_digest=sha256_digest(f"{made_for} {wanted}".encode()),
                    artifact=artifacts.opener(await artifacts.of(probe, made_for)),
                    request=RunRequest(
                        args=("probe", "hello"),
                        profile=wanted,
                        seed=bytes(32),
                        clock=datetime(2026, 1, 2, tzinfo=UTC),
                    ),
                )


async def test_a_worker_serves_one_profile(run, pool):
    for profile in (*Profile, *Profile):
        assert (await run("hello", profile=profile)).outcome is Outcome.SUCCEEDED
    assert pool.stats().warm_hits == len(Profile)


async def test_a_repeatable_run_needs_a_seed_and_a_clock(engine, artifacts, probe):
    with pytest.raises(ValueError, match="needs a seed and a clock"):
        RunRequest(profile=Profile.PORTABLE, seed=bytes(32))
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1) as pool:
        with pytest.raises(UnavailableError, match="portable is not offered"):
            await pool.run(
                tenant_id=TENANT,
                module_digest=sha256_digest(probe),
                artifact=artifacts.opener(await artifacts.of(probe)),
                request=RunRequest(
                    profile=Profile.PORTABLE, seed=bytes(32), clock=datetime(2026, 1, 2, tzinfo=UTC)
                ),
            )


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (wat('(module (memory (export "memory") 1 1 shared) (func (export "_start")))'), "threads|shared"),
        (
            _start("(drop (f32x4.relaxed_madd (v128.const i64x2 0 0) (v128.const i64x2 0 0) (v128.const i64x2 0 0)))"),
            "relaxed",
        ),
    ],
    ids=["threads", "relaxed simd"],
)  # fmt: skip
async def test_no_profile_has_threads_or_relaxed_simd(tmp_path, profile, module, why):
    (tmp_path / "module.wasm").write_bytes(module)
    module_fd = os.open(tmp_path / "module.wasm", os.O_RDONLY)
    artifact_fd = os.open(tmp_path / "artifact", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(ModuleInvalidError, match=why):
            await WorkerCompiler(worker_path=worker_path()).compile(
                module_fd=module_fd, artifact_fd=artifact_fd, profile=profile
            )
    finally:
        os.close(module_fd)
        os.close(artifact_fd)

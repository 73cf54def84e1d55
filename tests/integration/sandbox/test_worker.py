"""Workers: what they are given, what is left of a run, and how they end when they should not."""

import asyncio
import os
import resource
import signal
import socket
import struct
import sys
from datetime import UTC, datetime, timedelta

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox.domain import Preopen, RunRequest, Stream
from data_plane.sandbox.frames import FrameDecoder, FrameKind, encode
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.process import Mode, WorkerProcess
from shared.digests import sha256_digest
from shared.errors import (
    ArtifactInvalidError,
    InvalidInputError,
    ResourceExhaustedError,
    UnavailableError,
    WorkerCrashedError,
)
from shared.ids import TenantId
from shared.limits import Limits
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from tests.integration.sandbox.conftest import TENANT, inside, wat

PATIENCE_SECONDS = 30

# Exits 1 when anything of an earlier run is left in its global or its memory.
REMEMBERS = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (global $g (mut i32) (i32.const 0))
  (func (export "_start")
    (if (i32.or (global.get $g) (i32.load (i32.const 1024))) (then (call $exit (i32.const 1))))
    (global.set $g (i32.const 1)) (i32.store (i32.const 1024) (i32.const 1))))"""


# 256 MiB more, or it traps.
GROWS = wat(
    """(module (memory (export "memory") 1)
      (func (export "_start")
        (if (i32.eq (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable))))"""
)


async def test_streams_arguments_and_environment_reach_the_guest(run):
    assert (await run("echo", stdin=b"in\n")).stdout == b"in\n"
    assert (await run("args", "a b", "ü")).stdout == "a b\nü\n".encode()
    assert (await run("env", "NAME", env=(("NAME", "value"),))).stdout == b"value\n"
    result = await run("both")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


async def test_nothing_of_the_parents_environment_reaches_the_guest(run, monkeypatch):
    monkeypatch.setenv("AF_SECRET", "leak")
    assert (await run("env", "AF_SECRET")).stdout == b"(unset)\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lower the limits of another user's process")
async def test_a_repeatable_run_that_the_machine_has_no_memory_for_is_no_crash(run, pool):
    """It has no result: another machine would have had the memory that its limits allow."""
    options = {"profile": Profile.DETERMINISTIC, "memory_bytes": 512 << 20}
    assert (await run(module=GROWS, **options)).outcome is Outcome.SUCCEEDED
    (worker,) = next(iter(pool._idle.values()))
    resource.prlimit(inside(worker.process), resource.RLIMIT_DATA, (128 << 20, 128 << 20))
    with pytest.raises(ResourceExhaustedError, match="no memory or disk left for worker"):
        await run(module=GROWS, **options)
    assert pool.stats().crashed == 0
    assert (await run(module=GROWS, **options)).outcome is Outcome.SUCCEEDED


async def test_sixteen_mebibytes_go_through_and_come_back(run):
    body = os.urandom(1 << 20) * 16
    result = await run("echo", stdin=body, output_bytes=len(body), wall_ms=30_000)
    assert result.outcome is Outcome.SUCCEEDED
    assert result.stdout == body


async def test_a_guest_that_leaves_its_input_unread_leaves_the_worker_usable(run, pool):
    for _ in range(3):
        assert (await run("hello", stdin=b"z" * 5_000_000)).stdout == b"hello\n"
    assert pool.stats().warm_hits == 2


async def test_directories_can_be_given_while_unread_input_is_still_under_way(run, pool, tmp_path):
    (tmp_path / "inside").write_text("")
    directory = Preopen(host_path=str(tmp_path), guest_path="/d")
    for _ in range(3):
        result = await run("list", "/d", stdin=b"z" * 16_000_000, preopens=(directory,))
        assert result.stdout == b"inside\n"
    assert pool.stats().warm_hits == 2


async def test_output_leaves_while_input_is_awaited(run):
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def sink(stream: Stream, data: bytes) -> None:
        assert stream is Stream.STDOUT
        await answers.put(data)

    async def feed():
        for line in (b"one\n", b"two\n"):
            yield line
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await answers.get() == b"got " + line

    result = await run("dialogue", feed=feed(), sink=sink)
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, b"")


async def test_a_feed_that_never_ends_does_not_hold_a_finished_guest(run):
    async def feed():
        yield b"x"
        await asyncio.Event().wait()

    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(2):
            assert (await run("hello", feed=feed())).outcome is Outcome.SUCCEEDED


async def test_a_broken_feed_is_the_callers_error_and_ends_the_run(run):
    async def feed():
        yield b"x"
        raise InvalidInputError("source broke")

    with pytest.raises(InvalidInputError, match="source broke"):
        await run("sleep", "30", feed=feed())


async def test_directories_are_as_writable_as_they_were_given(run, tmp_path):
    (tmp_path / "inside").write_text("x")
    writable = Preopen(host_path=str(tmp_path), guest_path="/d", writable=True)
    read_only = Preopen(host_path=str(tmp_path), guest_path="/d")
    assert (await run("list", "/d", preopens=(read_only,))).stdout == b"inside\n"
    assert (await run("write", "/d/new", preopens=(read_only,))).exit_code == 9
    assert (await run("write", "/d/new", preopens=(writable,))).limit == LimitName.SCRATCH_INODES
    written = await run("write", "/d/new", preopens=(writable,), scratch_bytes=100, scratch_inodes=1)
    assert written.exit_code == 0
    assert (tmp_path / "new").read_text() == "written by a guest\n"


async def test_a_missing_directory_is_refused_before_anything_runs(run, pool):
    with pytest.raises(InvalidInputError, match="/nowhere"):
        await run("hello", preopens=(Preopen(host_path="/nowhere", guest_path="/d"),))
    assert pool.stats().discarded == 0


async def test_seed_and_clock_make_a_run_repeatable(run):
    fixed = {"seed": bytes(32), "clock": datetime(2026, 1, 2, tzinfo=UTC)}
    first, second = await run("random", **fixed), await run("random", **fixed)
    assert first.stdout == second.stdout
    assert (await run("random")).stdout != first.stdout
    assert int((await run("clock", **fixed)).stdout) == int(fixed["clock"].timestamp())


async def test_every_run_has_a_fresh_store(run, pool):
    for _ in range(3):
        assert (await run(module=wat(REMEMBERS))).exit_code == 0
    assert pool.stats().warm_hits == 2


async def test_a_warm_run_does_not_open_the_artifact_again(run, artifacts):
    for _ in range(3):
        await run("hello")
    assert artifacts.opened == 1


async def test_another_tenant_never_gets_a_used_worker(run, pool):
    await run("hello", tenant=TenantId("tenant-a"))
    await run("hello", tenant=TenantId("tenant-b"))
    assert (pool.stats().warm_hits, pool.stats().warm) == (0, 2)


@pytest.mark.parametrize("what", ["trap", "flood-out"])
async def test_a_worker_is_discarded_after_a_trap_or_a_kill(run, pool, what):
    await run(what)
    assert (pool.stats().warm, pool.stats().discarded) == (0, 1)
    assert (await run("hello")).outcome is Outcome.SUCCEEDED
    assert pool.stats().warm_hits == 0


async def test_a_worker_killed_from_outside_is_an_error_not_an_outcome(run, pool):
    async def sink(_stream: Stream, _data: bytes) -> None:
        worker = next(iter(pool._busy))
        os.kill(worker.process.pid, signal.SIGKILL)

    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        await run("say-and-spin", sink=sink)
    assert pool.stats().crashed == 1
    assert (await run("hello")).outcome is Outcome.SUCCEEDED


async def test_an_idle_worker_that_died_is_not_used_again(run, pool):
    await run("hello")
    worker = next(iter(pool._idle.values()))[0]
    os.kill(worker.process.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await worker.process.wait()
    assert (await run("hello")).outcome is Outcome.SUCCEEDED


async def test_a_stopped_worker_is_killed_at_wall_plus_grace(engine, artifacts, probe):
    """Its own watchdog cannot act, so the parent's timer must."""
    async with WorkerPool(
        worker_path=worker_path(), engine=engine, slots=1, wall_grace=timedelta(milliseconds=100)
    ) as pool:

        async def sink(_stream: Stream, _data: bytes) -> None:
            os.kill(inside(next(iter(pool._busy)).process), signal.SIGSTOP)

        async def once(*args: str, sink=None):
            return await pool.run(
                tenant_id=TENANT,
                module_digest=sha256_digest(probe),
                artifact=artifacts.opener(await artifacts.of(probe)),
                request=RunRequest(args=("probe", *args), limits=Limits(wall_ms=1500)),
                sink=sink,
            )

        await once("hello")
        async with asyncio.timeout(PATIENCE_SECONDS):
            result = await once("say-and-spin", sink=sink)
        assert (result.outcome, result.limit) == (Outcome.KILLED, "wall_ms")


async def test_cancelling_a_run_kills_its_worker(run, pool):
    started = asyncio.Event()

    async def sink(_stream: Stream, _data: bytes) -> None:
        started.set()

    task = asyncio.create_task(run("say-and-spin", sink=sink, wall_ms=30_000))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await started.wait()
        worker = next(iter(pool._busy))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await worker.process.wait()).signal_number == signal.SIGKILL


async def test_slots_bound_concurrent_runs_and_warm_workers_stay_bounded(engine, artifacts, probe):
    async with WorkerPool(
        worker_path=worker_path(), engine=engine, slots=2, max_warm_workers=2, spares=0
    ) as pool:
        opener = artifacts.opener(await artifacts.of(probe))

        async def once(tenant: int):
            result = await pool.run(
                tenant_id=TenantId(f"tenant-{tenant}"),
                module_digest=sha256_digest(probe),
                artifact=opener,
                request=RunRequest(args=("probe", "hello")),
            )
            assert pool.stats().busy <= 2
            assert pool.stats().warm <= 2
            return result.outcome

        outcomes = await asyncio.gather(*(once(index % 5) for index in range(20)))
    assert outcomes == [Outcome.SUCCEEDED] * 20


@pytest.mark.parametrize("newcomers", [0, 6])
async def test_agents_in_turn_do_not_all_push_each_other_out(engine, artifacts, probe, newcomers):
    """Were the least recently used to go, four in turn would find none of three workers warm."""
    async with WorkerPool(
        worker_path=worker_path(), engine=engine, slots=1, max_warm_workers=3, spares=0
    ) as pool:
        opener = artifacts.opener(await artifacts.of(probe))

        async def once(tenant: str) -> None:
            await pool.run(
                tenant_id=TenantId(tenant),
                module_digest=sha256_digest(probe),
                artifact=opener,
                request=RunRequest(args=("probe", "hello")),
            )

        for number in range(newcomers):
            await once(f"before-{number}")
        for turn in range(40):
            await once(f"tenant-{turn % 4}")
        hits = pool.stats().warm_hits
    assert 10 <= hits < 40


async def test_leaving_the_pool_leaves_no_process(engine, artifacts, probe):
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1) as pool:
        await pool.run(
            tenant_id=TENANT,
            module_digest=sha256_digest(probe),
            artifact=artifacts.opener(await artifacts.of(probe)),
            request=RunRequest(args=("probe", "hello")),
        )
        workers = [*pool._spares, *next(iter(pool._idle.values()))]
    assert workers
    assert all(worker.process.ended.done() for worker in workers)


async def test_an_artifact_that_cannot_be_opened_leaves_the_worker_unused(pool, probe):
    async def opener() -> int:
        raise ArtifactInvalidError("not authentic")

    with pytest.raises(ArtifactInvalidError, match="not authentic"):
        await pool.run(
            tenant_id=TENANT, module_digest=sha256_digest(probe), artifact=opener, request=RunRequest()
        )
    assert (pool.stats().warm, pool.stats().spares, pool.stats().discarded) == (0, 1, 0)


async def test_a_request_that_the_worker_refuses_leaves_it_usable(run, pool):
    with pytest.raises(InvalidInputError, match="zero byte"):
        await run("nul \0 byte", stdin=b"unread" * 100_000)
    assert (await run("hello")).stdout == b"hello\n"
    assert (pool.stats().warm_hits, pool.stats().discarded) == (1, 0)


async def test_more_waiting_runs_than_the_pool_bears_are_refused(engine, artifacts, probe, monkeypatch):
    monkeypatch.setattr("data_plane.sandbox.pool.MAX_WAITING_PER_SLOT", 1)
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1) as pool:
        opener = artifacts.opener(await artifacts.of(probe))

        async def once():
            return await pool.run(
                tenant_id=TENANT,
                module_digest=sha256_digest(probe),
                artifact=opener,
                request=RunRequest(args=("probe", "hello")),
            )

        results = await asyncio.gather(once(), once(), once(), return_exceptions=True)
    assert [isinstance(result, ResourceExhaustedError) for result in results] == [False, False, True]
    with pytest.raises(UnavailableError, match="closed"):
        await once()


# --- the process ---

PARENT = """
import asyncio, os, sys
from data_plane.sandbox.frames import END_OF_STDIN, FrameKind, encode
from datetime import timedelta
from data_plane.sandbox.domain import RunRequest
from shared.limits import Limits
from data_plane.sandbox.messages import run_payload
from data_plane.sandbox.process import Mode, WorkerProcess
import socket
from tests.integration.sandbox.conftest import inside

async def main():
    process = WorkerProcess.start(sys.argv[2], Mode.RUN)
    long = Limits(wall_ms=300_000, cpu_ms=300_000)
    request = RunRequest(args=("p", "spin"), limits=long)
    frames = encode(FrameKind.LOAD, b"{}") + encode(FrameKind.RUN, run_payload(request))
    socket.send_fds(process.socket, [frames + END_OF_STDIN], [os.open(sys.argv[1], os.O_RDONLY)])
    await asyncio.get_running_loop().sock_recv(process.socket, 1)
    print(inside(process), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_worker_dies_with_a_node_that_is_killed(artifacts, probe):
    """Its guest spins, so nobody in it reads the socket: only the kernel can end it."""
    artifact = await artifacts.of(probe)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(artifact), worker_path(), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        pidfd = os.pidfd_open(int(await parent.stdout.readline()))
        parent.kill()
        await parent.wait()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, ended.set)
        await ended.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)


# --- artifacts that must not run ---


async def test_an_artifact_of_another_engine_version_is_refused(run, artifacts, probe, tmp_path, engine):
    bytes_ = (await artifacts.of(probe)).read_bytes()
    other = bytes_.replace(engine.version.encode(), b"7.4.1", 1)
    with pytest.raises(ArtifactInvalidError, match=r"version is .7\.4\.1"):
        await _run_artifact(run, artifacts, tmp_path, other)


@pytest.mark.parametrize("damage", ["magic", "header", "cut", "empty", "longer"])
async def test_a_damaged_artifact_is_refused(run, artifacts, probe, tmp_path, damage):
    good = (await artifacts.of(probe)).read_bytes()
    damaged = {
        "magic": b"X" + good[1:],
        "header": good[:20] + b"\xff" + good[21:],
        "cut": good[: len(good) // 2],
        "empty": b"",
        "longer": good + b"\0",
    }[damage]
    with pytest.raises(ArtifactInvalidError):
        await _run_artifact(run, artifacts, tmp_path, damaged)


async def _run_artifact(run, artifacts, tmp_path, content):
    path = tmp_path / "artifact"
    path.write_bytes(content)

    async def of(_module, _profile):
        return path

    artifacts.of = of
    await run("hello")


# --- the protocol, spoken badly ---


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (encode(FrameKind.RUN, b"{}"), "frame Run where Load was due"),
        (encode(FrameKind.LOAD, b"{}"), "without its descriptors"),
        (encode(FrameKind.LOAD, b'{"unknown": 1}'), "unknown field"),
        (struct.pack("<IB", 2 * 1024 * 1024, 1), "the bound is"),
        (struct.pack("<IB", 1, 99), "unknown type 99"),
    ],
)
async def test_a_worker_refuses_a_broken_protocol_and_ends(sent, answer):
    process = WorkerProcess.start(worker_path(), Mode.RUN)
    with process.socket:
        process.socket.send(sent)
        outcome = await _next_frame(process.socket)
        async with asyncio.timeout(PATIENCE_SECONDS):
            ended = await process.wait()
    assert answer in outcome
    assert ended.code == 65


async def test_a_second_load_is_refused(artifacts, probe):
    process = WorkerProcess.start(worker_path(), Mode.RUN)
    descriptor = os.open(await artifacts.of(probe), os.O_RDONLY)
    with process.socket:
        load = encode(FrameKind.LOAD, b"{}")
        socket.send_fds(process.socket, [load + load], [descriptor, descriptor])
        os.close(descriptor)
        assert "pid" in await _next_frame(process.socket)
        assert "frame Load where Run was due" in await _next_frame(process.socket)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await process.wait()).code == 65


async def test_a_worker_ends_when_its_parent_closes():
    process = WorkerProcess.start(worker_path(), Mode.RUN)
    process.socket.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await process.wait()).code == 0


async def _next_frame(sock: socket.socket) -> str:
    decoder = FrameDecoder()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            # One byte at a time, so that nothing of the next frame is taken along.
            for frame in decoder.feed(await asyncio.get_running_loop().sock_recv(sock, 1)):
                return frame.payload.decode()

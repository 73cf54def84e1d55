"""Scratch: a folder of the run's own to write to, empty at its start and gone after it, whatever the guest does."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox import pool as pool_module
from data_plane.sandbox.domain import RunRequest
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.scratch import ScratchFolders
from shared.digests import sha256_digest
from shared.errors import DiskFullError, ResourceExhaustedError, UnavailableError, WorkerCrashedError
from shared.ids import TenantId
from shared.outcomes import LimitName, Outcome
from tests.guests.adversaries import ATTACKS
from tests.integration.sandbox.conftest import wat

GRANTED = {"scratch": True, "scratch_bytes": 1 << 20, "scratch_inodes": 1_000}
PATIENCE_SECONDS = 20

MESS = """
(module
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "dddddddddddddddddddddd")
  (data (i32.const 32) "../../../../../../etc")
  (data (i32.const 64) "l")
  (data (i32.const 80) "f")
  (data (i32.const 96) "h")
  (func $must (param i32) (if (local.get 0) (then unreachable)))
  (func (export "_start") (local $at i32) (local $below i32) (local $depth i32)
    (local.set $at (i32.const 3))
    (call $must (call $open (i32.const 3) (i32.const 0) (i32.const 80) (i32.const 1) (i32.const 1)
      (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 128)))
    (call $must (call $link (i32.const 3) (i32.const 0) (i32.const 80) (i32.const 1)
      (i32.const 3) (i32.const 96) (i32.const 1)))
    (loop $deeper
      (drop (call $symlink (i32.const 32) (i32.const 21) (local.get $at) (i32.const 64) (i32.const 1)))
      (call $must (call $mkdir (local.get $at) (i32.const 0) (i32.const 22)))
      (call $must (call $open (local.get $at) (i32.const 0) (i32.const 0) (i32.const 22) (i32.const 2)
        (i64.const 16802304) (i64.const 16802304) (i32.const 0) (i32.const 128)))
      (local.set $below (i32.load (i32.const 128)))
      (if (i32.ne (local.get $at) (i32.const 3)) (then (call $must (call $close (local.get $at)))))
      (local.set $at (local.get $below))
      (local.set $depth (i32.add (local.get $depth) (i32.const 1)))
      (br_if $deeper (i32.lt_u (local.get $depth) (i32.const 300)))))
)
"""
"""Leaves a file with two names, and 300 directories one in the other, with a link out of each if it may."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
async def pool(engine, root: Path) -> AsyncIterator[WorkerPool]:
    folders = ScratchFolders(root)
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=2, scratch=folders) as running:
        yield running


async def until(holds) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


def left(root: Path) -> list[Path]:
    return [path for folder in root.iterdir() for path in folder.iterdir()]


async def test_what_a_run_wrote_the_next_does_not_find_and_nobody_keeps(run, pool, root):
    assert (await run("write", "/scratch/note", **GRANTED)).outcome is Outcome.SUCCEEDED
    assert left(root) == []
    listed = await run("list", "/scratch", **GRANTED)
    assert (listed.outcome, listed.stdout) == (Outcome.SUCCEEDED, b"")
    assert pool.stats().warm_hits == 1


async def test_a_run_without_scratch_has_no_folder_and_costs_none(run, root):
    written = await run("write", "/scratch/note", scratch_bytes=1 << 20, scratch_inodes=10)
    assert (written.outcome, written.exit_code) == (Outcome.FAILED, 9)
    assert list(root.iterdir()) == []


async def test_runs_at_the_same_time_and_tenants_have_folders_of_their_own(run, root):
    async def write_and_look(name: str, tenant: str):
        await run("write", f"/scratch/{name}", tenant=TenantId(tenant), **GRANTED)
        return await run("list", "/scratch", tenant=TenantId(tenant), **GRANTED)

    found = await asyncio.gather(*(write_and_look(f"n{n}", f"tnt_{n}") for n in range(4)))
    assert [one.stdout for one in found] == [b""] * 4
    assert left(root) == []


async def test_a_mess_is_gone_before_the_next_run_of_the_same_worker(run, pool, root):
    mess = wat(MESS)
    for _ in range(2):
        result = await run(module=mess, **GRANTED)
        assert result.outcome is Outcome.SUCCEEDED, result
        assert result.resources.scratch_inodes >= 302
        assert left(root) == []
    assert pool.stats().warm_hits == 1


SCRATCH_ATTACKS = [
    attack for attack in ATTACKS if attack.limit in {LimitName.SCRATCH_BYTES, LimitName.SCRATCH_INODES}
]


@pytest.mark.parametrize("attack", SCRATCH_ATTACKS, ids=lambda attack: attack.guest)
async def test_after_an_attack_its_folder_is_removed(run, root, attack):
    result = await run(module=attack.module, scratch=True, **attack.granted)
    assert (result.outcome, result.limit) == (Outcome.KILLED, attack.limit)
    await until(lambda: list(root.iterdir()) == [])
    assert (await run("list", "/scratch", **GRANTED)).stdout == b""


async def test_the_folder_of_a_worker_that_was_killed_is_removed(run, pool, root):
    running = asyncio.create_task(run("spin", wall_ms=60_000, **GRANTED))
    await until(lambda: pool._busy and all(worker.is_loaded for worker in pool._busy))
    (folder,) = root.iterdir()
    (folder / "left").write_text("by a guest")
    for worker in pool._busy:
        os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashedError):
        await running
    await until(lambda: list(root.iterdir()) == [])


async def test_a_worker_whose_folder_cannot_be_emptied_runs_nothing_any_more(run, pool, root, monkeypatch):
    def refuses(*_arguments, **_named):
        raise ResourceExhaustedError("too much")

    monkeypatch.setattr(pool_module, "empty_folder", refuses)
    assert (await run("write", "/scratch/note", **GRANTED)).outcome is Outcome.SUCCEEDED
    assert pool.stats().warm == 0
    await until(lambda: list(root.iterdir()) == [])


async def test_what_an_earlier_process_left_is_removed_at_the_start_and_its_own_at_the_end(engine, root):
    (root / "1" / "of" / "before").mkdir(parents=True)
    pool = WorkerPool(worker_path=worker_path(), engine=engine, slots=1, scratch=ScratchFolders(root))
    async with pool:
        assert list(root.iterdir()) == []
        made = pool._scratch.make()
        (made / "left").write_text("by a guest")
        (root / "of another process").mkdir()
    assert [path.name for path in root.iterdir()] == ["of another process"]


async def test_scratch_is_promised_only_where_the_disk_has_room_for_all_of_it(run, pool, root):
    folders = ScratchFolders(root)
    disk = os.statvfs(root)
    free = disk.f_bavail * disk.f_frsize
    with folders.promised(free // 2), pytest.raises(DiskFullError), folders.promised(free // 2):
        pass
    with pytest.raises(DiskFullError, match="scratch"):
        await run("hello", scratch=True, scratch_bytes=free, scratch_inodes=1)
    assert (pool.stats().busy, list(root.iterdir())) == (0, [])
    assert (await run("hello", **GRANTED)).outcome is Outcome.SUCCEEDED


async def test_a_sandbox_without_a_folder_refuses_to_promise_one(engine, artifacts, probe):
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1) as pool:
        with pytest.raises(UnavailableError, match="scratch"):
            await pool.run(
                tenant_id=TenantId("tnt_1"),
                module_digest=sha256_digest(probe),
                artifact=artifacts.opener(await artifacts.of(probe)),
                request=RunRequest(args=("probe", "hello"), scratch=True),
            )
        assert pool.stats().busy == 0

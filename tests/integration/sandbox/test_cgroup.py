"""Groups of workers, where the kernel gives them: what they hold, how a run ends that passes them, what is left."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox import cgroup
from data_plane.sandbox.cgroup import GroupBounds, WorkerGroups, open_groups
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import CompileLimits, Layer, RunRequest
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.worker import Worker
from shared.digests import sha256_digest
from shared.errors import ModuleInvalidError, ResourceExhaustedError, UnavailableError, WorkerCrashedError
from shared.limits import Limits
from shared.outcomes import LimitName, Outcome
from tests.integration.sandbox.conftest import TENANT, inside, wat

MIB = 1024 * 1024
SMALL_OVERHEAD_BYTES = 48 * MIB
"""Enough for a worker that loads a small module."""
HUNGRY = wat(
    """(module (memory (export "memory") 1)
      (func (export "_start")
        (if (i32.eq (memory.grow (i32.const 2048)) (i32.const -1)) (then unreachable))
        (memory.fill (i32.const 0) (i32.const 1) (i32.const 134217728))))"""
)
"""Writes to 128 MiB of memory."""
GRANTED = Limits(memory_bytes=256 * MIB)

NODE = """
import asyncio, sys
from agentfactory_engine import worker_path
from data_plane.sandbox.cgroup import WorkerGroups
from data_plane.sandbox.engine import read_engines
from data_plane.sandbox.pool import WorkerPool
from shared.manifest import Profile

async def main():
    engines = await read_engines(worker_path())
    engine = engines[Profile.DEFAULT]
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1, spares=2, groups=WorkerGroups.open()) as pool:
        for spare in pool._spares:
            print(*spare.process.group.folders, flush=True)
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def groups():
    found, state = open_groups()
    if found is None:
        pytest.skip(f"no cgroups here: {state.detail}")
    yield found
    found.close()
    assert left_by(os.getpid()) == []


@pytest.fixture
async def grouped_pool(engine, groups):
    async with WorkerPool(
        worker_path=worker_path(), engine=engine, slots=1, groups=groups, require=[Layer.CGROUP]
    ) as pool:
        yield pool


async def run_in(pool, artifacts, module, *args, limits=GRANTED):
    return await pool.run(
        tenant_id=TENANT,
        module_digest=sha256_digest(module),
        artifact=artifacts.opener(await artifacts.of(module)),
        request=RunRequest(args=("probe", *args), limits=limits),
    )


def bases() -> list[Path]:
    return list(cgroup._find(cgroup._own_groups(cgroup._OWN.read_text()), _mounts()).bases)


def _mounts():
    return cgroup._mounts(cgroup._MOUNTS.read_text())


def left_by(pid: int) -> list[Path]:
    return [folder for base in bases() for folder in base.glob(f"af-worker-{pid}-*")]


def idle(pool: WorkerPool) -> Worker:
    return next(iter(pool._idle.values()))[0]


def members(folder: Path) -> set[int]:
    return set(map(int, (folder / "cgroup.procs").read_text().split()))


async def test_monitor_and_worker_are_in_a_group_that_goes_with_them(engine, groups, artifacts, probe):
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1, groups=groups) as pool:
        assert (await run_in(pool, artifacts, probe, "hello")).stdout == b"hello\n"
        worker = idle(pool)
        both = {worker.process.pid, inside(worker.process)}
        folders = worker.process.group.folders
        assert all(members(folder) == both for folder in folders)
        assert {state.layer: state for state in worker.layers}[Layer.CGROUP].active is True
    assert not any(folder.exists() for folder in folders)


async def test_a_guest_beyond_its_group_is_killed_by_memory_bytes_and_the_next_run_is_well(
    engine, groups, artifacts, probe, monkeypatch
):
    """The engine's budget would let it have that much: the group stands behind the budget."""
    monkeypatch.setattr(cgroup, "RUN_OVERHEAD_BYTES", SMALL_OVERHEAD_BYTES)
    async with WorkerPool(
        worker_path=worker_path(), engine=engine, slots=1, groups=groups, max_memory_bytes=MIB
    ) as pool:
        result = await run_in(pool, artifacts, HUNGRY)
        assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.MEMORY_BYTES)
        assert (await run_in(pool, artifacts, probe, "hello")).stdout == b"hello\n"
        assert pool.stats().crashed == 0


async def test_a_guest_within_its_group_is_not_touched(grouped_pool, artifacts):
    assert (await run_in(grouped_pool, artifacts, HUNGRY)).outcome is Outcome.SUCCEEDED


async def test_memory_that_ran_out_around_the_node_is_no_fault_of_the_guest(
    engine, groups, artifacts, probe, monkeypatch
):
    with small_parent(groups, monkeypatch):
        async with WorkerPool(
            worker_path=worker_path(), engine=engine, slots=1, spares=0, groups=groups
        ) as pool:
            with pytest.raises(ResourceExhaustedError, match="no memory or disk left for worker"):
                await run_in(pool, artifacts, HUNGRY)
            assert (await run_in(pool, artifacts, probe, "hello")).stdout == b"hello\n"
            assert pool.stats().crashed == 0


@contextmanager
def small_parent(groups: WorkerGroups, monkeypatch: pytest.MonkeyPatch):
    """A bound around all workers that is less than the bound of one."""
    if len(groups._hierarchy.bases) == 1:
        pytest.skip("cgroup v2: a group that holds groups would have to hand its controllers down first")
    parent = groups.make(GroupBounds(memory_bytes=SMALL_OVERHEAD_BYTES, tasks=100))
    monkeypatch.setattr(groups._hierarchy, "bases", parent.folders)
    try:
        yield
    finally:
        monkeypatch.undo()
        groups.done_with(parent)


async def test_a_module_that_compiles_beyond_the_compilers_group_is_refused(
    groups, tmp_path, probe, monkeypatch
):
    monkeypatch.setattr(cgroup, "compile_bounds", lambda _: GroupBounds(memory_bytes=4 * MIB, tasks=16))
    monkeypatch.setattr(
        "data_plane.sandbox.compiler.compile_bounds", lambda _: GroupBounds(memory_bytes=4 * MIB, tasks=16)
    )
    (tmp_path / "module.wasm").write_bytes(probe)
    module_fd = os.open(tmp_path / "module.wasm", os.O_RDONLY)
    artifact_fd = os.open(tmp_path / "artifact", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(ModuleInvalidError, match="bytes of memory"):
            await WorkerCompiler(worker_path=worker_path(), groups=groups).compile(
                module_fd=module_fd, artifact_fd=artifact_fd, limits=CompileLimits()
            )
    finally:
        os.close(module_fd)
        os.close(artifact_fd)


@pytest.mark.parametrize("bounds", [cgroup.run_bounds(MIB), cgroup.compile_bounds(CompileLimits())])
def test_a_group_holds_no_more_tasks_than_it_may(groups, bounds):
    """By a process without a jail: a worker cannot start any."""
    code = (
        "import os, signal, sys\nsys.stdin.readline()\nstarted = []\n"
        "try:\n"
        "    while len(started) < 50:\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n            signal.pause()\n"
        "        started.append(pid)\n"
        "except BlockingIOError:\n    pass\n"
        "print(len(started) + 1)\n"
        "for pid in started:\n    os.kill(pid, signal.SIGKILL)\n    os.waitpid(pid, 0)\n"
    )
    group = groups.make(bounds)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        group.take(child.pid)
        assert child.communicate("go\n", timeout=30)[0] == f"{bounds.tasks}\n"
    groups.done_with(group)


async def test_what_a_worker_outside_its_group_says_is_not_believed(
    grouped_pool, artifacts, probe, monkeypatch
):
    monkeypatch.setattr(grouped_pool._groups._hierarchy, "begin", lambda _group, spawn: spawn())
    while grouped_pool._spares:
        grouped_pool._discard(grouped_pool._spares.pop())
    with pytest.raises(WorkerCrashedError, match="before it could be looked at"):
        await run_in(grouped_pool, artifacts, probe, "hello")


async def test_groups_of_a_dead_node_are_removed_and_those_of_a_live_one_stay(groups):
    nodes = [
        subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        folders = [await asyncio.to_thread(_folders_of, node) for node in nodes]
        assert all(len(each) >= 2 for each in folders)
        nodes[0].send_signal(signal.SIGKILL)
        nodes[0].wait()
        await _until_empty(folders[0])
        WorkerGroups.open().close()
        assert not any(folder.exists() for folder in folders[0])
        assert all(folder.exists() for folder in folders[1])
    finally:
        for node in nodes:
            node.kill()
            node.wait()
            assert node.stdout is not None
            node.stdout.close()
    await _until_empty(folders[1])
    WorkerGroups.open().close()
    assert not any(folder.exists() for folder in folders[1])


def _folders_of(node: subprocess.Popen[str]) -> list[Path]:
    assert node.stdout is not None
    found: list[Path] = []
    for line in node.stdout:
        if line == "ready\n":
            break
        found += map(Path, line.split())
    return found


async def _until_empty(folders: list[Path]) -> None:
    """Workers die with their node, which takes a moment."""
    async with asyncio.timeout(10):
        while any(members(folder) for folder in folders):
            await asyncio.sleep(0.01)


def test_a_demand_for_groups_is_refused_without_them(engine):
    with pytest.raises(UnavailableError, match="demanded and not possible here: cgroup"):
        WorkerPool(worker_path=worker_path(), engine=engine, slots=1, require=[Layer.CGROUP])
    with pytest.raises(UnavailableError, match="demanded and not possible here: cgroup"):
        WorkerCompiler(worker_path=worker_path(), require=[Layer.CGROUP])


def test_where_nothing_is_mounted_there_are_none_and_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "_MOUNTS", tmp_path / "mountinfo")
    (tmp_path / "mountinfo").touch()
    found, state = open_groups()
    assert (found, state.active) == (None, False)
    assert "no memory and pids controllers" in state.detail

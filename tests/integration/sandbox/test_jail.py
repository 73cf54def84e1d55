"""The jail as the node sees it: what a worker gave up, what it says about that, and what the node demands.

What a worker that was taken over can still do is tried in data_plane/engine/worker/tests/jail/.
"""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox.domain import Layer, LayerState, Preopen, RunRequest
from data_plane.sandbox.engine import check_layers, read_layers
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.worker import Worker
from shared.digests import sha256_digest
from shared.errors import UnavailableError
from shared.limits import Limits
from shared.outcomes import Outcome
from tests.integration.sandbox.conftest import TENANT, inside

EVERYWHERE = {Layer.SECCOMP, Layer.NAMESPACES, Layer.RLIMITS, Layer.NO_NEW_PRIVS}
"""Layers that have to hold wherever the tests run."""


CGROUP = None
"""0 where workers get cgroups, 4 where not."""


def _idle(pool: WorkerPool) -> Worker:
    return next(iter(pool._idle.values()))[0]


@pytest.fixture
async def nodes_pool(engine):
    """As a node has it: its guests are given no directory."""
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1) as pool:
        yield pool


@pytest.fixture
def nodes_run(nodes_pool, artifacts, probe):
    async def run_once():
        return await nodes_pool.run(
            tenant_id=TENANT,
            module_digest=sha256_digest(probe),
            artifact=artifacts.opener(await artifacts.of(probe)),
            request=RunRequest(args=("probe", "hello")),
        )

    return run_once


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a worker another user")
async def test_a_root_nodes_worker_is_nobody_outside_its_namespace_too(nodes_run, nodes_pool):
    await nodes_run()
    process = _idle(nodes_pool).process
    for pid in (process.pid, inside(process)):
        status = Path(f"/proc/{pid}/status").read_text()
        for kind in ("Uid", "Gid"):
            assert re.search(rf"^{kind}:(\t65534){{4}}$", status, re.MULTILINE), (pid, kind)
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE)


async def test_the_monitor_may_only_wait(nodes_run, nodes_pool):
    await nodes_run()
    status = Path(f"/proc/{_idle(nodes_pool).process.pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)


async def test_the_layers_that_must_hold_everywhere_hold_here():
    layers = await read_layers(worker_path())
    assert {state.layer for state in layers} == set(Layer)
    check_layers(layers, EVERYWHERE)


async def test_each_worker_says_which_layers_hold_around_it(nodes_run, nodes_pool):
    await nodes_run()
    pool = nodes_pool
    assert [state.layer for state in _idle(pool).layers if state.active] == [
        state.layer for state in await read_layers(worker_path()) if state.active
    ]


def test_a_demanded_layer_that_is_missing_is_named_with_its_reason():
    layers = [
        LayerState(layer=Layer.SECCOMP, active=True, detail="allow-list"),
        LayerState(layer=Layer.LANDLOCK, active=False, detail="not in this kernel"),
    ]
    check_layers(layers, [Layer.SECCOMP])
    with pytest.raises(UnavailableError, match=r"landlock \(not in this kernel\)"):
        check_layers(layers, [Layer.SECCOMP, Layer.LANDLOCK])
    with pytest.raises(UnavailableError, match="cgroup"):
        check_layers(layers, [Layer.CGROUP])


async def test_a_worker_without_a_demanded_layer_runs_nothing(engine, artifacts, probe):
    """One that no worker knows stands for one that does not hold here."""
    async with WorkerPool(worker_path=worker_path(), engine=engine, slots=1, require=["moat"]) as pool:
        with pytest.raises(UnavailableError, match="demanded and not possible here: moat"):
            await pool.run(
                tenant_id=TENANT,
                module_digest=sha256_digest(probe),
                artifact=artifacts.opener(await artifacts.of(probe)),
                request=RunRequest(args=("probe", "hello"), limits=Limits()),
            )


async def test_runs_with_other_directories_get_other_workers(run, pool, tmp_path):
    """A worker is locked to the directories it was loaded with: it could not open another one's files."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"file-{name}").touch()
        directory = Preopen(host_path=str(tmp_path / name), guest_path="/d")
        assert (await run("list", "/d", preopens=(directory,))).stdout == f"file-{name}\n".encode()
        assert (await run("list", "/d", preopens=(replace(directory, guest_path="/d"),))).exit_code == 0
    assert (pool.stats().warm, pool.stats().warm_hits) == (2, 2)


async def test_a_worker_whose_monitor_was_killed_dies_too(run, pool):
    await run("hello")
    process = _idle(pool).process
    pidfd = os.pidfd_open(inside(process))
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    poll = subprocess.run(
        [sys.executable, "-c", "import select; select.select([0], [], [], 30)[0] or exit(1)"],
        stdin=pidfd,
        check=False,
        timeout=40,
    )
    os.close(pidfd)
    assert poll.returncode == 0
    assert (await run("hello")).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 0), (("--require", "seccomp"), 0), (("--require", "cgroup"), CGROUP), (("--require", "moat"), 2)],
)
def test_doctor_says_what_holds_and_fails_for_what_does_not(arguments, code):
    command = [sys.executable, "-m", "cli.main", "sandbox", "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    if code != 2:
        states = {entry["layer"]: entry for entry in json.loads(done.stdout)}
        if code is CGROUP:
            code = 0 if states["cgroup"]["active"] else 4
        assert set(states) == set(Layer)
        assert states["seccomp"]["active"] is True
    assert done.returncode == code, done.stderr


async def test_a_worker_gives_up_what_it_does_not_need(run, pool):
    await run("hello")
    pid = inside(_idle(pool).process)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["NoNewPrivs"].strip() == "1"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max processes +0 +0 ", limits)
    assert re.search(r"Max open files +1088 +1088 ", limits)
    assert all(int(status[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"))
    assert status["NSpid"].split()[-1] == "1"
    # Two for loading (what the runtime lives without, and the allow-list), one after it.
    assert (status["Seccomp"].strip(), status["Seccomp_filters"].strip()) == ("2", "3")
    if os.geteuid() != 0:
        pytest.skip("only root may look into a process that is not dumpable")
    for kind in ("user", "pid", "net", "mnt", "ipc", "uts"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink(), kind
    assert Path(f"/proc/{pid}/net/dev").read_text().count(":") == 1  # a loopback, and it is down
    assert list(Path(f"/proc/{pid}/root").iterdir()) == []
    assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
    open_files = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    kinds = {re.sub(r"[0-9]+", "", name) for name in open_files}
    assert kinds == {"socket:[]", "/dev/null", "/memfd:worker-stderr (deleted)", "anon_inode:[timerfd]"}

"""Every limit is attacked: the run ends by the limit's name, within what it grants, and the next run is well."""

import os
import re
from dataclasses import fields

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import STACK_BYTES, Preopen
from shared.errors import ModuleInvalidError
from shared.limits import Limits
from shared.outcomes import LimitName, Outcome
from tests.guests.adversaries import ATTACKS, MODULE_ATTACKS

BLOCK_BYTES = 4096
USED = {
    LimitName.MEMORY_BYTES: "peak_memory_bytes",
    LimitName.OPEN_FILES: "peak_open_files",
}
"""Where the figure of what was used has another name than the limit."""


@pytest.mark.parametrize(
    "attack", ATTACKS, ids=lambda attack: f"{attack.limit}-{attack.guest}-{attack.profile}"
)
async def test_an_attack_ends_by_the_name_of_its_limit_and_the_next_run_is_well(run, pool, tmp_path, attack):
    scratch = Preopen(host_path=str(tmp_path), guest_path="/scratch", writable=True)
    options = {"profile": attack.profile, **attack.granted}
    result = await run(module=attack.module, preopens=(scratch,), **options)
    named = attack.limit if attack.outcome is Outcome.KILLED else None
    assert (result.outcome, result.limit) == (attack.outcome, named)
    limits = Limits(**attack.granted)
    for limit in fields(Limits):
        if limit.name not in {"wall_ms", "cpu_ms", "host_call_ms"}:
            used = getattr(result.resources, USED.get(limit.name, limit.name))
            assert used <= getattr(limits, limit.name), limit.name
    assert disk_bytes(tmp_path) <= limits.scratch_bytes + limits.scratch_inodes * BLOCK_BYTES
    after = await run("hello")
    assert (after.outcome, after.stdout) == (Outcome.SUCCEEDED, b"hello\n")
    assert pool.stats().busy == 0


@pytest.mark.parametrize("attack", MODULE_ATTACKS, ids=lambda attack: f"{attack.limit}-{attack.name}")
async def test_a_module_that_passes_a_limit_is_refused_by_name_and_the_next_compiles(tmp_path, probe, attack):
    async def compile_module(module, limits):
        (tmp_path / "module.wasm").write_bytes(module)
        module_fd = os.open(tmp_path / "module.wasm", os.O_RDONLY)
        artifact_fd = os.open(tmp_path / "artifact", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            compiler = WorkerCompiler(worker_path=worker_path())
            return await compiler.compile(module_fd=module_fd, artifact_fd=artifact_fd, limits=limits)
        finally:
            os.close(module_fd)
            os.close(artifact_fd)

    with pytest.raises(ModuleInvalidError) as caught:
        await compile_module(attack.module, attack.limits)
    assert re.search(attack.says, str(caught.value))
    assert (await compile_module(probe, type(attack.limits)())).artifact_bytes


async def test_what_a_killed_run_used_is_said(run, tmp_path):
    scratch = Preopen(host_path=str(tmp_path), guest_path="/scratch", writable=True)
    attack = next(attack for attack in ATTACKS if attack.guest == "make_files")
    result = await run(module=attack.module, preopens=(scratch,), scratch_bytes=100, scratch_inodes=7)
    assert (result.limit, result.resources.scratch_inodes) == (LimitName.SCRATCH_INODES, 7)
    assert len(list(tmp_path.iterdir())) == 7


async def test_the_call_stack_is_as_large_as_is_said(run):
    deep = next(attack for attack in ATTACKS if attack.guest == "recurse")
    assert STACK_BYTES == 1024 * 1024
    assert (await run(module=deep.module)).limit is LimitName.STACK_BYTES


def disk_bytes(folder):
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))

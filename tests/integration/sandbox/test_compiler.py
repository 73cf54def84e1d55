"""Modules that must not become artifacts, and compilations that must not get through."""

import os
from datetime import timedelta

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import DEFAULT_COMPILE_LIMITS, CompileLimits
from shared.errors import DiskFullError, ModuleInvalidError, UnavailableError
from tests.guests.adversaries import many_variables
from tests.integration.sandbox.conftest import wat

START = '(func (export "_start"))'
MEMORY = '(memory (export "memory") 1)'


@pytest.fixture
async def compile_module(tmp_path):
    async def compile_once(
        module: bytes, limits: CompileLimits = DEFAULT_COMPILE_LIMITS, *, target: int | None = None
    ):
        (tmp_path / "module.wasm").write_bytes(module)
        module_fd = os.open(tmp_path / "module.wasm", os.O_RDONLY)
        artifact_fd = os.open(tmp_path / "artifact", os.O_RDWR | os.O_CREAT) if target is None else target
        try:
            return await WorkerCompiler(worker_path=worker_path()).compile(
                module_fd=module_fd, artifact_fd=artifact_fd, limits=limits
            )
        finally:
            os.close(module_fd)
            os.close(artifact_fd)

    return compile_once


async def test_an_agent_compiles_to_an_artifact_of_this_engine(compile_module, probe, engine, tmp_path):
    compiled = await compile_module(probe)
    assert compiled.engine == engine
    assert compiled.artifact_bytes == (tmp_path / "artifact").stat().st_size
    assert compiled.took > timedelta(0)


async def test_the_same_module_gives_the_same_artifact(compile_module, probe, tmp_path):
    await compile_module(probe)
    first = (tmp_path / "artifact").read_bytes()
    (tmp_path / "artifact").unlink()
    await compile_module(probe)
    assert (tmp_path / "artifact").read_bytes() == first


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (b"", "unexpected end"),
        (b"#!/bin/sh\n", "magic header"),
        (wat(f"(module {START})"), "export memory is missing"),
        (wat(f"(module {MEMORY})"), "export _start is missing"),
        (wat(f'(module {MEMORY} (func (export "_start") (param i32)))'), r"func \(i32\) -> \(\)"),
        (wat(f'(module {MEMORY} (global (export "_start") i32 (i32.const 0)))'), "is a global"),
        (wat(f'(module (import "env" "system" (func)) {MEMORY} {START})'), "env.system is not offered"),
        (
            wat(f'(module (import "wasi_snapshot_preview1" "memory" (memory 1)) {MEMORY} {START})'),
            "multiple memories|only functions",
        ),
        (wat(f'(module (import "wasi_snapshot_preview1" "fd_fly" (func)) {MEMORY} {START})'), "fd_fly"),
        (wat(f'(module (import "wasi_snapshot_preview1" "fd_sync" (func)) {MEMORY} {START})'), "fd_sync"),
        (wat(f'(module (memory (export "memory") 1 1 shared) {START})'), "threads|shared"),
        (wat(f'(module (memory (export "memory") i64 1) {START})'), "memory64|64-bit"),
        (wat(f"(module {MEMORY} (memory 1) {START})"), "multiple memories|multi-memory"),
        (wat(f"(module {MEMORY} (tag) {START})"), "exceptions"),
    ],
)
async def test_what_is_no_agent_is_refused_with_the_reason(compile_module, module, why):
    with pytest.raises(ModuleInvalidError, match=why) as caught:
        await compile_module(module)
    assert "\n" not in str(caught.value)


async def test_a_module_at_the_size_limit_compiles_and_one_byte_more_does_not(compile_module, probe):
    await compile_module(probe, CompileLimits(module_bytes=len(probe)))
    with pytest.raises(ModuleInvalidError, match="more than"):
        await compile_module(probe, CompileLimits(module_bytes=len(probe) - 1))


async def test_an_artifact_that_grows_too_large_is_refused(compile_module, probe):
    with pytest.raises(ModuleInvalidError, match="artifact has"):
        await compile_module(probe, CompileLimits(artifact_bytes=10_000))


async def test_a_module_made_to_explode_the_compiler_dies_alone(compile_module, probe):
    bomb = wat(many_variables())
    with pytest.raises(ModuleInvalidError, match=r"does not compile within 0:00:00\.05"):
        await compile_module(bomb, CompileLimits(wall=timedelta(milliseconds=50)))
    with pytest.raises(ModuleInvalidError, match="bytes of memory"):
        await compile_module(bomb, CompileLimits(memory_bytes=64 * 1024 * 1024))
    assert (await compile_module(probe)).artifact_bytes


async def test_a_full_disk_is_named(compile_module, probe):
    with pytest.raises(DiskFullError):
        await compile_module(probe, target=os.open("/dev/full", os.O_WRONLY))


async def test_a_missing_worker_is_unavailable(tmp_path):
    with pytest.raises(UnavailableError, match="cannot be started"):
        await WorkerCompiler(worker_path=str(tmp_path / "none")).compile(module_fd=0, artifact_fd=1)

"""The build backend: what its key covers, that a cached wheel is only copied, and what a missing toolchain says."""

import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[4] / "data_plane" / "engine"


@pytest.fixture
def sources(tmp_path):
    """A copy of what the key covers, without compiled things."""
    folder = tmp_path / "engine"
    shutil.copytree(
        ENGINE, folder, ignore=shutil.ignore_patterns("build", "target", "*.egg-info", "__pycache__")
    )
    return folder


@pytest.fixture
def backend(sources):
    spec = importlib.util.spec_from_file_location("build_engine_copy", sources / "build_engine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "worker/src/run.rs",
        "python/src/lib.rs",
        "wasi/Cargo.toml",
        "Cargo.lock",
        "agentfactory_engine/__init__.py",
    ],
)
def test_every_source_decides_the_key(backend, sources, name):
    before = backend.build_key()
    with (sources / name).open("a") as file:
        file.write("\n")
    assert backend.build_key() != before


def test_a_new_or_renamed_source_decides_the_key(backend, sources):
    before = backend.build_key()
    (sources / "worker/src/extra.rs").write_text("")
    with_extra = backend.build_key()
    (sources / "worker/src/extra.rs").rename(sources / "worker/src/other.rs")
    assert len({before, with_extra, backend.build_key()}) == 3


def test_nothing_else_decides_the_key(backend, sources):
    before = backend.build_key()
    (sources / "README.md").write_text("words")
    (sources / "wasi/tests").mkdir(exist_ok=True)
    (sources / "wasi/tests/more.rs").write_text("")
    assert backend.build_key() == before


def test_the_toolchain_decides_the_key(backend, monkeypatch):
    before = backend.build_key()
    monkeypatch.setattr(backend, "_toolchain", lambda: "rustc 9.9.9")
    assert backend.build_key() != before


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_a_cached_wheel_is_copied_and_nothing_is_built(backend, monkeypatch, tmp_path, hook):
    monkeypatch.setenv("AF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(backend, "compile_crates", lambda: pytest.fail("nothing may be built"))
    cached = (
        tmp_path / "cache" / "engine" / backend.build_key() / "agentfactory_engine-0.1.0-cp311-abi3-x.whl"
    )
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"wheel")
    (tmp_path / "out").mkdir()
    name = getattr(backend, hook)(str(tmp_path / "out"))
    assert (tmp_path / "out" / name).read_bytes() == b"wheel"


def test_sources_that_change_during_a_build_are_not_cached_under_the_old_key(
    backend, sources, monkeypatch, tmp_path
):
    monkeypatch.setenv("AF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(backend, "compile_crates", lambda: (sources / "Cargo.lock").write_text("changed"))
    setuptools = types.ModuleType("setuptools")
    setuptools.build_meta = types.SimpleNamespace(
        build_wheel=lambda folder, *_: Path(shutil.copy(ENGINE / "Cargo.toml", Path(folder) / "x.whl")).name
    )
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    with pytest.raises(SystemExit) as ended:
        backend.build_wheel(str(tmp_path))
    assert ended.value.code == 4
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_what_another_checkout_compiled_last_is_compiled_again(backend, sources, monkeypatch, tmp_path):
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path))
    monkeypatch.setattr(backend, "_compile", lambda _package: None)
    root = sources / "worker/src/lib.rs"

    def is_compiled_again() -> bool:
        os.utime(root, (1, 1))
        backend.compile_crates()
        return root.stat().st_mtime > 1

    assert is_compiled_again()
    assert not is_compiled_again()
    (tmp_path / "agentfactory-build.key").write_text("another checkout")
    assert is_compiled_again()


def test_only_so_many_old_wheels_are_kept(backend, tmp_path):
    for index in range(backend.MAX_KEPT_WHEELS + 3):
        folder = tmp_path / f"{index:064x}"
        folder.mkdir()
        os.utime(folder, (index, index))
    (tmp_path / "new-unfinished").mkdir()
    backend._forget_old(tmp_path)
    kept = sorted(entry.name for entry in tmp_path.iterdir() if len(entry.name) == 64)
    assert kept == [f"{index:064x}" for index in range(3, backend.MAX_KEPT_WHEELS + 3)]
    assert (tmp_path / "new-unfinished").exists()


@pytest.mark.parametrize("rustc", [None, "release: 1.63.0"])
def test_a_missing_or_old_toolchain_is_one_line_that_names_packages(tmp_path, rustc):
    if rustc:
        for name in ("rustc", "cargo"):
            script = tmp_path / name
            script.write_text(f"#!/bin/sh\necho '{rustc}'\n")
            script.chmod(0o755)
    done = subprocess.run(
        [sys.executable, ENGINE / "build_engine.py"],
        env={"PATH": f"{tmp_path}", "HOME": str(tmp_path), "AF_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "rustc-web and cargo-web" in done.stderr

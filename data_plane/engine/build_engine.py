# ruff: noqa: INP001 - a build backend is found by its folder, not by a package
"""Build backend of the engine: setuptools behind a cache, because compiling the engine takes 700 s of CPU.

A wheel is kept outside the checkout under a digest of everything that decides its content: the sources, the
lock file, the Rust toolchain and the Python tag. A change of Python code elsewhere never builds it again.

Run as a program, it compiles with visible progress, so that the quiet build inside an installer finds its
work done.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
PACKAGES: Final = ("agentfactory-worker", "agentfactory-engine-python")
PYTHON_TAG: Final = "cp311-abi3"
EXIT_UNAVAILABLE: Final = 4
LOG_EVERY_CRATES: Final = 10
"""Off a terminal, one line for so many crates."""
MAX_KEPT_WHEELS: Final = 8
"""Wheels of older sources or toolchains that stay; the least recently used go."""

_SOURCES: Final = (
    "Cargo.toml",
    "Cargo.lock",
    "*/Cargo.toml",
    "*/src/**/*.rs",
    "agentfactory_engine/*.py",
    "agentfactory_engine/*.pyi",
    "agentfactory_engine/py.typed",
    "pyproject.toml",
    "build_engine.py",
)

Config = Mapping[str, Any] | None


# --- the hooks of PEP 517 and PEP 660 ---


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:  # noqa: ARG001 - the hook's signature
    """Nothing beyond ``build-system.requires``."""
    return []


def get_requires_for_build_editable(config_settings: Config = None) -> list[str]:  # noqa: ARG001 - the hook's signature
    """Nothing beyond ``build-system.requires``."""
    return []


def build_wheel(
    wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None
) -> str:
    """Put the wheel into ``wheel_directory`` and return its name; built only if no cached one fits."""
    with _one_line_errors(), _one_build():
        cached = _cached_wheel()
        if cached is None:
            cached = _build(config_settings, metadata_directory)
        os.utime(cached.parent)
        shutil.copy2(cached, wheel_directory)
        return cached.name


def build_editable(
    wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None
) -> str:
    """The same wheel: machine code cannot be edited in place."""
    return build_wheel(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Config = None) -> str:
    """As setuptools does."""
    from setuptools import build_meta  # noqa: PLC0415 - not installed when run as a program

    return str(build_meta.build_sdist(sdist_directory, config_settings))


# --- the cache ---


def cache_folder() -> Path:
    """Where compiled things live: ``AF_CACHE_DIR``, else ``agentfactory`` in the XDG cache home."""
    named = os.environ.get("AF_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentfactory"


def build_key() -> str:
    """The digest of all that decides what the wheel contains."""
    digest = hashlib.sha256()
    for name, content in _inputs():
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _inputs() -> Iterator[tuple[str, bytes]]:
    yield "rustc", _toolchain().encode()
    yield "python", f"{PYTHON_TAG} {sys.platform} {platform.machine()}".encode()
    files = {path for pattern in _SOURCES for path in HERE.glob(pattern) if path.is_file()}
    for path in sorted(files):
        yield str(path.relative_to(HERE)), path.read_bytes()


def _cached_wheel() -> Path | None:
    folder = cache_folder() / "engine" / build_key()
    return next(iter(sorted(folder.glob("*.whl"))), None)


def _build(config_settings: Config, metadata_directory: str | None) -> Path:
    from setuptools import build_meta  # noqa: PLC0415 - not installed when run as a program

    key = build_key()
    compile_crates()
    folder = cache_folder() / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(_cargo_environment())
    # setuptools gathers from its build folder; what an older build left there must not get into this wheel.
    shutil.rmtree(HERE / "build", ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as fresh:
        name: str = build_meta.build_wheel(fresh, dict(config_settings or {}), metadata_directory)
        if build_key() != key:
            raise BuildError("the engine's sources changed while it was built; build again")
        target = folder / key
        target.mkdir(exist_ok=True)
        # A rename within one folder is atomic: another build sees the whole wheel or none.
        Path(fresh, name).replace(target / name)
    _forget_old(folder)
    return target / name


@contextmanager
def _one_build() -> Iterator[None]:
    """Wait for other builds: all share one target folder, and what one compiles another must not pack."""
    target = Path(_cargo_environment()["CARGO_TARGET_DIR"])
    target.mkdir(parents=True, exist_ok=True)
    with (target / "agentfactory-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_old(folder: Path) -> None:
    kept = sorted(
        (entry for entry in folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}", entry.name)),
        key=lambda entry: entry.stat().st_mtime,
        reverse=True,
    )
    for entry in kept[MAX_KEPT_WHEELS:]:
        shutil.rmtree(entry, ignore_errors=True)


# --- cargo ---


class BuildError(Exception):
    """The engine cannot be built here; the message is one line that says what to do."""


def compile_crates() -> None:
    """Compile what the wheel contains, and say how far it is.

    Raises:
        BuildError: cargo is missing, too old, or failed.
    """
    _toolchain()
    marker = Path(_cargo_environment()["CARGO_TARGET_DIR"]) / "agentfactory-build.key"
    built = f"{build_key()} {HERE}\n"
    if not marker.is_file() or marker.read_text() != built:
        # cargo judges by time stamps and takes two checkouts with one target folder for one: what another
        # checkout compiled last would pass as ours. Only our own crates are compiled again.
        for root in (*HERE.glob("*/src/lib.rs"), *HERE.glob("*/src/main.rs")):
            root.touch()
        marker.unlink(missing_ok=True)
    for package in PACKAGES:
        # One cargo call for each: together their features are unified, and wasmer is compiled a second time.
        _compile(package)
    marker.write_text(built)


def _compile(package: str) -> None:
    total = _count_crates(package)
    started = time.monotonic()
    done: set[str] = set()
    command = ["cargo", "build", "--release", "--locked", "-p", package]
    # cargo's own lines would tear the counter on a terminal; errors still come rendered.
    command += ["--quiet", "--message-format", "json-render-diagnostics"]
    process = subprocess.Popen(  # noqa: S603 - a fixed command
        command, cwd=HERE, env={**os.environ, **_cargo_environment()}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("reason") == "compiler-artifact" and message["package_id"] not in done:
                done.add(message["package_id"])
                if not message["fresh"]:
                    _progress(package, len(done), total, time.monotonic() - started)
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    if process.returncode != 0:
        raise BuildError(f"cargo could not build {package}; its messages are above")


def _count_crates(package: str) -> int:
    command = [
        "cargo",
        "tree",
        "--locked",
        "-p",
        package,
        "-e",
        "normal,build",
        "--prefix",
        "none",
        "-f",
        "{p}",
    ]
    listed = subprocess.run(  # noqa: S603 - a fixed command
        command,
        cwd=HERE,
        env={**os.environ, **_cargo_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        reason = next(iter(listed.stderr.strip().splitlines()), "no reason given")
        raise BuildError(f"cargo cannot resolve the engine's crates: {reason}")
    return len({line.removesuffix(" (*)") for line in listed.stdout.splitlines() if line.strip()})


def _progress(package: str, done: int, total: int, elapsed: float) -> None:
    text = f"{package}: crate {done} of {total}, {elapsed:.0f} s"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}\033[K")
    elif done % LOG_EVERY_CRATES == 0 or done == total:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _cargo_environment() -> dict[str, str]:
    """One target folder for build, test and clippy; and the switch that setuptools-rust sets as well."""
    target = os.environ.get("CARGO_TARGET_DIR") or str(cache_folder() / "cargo-target")
    return {"CARGO_TARGET_DIR": target, "PYO3_BUILD_EXTENSION_MODULE": "1"}


def _toolchain() -> str:
    wanted = _wanted_rust()
    try:
        version = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout  # noqa: S607
        subprocess.run(["cargo", "--version"], capture_output=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"the engine needs cargo and rustc {wanted} or newer, and none runs here; "
            "Debian has them in the packages rustc-web and cargo-web, others by rustup.rs"
        ) from error
    found = re.search(r"^release: (\d+)\.(\d+)", version, re.MULTILINE)
    if found is None or (int(found[1]), int(found[2])) < tuple(int(part) for part in wanted.split(".")[:2]):
        raise BuildError(
            f"the engine needs rustc {wanted} or newer, this one is {found[0] if found else 'unknown'}; "
            "Debian has a newer one in the packages rustc-web and cargo-web, others by rustup.rs"
        )
    return version


def _wanted_rust() -> str:
    found = re.search(r'^rust-version = "([0-9.]+)"', (HERE / "Cargo.toml").read_text(), re.MULTILINE)
    assert found is not None, "Cargo.toml names the Rust version it needs"
    return found[1]


class _one_line_errors:  # noqa: N801 - used as a statement
    """Turns ``BuildError`` into one line and the exit code for "unavailable"."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BuildError):
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(EXIT_UNAVAILABLE)


def main() -> None:
    """Compile unless a wheel of these sources is cached already."""
    with _one_line_errors(), _one_build():
        if _cached_wheel() is None:
            compile_crates()


if __name__ == "__main__":
    main()

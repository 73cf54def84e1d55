"""Pure-Python dependencies of an agent: locked with hashes, downloaded once, unpacked in memory.

Nothing of a dependency runs on this machine: only wheels are taken, and what is in them runs in the sandbox.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

from cli.guests.python_bundle import DEPENDENCIES
from shared.errors import AgentBuildError, UnavailableError

FILE: Final = "requirements.txt"
MAX_FILE_BYTES: Final = 256 * 1024
MAX_UNPACKED_BYTES: Final = 32 * 1024 * 1024
DOWNLOAD_TIMEOUT_S: Final = 300
_LOCK: Final = (
    "lock it: uv pip compile --generate-hashes --python-version 3.13 -o requirements.txt requirements.in"
)
_NATIVE: Final = (".so", ".pyd", ".dylib", ".dll")
_LINE: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*(?P<version>[^\s;]+)\s*(?:;[^-]*)?"
    r"(?P<hashes>(?:\s*--hash=sha256:[0-9a-f]{64})+)\s*"
)


def dependencies(folder: Path, cache: Path, progress: Callable[[str], None]) -> dict[str, bytes]:
    """Return the Python files of what requirements.txt names, under `DEPENDENCIES`; without it nothing.

    Raises:
        AgentBuildError: A line is not locked with hashes, a dependency has native code, or all is too large.
        UnavailableError: The package index cannot be reached, or there is no pip here.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    text = path.read_bytes()[: MAX_FILE_BYTES + 1]
    if len(text) > MAX_FILE_BYTES:
        raise AgentBuildError(f"{FILE} has more than {MAX_FILE_BYTES} bytes")
    if not list(_lines(text.decode("utf-8", "replace"))):
        return {}
    wheels = cache / "wheels" / sha256(text).hexdigest()
    if not (wheels / ".complete").exists():
        progress("downloading dependencies")
        _download(path, wheels)
    found: dict[str, bytes] = {}
    for wheel in sorted(wheels.glob("*.whl")):
        found |= _unpack(wheel)
        if sum(map(len, found.values())) > MAX_UNPACKED_BYTES:
            raise AgentBuildError(f"the dependencies have more than {MAX_UNPACKED_BYTES} bytes of Python")
    return found


def _lines(text: str) -> Iterator[str]:
    """Yield each requirement, all of them checked to be locked."""
    joined = text.replace("\\\n", " ")
    for number, raw in enumerate(joined.splitlines(), 1):
        line = raw.partition(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        if _LINE.fullmatch(line) is None:
            what = line.split()[0][:80]
            raise AgentBuildError(
                f"{FILE}: line {number}: {what} is not NAME==VERSION with hashes", hint=_LOCK
            )
        yield line


def _download(requirements: Path, wheels: Path) -> None:
    wheels.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=wheels.parent, prefix=".new-") as folder:
        target = Path(folder) / "wheels"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ]
        command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--python-version", "3.13"]
        command += ["--implementation", "py", "--abi", "none", "--platform", "any"]
        command += ["--dest", str(target), "--requirement", str(requirements.resolve())]
        try:
            done = subprocess.run(  # noqa: S603 - arguments are fixed, the file was checked line by line
                command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"dependencies did not arrive within {DOWNLOAD_TIMEOUT_S} s") from error
        if done.returncode:
            raise _error_of(done.stderr)
        (target / ".complete").touch()
        if not wheels.exists():
            target.rename(wheels)


def _error_of(said: str) -> AgentBuildError | UnavailableError:
    if "No module named pip" in said:
        return UnavailableError("there is no pip in this environment", hint="pip install pip")
    missing = re.search(r"No matching distribution found for ([^\s(]+)", said)
    if missing and "from versions: none" not in said:
        return _native(missing[1])
    if missing:
        # pip names no versions both for native packages and for an index that cannot be reached.
        return (
            _native(missing[1]) if "Connection" not in said else UnavailableError("no package index answers")
        )
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in said:
        return AgentBuildError(f"{FILE}: a download is not what its hash says", hint=_LOCK)
    lines = (
        [line for line in said.splitlines() if line.startswith("ERROR:")]
        or said.splitlines()
        or ["pip failed"]
    )
    return AgentBuildError(f"{FILE}: {lines[0].removeprefix('ERROR:').strip()[:300]}")


def _native(name: str) -> AgentBuildError:
    return AgentBuildError(
        f"{FILE}: {name} has no pure-Python wheel of that version: native code does not run in the sandbox",
        hint="take a package that is written in Python alone, or do this part with the standard library",
    )


def _unpack(wheel: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    total = 0
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename
            if name.endswith(_NATIVE):
                raise _native(wheel.name.split("-")[0])
            if (
                not name.endswith(".py")
                or ".data/" in name
                or name.startswith("/")
                or ".." in name.split("/")
            ):
                continue
            total += entry.file_size
            if total > MAX_UNPACKED_BYTES:
                raise AgentBuildError(
                    f"{wheel.name} unpacks to more than {MAX_UNPACKED_BYTES} bytes of Python"
                )
            with archive.open(entry) as file:
                found[DEPENDENCIES + name] = file.read(MAX_UNPACKED_BYTES)
    return found

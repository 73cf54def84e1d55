"""What the lock files name: the packages of Python and the crates of Rust, with where they come from. Reads only."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHON: Final = ROOT / "uv.lock"
RUST: Final = (
    ROOT / "data_plane" / "engine" / "Cargo.lock",
    ROOT / "data_plane" / "engine" / "wasi" / "fuzz" / "Cargo.lock",
    ROOT / "tests" / "guests" / "random" / "Cargo.lock",
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Locked:
    """One version of one package."""

    name: str
    version: str
    ours: bool
    """It is part of this repository: no registry has it."""
    sha256: str = ""
    """Of a crate as its registry has it, in hexadecimal digits."""


def python_packages() -> list[Locked]:
    """Return every package that any group of the project may install."""
    found = tomllib.loads(PYTHON.read_text(encoding="utf-8"))["package"]
    return sorted(
        Locked(name=one["name"], version=one["version"], ours="registry" not in one["source"])
        for one in found
    )


def crates(lock: Path) -> list[Locked]:
    """Return the crates that a workspace is built of."""
    found = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    return sorted(
        Locked(
            name=one["name"],
            version=one["version"],
            ours="source" not in one,
            sha256=one.get("checksum", ""),
        )
        for one in found
    )


def settings(gate: str) -> dict[str, Any]:
    """Return what pyproject.toml says for one gate: what is allowed, and each exception with its reason."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    found: dict[str, Any] = tools["agentfactory"][gate]
    return found

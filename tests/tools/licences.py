"""Every dependency has a licence that may be shipped with Apache-2.0: `python -m tests.tools.licences`.

What is allowed stands in pyproject.toml (`tool.agentfactory.licences`), each exception with its reason. A package whose
metadata names no licence that is understood is a failure, and so is an exception that nothing needs.
"""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from tests.tools.locked import RUST, settings

TOKEN: Final = re.compile(r"[()]|[^\s()]+")
NAMES: Final[Mapping[str, str]] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""What metadata from before SPDX expressions says."""


def allows(expression: str, allowed: Collection[str]) -> bool:
    """Say whether an SPDX expression can be satisfied with the allowed licences alone.

    `WITH` adds permissions, so the licence in front of it decides. A slash is how crates once wrote OR.

    Raises:
        ValueError: It is no expression.
    """
    tokens = TOKEN.findall(re.sub(r"\s*/\s*", " OR ", expression))
    if not tokens:
        raise ValueError(f"{expression!r} is no licence expression")
    result = _either(tokens, allowed)
    if tokens:
        raise ValueError(f"{expression!r} is no licence expression: {tokens[0]!r} is left over")
    return result


def _either(tokens: list[str], allowed: Collection[str]) -> bool:
    result = _both(tokens, allowed)
    while tokens and tokens[0] == "OR":
        del tokens[0]
        result = _both(tokens, allowed) or result
    return result


def _both(tokens: list[str], allowed: Collection[str]) -> bool:
    result = _one(tokens, allowed)
    while tokens and tokens[0] == "AND":
        del tokens[0]
        result = _one(tokens, allowed) and result
    return result


def _one(tokens: list[str], allowed: Collection[str]) -> bool:
    if not tokens or tokens[0] in {"AND", "OR", "WITH", ")"}:
        raise ValueError("a licence expression has a gap")
    name = tokens.pop(0)
    if name != "(":
        if tokens[:1] == ["WITH"]:
            del tokens[:2]
        return name in allowed
    result = _either(tokens, allowed)
    if not tokens or tokens.pop(0) != ")":
        raise ValueError("a licence expression lacks a ')'")
    return result


def python_licences() -> Iterator[tuple[str, str]]:
    """Return name and licence of everything that is installed here but what is ours."""
    for distribution in importlib.metadata.distributions():
        yield distribution.name.lower().replace("_", "-"), licence_of(distribution.metadata)


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """Return the SPDX expression that the metadata names, or "" when it names none that is known."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classified = [
        name.rpartition(" :: ")[2]
        for name in metadata.get_all("Classifier") or []
        if name.startswith("License :: OSI")
    ]
    known = sorted({NAMES[name] for name in classified if name in NAMES})
    if known and len(known) == len(set(classified)):
        return " AND ".join(known)
    said = (metadata.get("License") or "").strip()
    return NAMES.get(said, said if re.fullmatch(r"[A-Za-z0-9.-]+", said) and said != "UNKNOWN" else "")


def rust_licences() -> Iterator[tuple[str, str]]:
    """Return name and licence of every crate of our workspaces."""
    for lock in RUST:
        manifest = str(lock.with_name("Cargo.toml"))
        arguments = ["cargo", "metadata", "--format-version", "1", "--locked", "--manifest-path", manifest]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, timeout=300)
        for crate in json.loads(done.stdout)["packages"]:
            if crate["source"] is not None:
                yield crate["name"], crate["license"] or ""


def refused(
    found: Mapping[str, str], allowed: Collection[str], exceptions: Mapping[str, str]
) -> Iterator[str]:
    """Return a line for each package that may not be used, and for each exception that nothing needs."""
    needed = {name for name, licence in found.items() if not licence or not allows(licence, allowed)}
    for name in sorted(needed - exceptions.keys()):
        yield f"{name}: {found[name] or 'its metadata names no licence'}: not in tool.agentfactory.licences"
    for name in sorted(exceptions.keys() - needed):
        yield f"{name}: tool.agentfactory.licences excepts it, and nothing needs that"


def main() -> int:
    rules = settings("licences")
    found = {name: licence for name, licence in python_licences() if not name.startswith("agentfactory")}
    counted = f"{len(found)} Python packages"
    exceptions = rules["exceptions"]
    if shutil.which("cargo"):
        crates = {f"{name} (crate)": licence for name, licence in rust_licences()}
        found |= crates
        counted += f" and {len(crates)} crates"
    else:
        exceptions = {name: why for name, why in exceptions.items() if not name.endswith("(crate)")}
        counted += "; no cargo, so crates were not looked at"
    lines = list(refused(found, rules["allowed"], exceptions))
    print("\n".join(lines) if lines else f"{counted}: every licence is allowed")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

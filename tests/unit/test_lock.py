"""What the lock file names can be installed, without a compiler, on every Python that we say we run on."""

import tomllib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[2]
OURS = {"agentfactory", "agentfactory-engine", "agentfactory-guest"}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + [
    "manylinux2014_x86_64",
    "linux_x86_64",
]


def locked() -> Mapping[str, Mapping[str, Any]]:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return {package["name"]: package for package in packages}


def installed(packages: Mapping[str, Mapping[str, Any]], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield what the programs need, directly and not, in an environment."""
    seen, todo = set[str](), ["agentfactory"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        package = packages[name]
        extras = package.get("optional-dependencies", {}).values()
        for dependency in [*package.get("dependencies", []), *(one for some in extras for one in some)]:
            marker = dependency.get("marker")
            if marker is None or Marker(marker).evaluate(dict(environment)):
                todo.append(dependency["name"])


def tags(minor: int) -> AbstractSet[Tag]:
    version = (3, minor)
    return {*cpython_tags(version, platforms=PLATFORMS), *compatible_tags(version, f"cp3{minor}", PLATFORMS)}


def fits(package: Mapping[str, Any], tags: AbstractSet[Tag]) -> bool:
    names = [wheel["url"].rpartition("/")[2] for wheel in package.get("wheels", [])]
    return any(not parse_wheel_filename(name)[3].isdisjoint(tags) for name in names)


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_every_locked_package_has_a_wheel_for_each_python(minor: int) -> None:
    packages = locked()
    environment = {
        "python_full_version": f"3.{minor}.1",
        "python_version": f"3.{minor}",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    needed = set(installed(packages, environment))

    missing = sorted(name for name in needed - OURS if not fits(packages[name], tags(minor)))

    assert missing == []
    assert len(needed) > 40

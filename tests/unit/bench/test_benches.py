"""Only people run the benches: whatever they import of the product has to be there all the same."""

import importlib
import pkgutil

import pytest

import tests.bench
import tests.chaos
import tests.fuzz

PEERS = "tests.bench.peers."
"""Needs libraries that only the environment of `make bench-peers` has."""


def _modules() -> list[str]:
    return [
        found.name
        for package in (tests.bench, tests.chaos, tests.fuzz)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.startswith(PEERS)
    ]


@pytest.mark.parametrize("name", _modules())
def test_bench_can_be_loaded(name: str) -> None:
    importlib.import_module(name)

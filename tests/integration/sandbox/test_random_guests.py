"""Rule 20 for modules that nobody wrote, and for all guests and examples that somebody did."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.sandbox.conftest import GUESTS
from tests.integration.sandbox.random_guests import build_generator, compare_random, twice
from tests.tools.stages import cargo_environment

SECONDS = 40
FIRST = 1_000_000
FEWEST = 20
"""Modules that a slow machine still gets through."""
PROBES = ("hello", "both", "random", "clock", "args", "echo", "trap", "recurse", "grow", "flood-out", "sleep")
ACTIONS = (b"exit 3", b"output 1000", b"memory 3", b"trap", b"loop", b"flood", b"sleep 100")
TIMEOUT = timedelta(minutes=10)


async def test_guests_and_examples_run_twice_alike():
    async with twice() as comparison:
        for word in PROBES:
            await comparison.compare((GUESTS / "probe.wasm").read_bytes(), word, "1")
        for text in ACTIONS:
            await comparison.compare((GUESTS / "actor.wasm").read_bytes(), stdin=text)
        await comparison.compare((GUESTS / "look.wasm").read_bytes())
        for module in examples():
            for text in (b'{"text":"call +49 170 1234567 or a@b.example"}', b"not json", b""):
                await comparison.compare(module.read_bytes(), stdin=text)
    assert comparison.counts.modules > len(PROBES) + len(ACTIONS)


def examples() -> list[Path]:
    """The examples that are built: their modules are made by whoever runs them, from C."""
    return sorted((GUESTS.parents[1] / "examples").rglob("*.wasm"))


@pytest.mark.timeout(TIMEOUT.total_seconds())
async def test_random_modules_run_twice_alike():
    if shutil.which("cargo") is None:
        pytest.skip("there is no cargo to build the generator of modules with")
    generator = build_generator(cargo_environment())
    counts = await compare_random(generator, first=FIRST, seconds=SECONDS)
    assert counts.modules >= FEWEST

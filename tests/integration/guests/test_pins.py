"""The runtimes that are built here are those that were pinned: sources, compiler and scripts make the same bytes everywhere."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.fixtures.runtimes import ROOT, runtime_folder

PINNED: dict[str, str] = json.loads((ROOT / "guests" / "DIGESTS.json").read_bytes())
FILES = {
    "javascript": {"javascript.wasm": "agentfactory_javascript/javascript.wasm"},
    "python": {
        "python.wasm": "agentfactory_python/python.wasm",
        "stdlib.zip": "agentfactory_python/lib/stdlib.zip",
        "zones.bin": "agentfactory_python/lib/zones.bin",
    },
}


def test_every_pin_is_looked_at():
    assert sorted(PINNED) == sorted(name for files in FILES.values() for name in files)


@pytest.mark.parametrize("language", sorted(FILES))
def test_the_runtime_is_the_one_that_was_pinned(language: str):
    folder = runtime_folder(language)
    found = {name: _digest(folder / place) for name, place in FILES[language].items()}
    assert found == {name: PINNED[name] for name in FILES[language]}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""What shuffles a stream changes order and number, and loses nothing."""

import random
from pathlib import Path

import pytest

from tests.chaos.processes.node import SHUFFLED, Shuffler
from tests.chaos.processes.switches import turn_on

COUNT = 200


def shuffled(count: int) -> list[int]:
    shuffler: Shuffler[int] = Shuffler(random.Random(1))
    passed = [message for number in range(count) for message in shuffler.pass_on(number)]
    return [*passed, *shuffler.rest()]


def test_off_it_passes_everything_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_SWITCHES", str(tmp_path))
    assert shuffled(COUNT) == list(range(COUNT))


def test_on_some_come_twice_and_late_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAOS_SWITCHES", str(tmp_path))
    turn_on(tmp_path / SHUFFLED)
    found = shuffled(COUNT)
    assert set(found) == set(range(COUNT))
    assert len(found) > COUNT
    assert found != sorted(found)
    assert found[0] == 0, "a greeting stays the first"

from datetime import UTC, datetime

import pytest

from data_plane.sandbox.domain import MAX_ARGUMENTS, MAX_INPUT_BYTES, MAX_PREOPENS, Preopen, RunRequest
from shared.limits import LIMIT_FIELDS, Limits
from shared.outcomes import LimitName, Outcome

PREOPEN = Preopen(host_path="/h", guest_path="/g")


def test_limit_and_outcome_names_are_those_of_the_contract():
    assert set(LimitName) == {
        "wall_ms", "cpu_ms", "memory_bytes", "output_bytes", "log_bytes", "open_files", "table_elements",
        "stack_bytes", "random_bytes", "log_lines", "scratch_bytes", "scratch_inodes",
        "fuel", "host_calls", "host_call_bytes", "host_call_ms",
    }  # fmt: skip
    assert set(Outcome) == {
        "succeeded", "failed", "trapped", "killed", "rejected", "cancelled", "expired", "lost",
    }  # fmt: skip


@pytest.mark.parametrize("field", LIMIT_FIELDS)
def test_a_limit_below_nothing_is_refused_and_none_where_nothing_would_run(field):
    least = 1 if field in {"wall_ms", "cpu_ms", "fuel", "memory_bytes"} else 0
    assert getattr(Limits(**{field: least}), field) == least
    with pytest.raises(ValueError, match=field):
        Limits(**{field: least - 1})


def test_the_input_is_bounded():
    RunRequest(stdin=bytes(MAX_INPUT_BYTES))
    with pytest.raises(ValueError, match="the bound is"):
        RunRequest(stdin=bytes(MAX_INPUT_BYTES + 1))


def test_arguments_environment_and_directories_are_bounded():
    RunRequest(args=("a",) * MAX_ARGUMENTS, preopens=(PREOPEN,) * MAX_PREOPENS)
    with pytest.raises(ValueError, match="more than"):
        RunRequest(args=("a",) * (MAX_ARGUMENTS + 1))
    with pytest.raises(ValueError, match="more than"):
        RunRequest(env=(("a", "b"),) * (MAX_ARGUMENTS + 1))
    with pytest.raises(ValueError, match="the bound is 16"):
        RunRequest(preopens=(PREOPEN,) * (MAX_PREOPENS + 1))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_has_32_bytes(size):
    with pytest.raises(ValueError, match="not 32"):
        RunRequest(seed=bytes(size))


def test_a_clock_without_a_zone_is_refused():
    RunRequest(clock=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match="aware"):
        RunRequest(clock=datetime(2026, 1, 1))  # noqa: DTZ001 - the point of the test


def test_bodies_and_seeds_are_not_printed():
    text = repr(RunRequest(stdin=b"personal", seed=b"s" * 32))
    assert "personal" not in text
    assert "sss" not in text

"""The soak's line through the samples sees what grows, and nothing in what only swings."""

import os

from tests.chaos.soak import POSTGRES, Sample, growth, take_sample


def samples(
    memory: float, grows_by: float, files: int = 20, more_files: int = 0, more_processes: int = 0
) -> list[Sample]:
    """A hundred samples with a swing of 2 MiB in them."""
    return [
        Sample(
            at=number * 5.0,
            memory_mib=memory + grows_by * number / 99 + (2 if number % 2 else 0),
            files=files + more_files * number // 99,
            processes=10 + more_processes * number // 99,
        )
        for number in range(100)
    ]


def test_memory_that_swings_is_flat() -> None:
    assert growth("a", samples(60, 0)).ok


def test_memory_that_grows_is_named() -> None:
    (failure,) = growth("a", samples(60, 10)).failures
    assert failure.startswith("memory grew by 10")


def test_open_files_that_grow_are_named() -> None:
    (failure,) = growth("a", samples(60, 0, more_files=8)).failures
    assert failure.startswith("open files grew by")


def test_files_that_postgres_keeps_open_are_a_cache() -> None:
    assert growth(POSTGRES, samples(60, 0, more_files=500)).ok


def test_memory_of_postgres_that_grows_is_named() -> None:
    (failure,) = growth(POSTGRES, samples(60, 10)).failures
    assert failure.startswith("memory grew by 10")


def test_connections_that_are_never_given_back_are_named() -> None:
    (failure,) = growth(POSTGRES, samples(60, 0, more_processes=5)).failures
    assert failure.startswith("processes grew by")


def test_too_few_samples_prove_nothing() -> None:
    assert growth("a", samples(60, 0)[:3]).failures == ["only 3 samples"]


def test_a_sample_is_of_the_process_and_its_children() -> None:
    sample = take_sample(os.getpid())
    assert sample.memory_mib > 5
    assert sample.files > 2
    assert sample.processes >= 1

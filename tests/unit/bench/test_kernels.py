"""The bench of compute kernels: what it compares, what it promises, and that different results never pass as speed."""

import pytest

from shared.manifest import Profile
from tests.bench.kernels.build import kernel_names
from tests.bench.kernels.measure import (
    Answer,
    ResultsDifferError,
    Timing,
    geometric_mean,
    least_ms,
    same_results,
)
from tests.bench.kernels.promise import figures_of

COSTS = {Profile.DEFAULT: 10.0, Profile.DETERMINISTIC: 15.0, Profile.PORTABLE: 40.0}


def timing(name, ratio):
    return Timing(
        name=name,
        native_ms=10.0,
        sandbox_ms=10.0 * ratio,
        wasmtime_ms=10.0,
        interleaved_ms=9.0,
        profiles=COSTS,
    )


def test_what_a_profile_costs_is_a_multiple_of_the_default_ones_mean():
    figures = {figure.figure: figure.value for figure in figures_of([timing("lu", 1.2), timing("fir", 1.2)])}
    assert figures["the same mean, fuel-metered (profile deterministic)"] == pytest.approx(1.8)
    assert [value for name, value in figures.items() if "portable" in name] == [pytest.approx(4.8)]


def test_there_are_at_least_sixteen_kernels():
    assert len(kernel_names()) >= 16


def test_an_answer_is_a_checksum_and_a_time():
    assert Answer.parse(b"00ff 1500000\n") == Answer("00ff", 1_500_000)


def test_the_least_time_counts():
    assert least_ms([Answer("a", 3_000_000), Answer("a", 2_000_000), Answer("a", 9_000_000)]) == 2.0


def test_the_mean_is_geometric():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_equal_results_pass():
    same_results("lu", [Answer("a", 1)], [Answer("a", 2)])


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_one_run_with_another_result_fails_the_bench(odd):
    sides = [[Answer("a", 1), Answer("a", 1)] for _ in range(3)]
    sides[odd][1] = Answer("b", 1)

    with pytest.raises(ResultsDifferError, match="lu"):
        same_results("lu", *sides)


@pytest.mark.parametrize(("ratio", "ok"), [(1.17, True), (1.18, True), (1.19, False)])
def test_the_mean_is_held_against_its_bar(ratio, ok):
    mean, _, *_ = figures_of([timing("lu", ratio), timing("lu", ratio)])

    assert mean.bar_ok is ok


@pytest.mark.parametrize(("ratio", "ok"), [(1.79, True), (1.8, True), (1.81, False)])
def test_the_worst_kernel_is_named_and_held_against_its_bar(ratio, ok):
    _, worst, *_ = figures_of([timing("lu", 1.0), timing("folding", ratio), timing("heat_3d", 1.0)])

    assert (worst.bar_ok, "folding" in worst.figure) == (ok, True)

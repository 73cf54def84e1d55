"""A crowd gathers, a lone one never waits."""

import pytest

from shared.gathering import Gathering

LINGER = 0.01


def after(arrivals: int, *, gap: float, in_flight: int) -> Gathering:
    gathering = Gathering(lambda: in_flight, linger=LINGER)
    for number in range(arrivals):
        gathering.arrived(number * gap)
    return gathering


def test_a_lone_one_waits_for_nobody():
    assert after(100, gap=0.001, in_flight=1).worth() == 0


def test_a_few_wait_for_nobody():
    assert after(100, gap=0.001, in_flight=15).worth() == 0


def test_a_crowd_waits_for_half_of_it():
    assert after(200, gap=0.0001, in_flight=64).worth() == 32


@pytest.mark.parametrize(("gap", "worth"), [(1.0, 1), (0.01, 1), (0.002, 5), (0.001, 10)])
def test_nobody_waits_for_those_who_do_not_come_in_time(gap, worth):
    assert after(200, gap=gap, in_flight=1000).worth() in {worth - 1, worth}


def test_before_anything_came_nothing_is_worth_a_wait():
    assert after(0, gap=0.001, in_flight=1000).worth() <= 1

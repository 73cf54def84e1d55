"""What every clock and every source of randomness promises, the machine's and the fakes'."""

from datetime import timedelta

import pytest

from shared.clock import Clock, Random, SystemClock, SystemRandom
from tests.fakes.clock import FakeClock, FakeRandom


@pytest.fixture(params=[SystemClock, FakeClock])
def clock(request) -> Clock:
    return request.param()


@pytest.fixture(params=[SystemRandom, FakeRandom])
def random(request) -> Random:
    return request.param()


def test_wall_time_is_aware_and_utc(clock):
    assert clock.now().utcoffset() == timedelta(0)


def test_monotonic_never_goes_back(clock):
    readings = [clock.monotonic() for _ in range(100)]
    assert readings == sorted(readings)


def test_as_many_bytes_as_asked_and_never_the_same_again(random):
    assert len(random.token_bytes(0)) == 0
    drawn = [random.token_bytes(16) for _ in range(100)]
    assert {len(value) for value in drawn} == {16}
    assert len(set(drawn)) == 100


def test_fake_time_passes_only_when_told():
    clock = FakeClock()
    before = clock.now()
    clock.advance(timedelta(seconds=3))
    assert (clock.now() - before, clock.monotonic()) == (timedelta(seconds=3), 3.0)
    clock.set_wall(before)
    assert (clock.now(), clock.monotonic()) == (before, 3.0)

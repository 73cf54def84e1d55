"""A clock that was set shows; time that passes does not."""

from datetime import timedelta

import pytest

from data_plane.session.clock_watch import MAX_CLOCK_STEP, ClockWatch
from shared.errors import UnavailableError
from tests.fakes.clock import FakeClock

SECOND = timedelta(seconds=1)


def test_time_that_passes_is_no_step():
    clock = FakeClock()
    watch = ClockWatch(clock)
    clock.advance(timedelta(days=3))
    watch.check()


@pytest.mark.parametrize("step", [MAX_CLOCK_STEP - SECOND, MAX_CLOCK_STEP, -MAX_CLOCK_STEP])
def test_small_step_is_let_through(step):
    clock = FakeClock()
    watch = ClockWatch(clock)
    clock.set_wall(clock.now() + step)
    watch.check()


@pytest.mark.parametrize("step", [MAX_CLOCK_STEP + SECOND, -MAX_CLOCK_STEP - SECOND])
def test_clock_that_was_set_ends_the_session(step):
    clock = FakeClock()
    watch = ClockWatch(clock)
    clock.set_wall(clock.now() + step)
    with pytest.raises(UnavailableError, match="was set by"):
        watch.check()

"""How late refusals are told."""

from datetime import timedelta

import pytest

from shared.ids import TenantId
from shared.rpc.patience import MAX_HELD, MIN_RETRY_AFTER, Patience, rest_of

WILD, CALM = TenantId("wild"), TenantId("calm")
NOW = 1_000.0


def test_the_first_refusals_are_told_at_once_and_the_next_at_the_rate():
    patience = Patience(per_second=10, at_once=3)
    held = [patience.hold(WILD, NOW) for _ in range(6)]
    assert held == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3])


def test_a_flood_is_told_so_many_in_a_second_whatever_it_sends():
    patience = Patience(per_second=10, at_once=3)
    told = sorted(NOW + patience.hold(WILD, NOW) for _ in range(53))
    assert sum(one <= NOW + 1 for one in told) == pytest.approx(13, abs=1)


def test_nothing_is_held_for_longer_than_its_bound():
    patience = Patience(per_second=10, at_once=3)
    assert max(patience.hold(WILD, NOW) for _ in range(10_000)) == MAX_HELD.total_seconds()
    later = NOW + MAX_HELD.total_seconds() + 0.5
    assert patience.hold(WILD, later) == 0.0, "what was held is over, however many there were"


def test_another_tenant_is_told_at_once():
    patience = Patience(per_second=10, at_once=3)
    for _ in range(100):
        patience.hold(WILD, NOW)
    assert patience.hold(CALM, NOW) == 0.0


def test_who_was_not_refused_for_a_while_is_forgotten():
    patience = Patience(per_second=10, at_once=3)
    for number in range(100):
        patience.hold(TenantId(f"tenant-{number}"), NOW)
    assert len(patience) == 100
    patience.hold(CALM, NOW + 1)
    assert len(patience) == 1


@pytest.mark.parametrize(
    ("retry_after", "held", "told"),
    [
        (timedelta(seconds=3), 0.0, timedelta(seconds=3)),
        (timedelta(seconds=3), 1.0, timedelta(seconds=2)),
        (timedelta(seconds=3), 5.0, MIN_RETRY_AFTER),
        (timedelta(milliseconds=20), 5.0, timedelta(milliseconds=20)),
    ],
)
def test_what_was_waited_here_is_taken_off_what_is_told(retry_after, held, told):
    assert rest_of(retry_after, held) == told

"""Reconnecting: soon at first, bounded later, never all nodes at once."""

from datetime import timedelta

from data_plane.session.service import FIRST_BACKOFF, MAX_BACKOFF, Backoff
from tests.fakes.clock import FakeRandom


class Same:
    """Randomness that is always one extreme."""

    def __init__(self, byte: bytes) -> None:
        self._byte = byte

    def token_bytes(self, count: int) -> bytes:
        return self._byte * count


def pauses(random, count: int = 12) -> list[timedelta]:
    backoff = Backoff(random)
    return [backoff.next_pause() for _ in range(count)]


def test_longest_pauses_double_up_to_the_bound():
    longest = pauses(Same(b"\xff"))

    assert longest[:4] == [FIRST_BACKOFF * factor for factor in (1, 2, 4, 8)]
    assert longest[-1] == MAX_BACKOFF


def test_shortest_pause_is_no_busy_loop():
    assert set(pauses(Same(b"\x00"))) == {FIRST_BACKOFF / 2}


def test_pauses_of_two_nodes_differ():
    assert pauses(FakeRandom("a")) != pauses(FakeRandom("b"))


def test_session_that_went_well_starts_anew():
    backoff = Backoff(Same(b"\xff"))
    for _ in range(10):
        backoff.next_pause()

    backoff.reset()

    assert backoff.next_pause() == FIRST_BACKOFF

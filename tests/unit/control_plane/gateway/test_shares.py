"""Shares of calls: what one tenant gets while others come and go."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.gateway.shares import STRANGERS, CallShares
from shared.errors import ResourceExhaustedError

ALL = 48


def take(shares: CallShares, tenant: str, stack: ExitStack) -> int:
    """Take as many as a tenant gets; returns how many that were."""
    taken = 0
    while True:
        try:
            stack.enter_context(shares.of(tenant))
        except ResourceExhaustedError:
            return taken
        taken += 1


def test_a_tenant_alone_gets_half():
    with ExitStack() as stack:
        assert take(CallShares(ALL), "red", stack) == ALL // 2


def test_a_second_one_gets_a_third_and_another_still_comes_in():
    shares = CallShares(ALL)
    with ExitStack() as stack:
        take(shares, "red", stack)
        assert take(shares, "blue", stack) == ALL // 3
        assert take(shares, "green", stack) > 0


def test_who_has_no_call_under_way_takes_nothing_from_others():
    shares = CallShares(ALL)
    for n in range(100):
        with shares.of(f"tenant-{n}"):
            pass
    with ExitStack() as stack:
        assert take(shares, "red", stack) == ALL // 2


def test_a_refusal_counts_nothing():
    shares = CallShares(ALL)
    with ExitStack() as stack:
        take(shares, "red", stack)
        for _ in range(10):
            with pytest.raises(ResourceExhaustedError), shares.of("red"):
                pass
    with ExitStack() as stack:
        assert take(shares, "red", stack) == ALL // 2


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30))
def test_all_together_never_have_more_than_there_are(tenants: list[str]):
    shares = CallShares(ALL)
    with ExitStack() as stack:
        taken = sum(take(shares, tenant, stack) for tenant in tenants)
    assert 0 < taken <= ALL - ALL // STRANGERS

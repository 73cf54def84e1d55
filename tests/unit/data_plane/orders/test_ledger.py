"""The ledger against a model that never forgets: it accepts exactly what the model does."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from data_plane.orders.ledger import OrderLedger
from shared.errors import OrderRejectedError, RejectionReason
from tests.fakes.clock import START
from tests.unit.data_plane.builders import order

LIFE, SKEW = timedelta(seconds=60), timedelta(seconds=30)
TEMPLATE = order()
EXECUTIONS = [order().execution_id for _ in range(3)]


class Ledger(RuleBasedStateMachine):
    """Orders arrive in any order, anew and again; time passes. Only orders that are valid in time get here."""

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.ledger = OrderLedger(max_order_life=LIFE, max_skew=SKEW)
        self.issued = []
        self.seen_nonces: set[bytes] = set()
        self.highest: dict[str, tuple[int, int]] = {}

    @rule(seconds=st.integers(0, 100))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(execution=st.sampled_from(EXECUTIONS), epoch=st.integers(1, 2), token=st.integers(1, 5))
    def issue(self, execution: str, epoch: int, token: int) -> None:
        self.issued.append(
            replace(
                TEMPLATE,
                execution_id=execution,
                epoch=epoch,
                fencing_token=token,
                nonce=len(self.issued).to_bytes(16, "big"),
                not_before=self.now,
                expires_at=self.now + LIFE,
            )
        )

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        # The caller has checked the time already (check 8), so what arrives is alive.
        alive = [one for one in self.issued if self.now < one.expires_at + SKEW]
        if not alive:
            return
        one = data.draw(st.sampled_from(alive))
        point = (one.epoch, one.fencing_token)
        expected = None
        if one.nonce in self.seen_nonces:
            expected = RejectionReason.REPLAY
        elif point <= self.highest.get(one.execution_id, (0, 0)):
            expected = RejectionReason.FENCING
        self.seen_nonces.add(one.nonce)
        if expected is None:
            self.highest[one.execution_id] = point

        try:
            self.ledger.accept(one, now=self.now)
            found = None
        except OrderRejectedError as error:
            found = error.rejection

        # An execution whose orders are all dead may be forgotten: its old token can only come again in a new
        # order, which the control plane numbers. So the ledger may be milder than the model there, never stricter.
        if expected is RejectionReason.FENCING and found is None:
            assert self.now >= self.last_accepted[one.execution_id] + LIFE + 2 * SKEW
        else:
            assert found == expected
        if found is None:
            self.last_accepted[one.execution_id] = self.now
            self.highest[one.execution_id] = point

    @initialize()
    def no_acceptances(self) -> None:
        self.last_accepted: dict[str, object] = {}

    @invariant()
    def remembers_no_more_than_what_lives(self) -> None:
        assert len(self.ledger) <= len(self.issued)


Ledger.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestLedger = Ledger.TestCase


def test_memory_of_dead_orders_is_given_back():
    ledger = OrderLedger(max_order_life=LIFE, max_skew=SKEW)
    for number in range(100):
        ledger.accept(replace(order(), nonce=number.to_bytes(16, "big")), now=START)

    late = replace(order(), nonce=b"l" * 16, not_before=START + 3 * LIFE, expires_at=START + 4 * LIFE)
    ledger.accept(late, now=START + 3 * LIFE)

    assert len(ledger) == 1


def test_full_ledger_refuses_rather_than_forgets():
    ledger = OrderLedger(max_order_life=LIFE, max_skew=SKEW, max_entries=1)
    ledger.accept(replace(order(), nonce=b"a" * 16), now=START)

    with pytest.raises(OrderRejectedError) as caught:
        ledger.accept(replace(order(), nonce=b"b" * 16), now=START)

    assert caught.value.rejection is RejectionReason.BUSY

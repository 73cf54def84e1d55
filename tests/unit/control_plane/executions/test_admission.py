"""Bounds on what waits: who is refused, when, and when to come again."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import pytest

from control_plane.executions.admission import (
    COUNT_EVERY,
    MAX_RETRY_AFTER,
    Admission,
    AdmissionBounds,
    Fate,
    TenantQuota,
)
from control_plane.executions.encoding import capabilities_bytes
from shared.errors import DatabaseUnavailableError, LlmQuotaExhaustedError, ResourceExhaustedError
from shared.ids import TenantId
from shared.manifest import Capabilities, LlmCapability
from tests.fakes.clock import FakeClock

ONE, TWO, THREE = TenantId("one"), TenantId("two"), TenantId("three")


class Counts:
    """What Postgres would say; a gate holds its answer."""

    def __init__(self):
        self.now = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.away = False
        self.own = {}
        self.minute = {}
        self.spent = ()

    async def quotas(self):
        return self.own

    async def spent_on_models(self):
        return self.spent

    async def accepted(self, at_most):
        return {tenant: min(self.minute.get(tenant, 0), bound) for tenant, bound in at_most.items()}

    async def waiting(self, *, at_most):
        self.asked.set()
        counted = {tenant: min(count, at_most) for tenant, count in self.now.items()}
        await self.gate.wait()
        if self.away:
            raise DatabaseUnavailableError("away")
        return counted


def admission(counts, *, pending=1000, of_tenant=10, per_minute=None, clock=None):
    bounds = AdmissionBounds(pending=pending, pending_of_tenant=of_tenant, per_minute=per_minute)
    return Admission(counts=counts, bounds=bounds, clock=clock or FakeClock())


def admit(door, tenant, count):
    for _ in range(count):
        door.enter(tenant)
        door.left(tenant, Fate.WAITS)


def is_open(door, tenant):
    try:
        door.require(tenant)
    except ResourceExhaustedError:
        return False
    return True


async def test_a_tenant_at_its_bound_is_refused_and_another_is_not():
    door = admission(Counts())
    admit(door, ONE, 9)
    assert is_open(door, ONE)
    admit(door, ONE, 1)
    with pytest.raises(ResourceExhaustedError, match="10 executions of tenant one") as refused:
        door.enter(ONE)
    assert timedelta(0) < refused.value.retry_after <= MAX_RETRY_AFTER
    assert is_open(door, TWO)


async def test_what_is_being_stored_counts_and_what_does_not_wait_is_forgotten():
    door = admission(Counts())
    for _ in range(10):
        door.enter(ONE)
    assert not is_open(door, ONE)
    for _ in range(10):
        door.left(ONE, Fate.NONE)
    assert is_open(door, ONE)


async def test_a_count_replaces_what_was_accepted_before_it():
    counts = Counts()
    door = admission(counts)
    admit(door, ONE, 10)
    counts.now = {ONE: 4}
    await door.count()
    admit(door, ONE, 5)
    assert is_open(door, ONE)
    admit(door, ONE, 1)
    assert not is_open(door, ONE)


async def test_nothing_is_forgotten_while_a_count_is_under_way_or_fails():
    counts = Counts()
    door = admission(counts)
    admit(door, ONE, 8)
    counts.now = {ONE: 8}
    counts.gate.clear()
    counting = asyncio.create_task(door.count())
    await asyncio.wait_for(counts.asked.wait(), 30)
    admit(door, ONE, 2)
    assert not is_open(door, ONE), "the eight from before the count still hold"
    counts.gate.set()
    await counting
    assert not is_open(door, ONE), "the two that came meanwhile may not be in it"
    counts.away = True
    with pytest.raises(DatabaseUnavailableError):
        await door.count()
    assert not is_open(door, ONE)


async def test_a_full_installation_keeps_room_for_those_with_less_than_their_share():
    counts = Counts()
    door = admission(counts, pending=100, of_tenant=100)
    counts.now = {ONE: 79}
    await door.count()
    assert is_open(door, ONE)
    admit(door, ONE, 1)
    assert not is_open(door, ONE), "a fifth is kept"
    assert is_open(door, TWO)
    admit(door, TWO, 20)
    assert [is_open(door, tenant) for tenant in (ONE, TWO, THREE)] == [False, False, False]


async def test_two_replicas_go_over_by_at_most_what_the_other_accepts_between_two_counts():
    counts = Counts()
    doors = [admission(counts), admission(counts)]
    counts.now = {ONE: 4}
    for door in doors:
        await door.count()
        admit(door, ONE, 6)
        assert not is_open(door, ONE)
    counts.now = {ONE: 4 + 2 * 6}
    for door in doors:
        await door.count()
        assert not is_open(door, ONE)
    counts.now = {ONE: 9}
    for door in doors:
        await door.count()
        assert is_open(door, ONE)


async def test_the_hint_follows_from_the_pace_of_the_queue_and_from_who_was_told_before():
    counts, clock = Counts(), FakeClock()
    door = admission(counts, clock=clock)
    counts.now = {ONE: 20}
    await door.count()
    with pytest.raises(ResourceExhaustedError) as stuck:
        door.enter(ONE)
    assert stuck.value.retry_after == MAX_RETRY_AFTER, "nothing is known to leave the queue"
    clock.advance(timedelta(seconds=2))
    counts.now = {ONE: 10}
    await door.count()
    hints = []
    for _ in range(3):
        with pytest.raises(ResourceExhaustedError) as refused:
            door.enter(ONE)
        hints.append(refused.value.retry_after)
    assert hints == [COUNT_EVERY + timedelta(seconds=n / 5) for n in (1, 2, 3)]


async def test_a_quota_for_each_minute_counts_what_is_placed_at_once_too_and_no_repeats():
    counts = Counts()
    door = admission(counts, per_minute=3)
    for fate in (Fate.PLACED, Fate.WAITS, Fate.NONE, Fate.PLACED):
        door.enter(ONE)
        door.left(ONE, fate)
    with pytest.raises(ResourceExhaustedError, match="3 executions of tenant one were accepted") as refused:
        door.enter(ONE)
    assert refused.value.retry_after == COUNT_EVERY + timedelta(seconds=20)
    assert is_open(door, TWO)
    counts.minute = {ONE: 2}
    await door.count()
    assert is_open(door, ONE)
    counts.minute = {ONE: 3}  # another replica's
    await door.count()
    assert not is_open(door, ONE)


async def test_quotas_of_a_tenant_stand_above_the_settings():
    counts = Counts()
    counts.own = {
        ONE: TenantQuota(pending=2, per_minute=None),
        TWO: TenantQuota(pending=None, per_minute=1),
    }
    door = admission(counts)
    await door.count()
    admit(door, ONE, 2)
    admit(door, TWO, 1)
    admit(door, THREE, 9)
    assert [is_open(door, tenant) for tenant in (ONE, TWO, THREE)] == [False, False, True]


async def test_a_tenant_that_has_used_up_its_day_of_models_runs_only_what_asks_none():
    counts = Counts()
    door = admission(counts)
    asks, plain = (
        SimpleNamespace(tenant_id=ONE, capabilities=capabilities_bytes(one))
        for one in (Capabilities(llm=LlmCapability(models=("a/b",), max_tokens=1)), Capabilities())
    )
    door.require_models(asks)
    counts.spent = frozenset({ONE})
    await door.count()
    door.require_models(plain)
    door.require_models(SimpleNamespace(tenant_id=TWO, capabilities=asks.capabilities))
    with pytest.raises(LlmQuotaExhaustedError) as refused:
        door.require_models(asks)
    assert timedelta(0) < refused.value.retry_after <= timedelta(days=1)
    counts.spent = ()
    await door.count()
    door.require_models(asks)

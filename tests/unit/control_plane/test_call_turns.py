"""Whose call is worked on next, and who is sent away."""

import asyncio
from datetime import timedelta

import pytest

from control_plane.call_turns import MAX_RETRY_AFTER, CallTurn, CallTurns, TurnBounds
from control_plane.company import COMPANY_LASTS
from shared.errors import ResourceExhaustedError
from shared.ids import TenantId
from shared.rpc.patience import MIN_RETRY_AFTER
from tests.fakes.clock import FakeClock

CALM, WILD = TenantId("calm"), TenantId("wild")
CALLS, FLEET = "agentfactory.v1.ExecutionService", "agentfactory.v1.FleetService"
BOUNDS = TurnBounds(at_once=6, at_once_of_tenant=4, at_once_in_company=2, waiting_of_tenant=10)


class Desk:
    """Calls in the order in which they are begun."""

    def __init__(self, bounds: TurnBounds = BOUNDS) -> None:
        self.clock = FakeClock()
        self.backlog = False
        self.turns = CallTurns(clock=self.clock, has_backlog=lambda _: self.backlog, bounds=bounds)
        self.begun: list[TenantId] = []
        self.under_way: list[tuple[TenantId, CallTurn]] = []

    async def call(self, tenant_id: TenantId, service: str = CALLS) -> None:
        turn = await self.turns.take(tenant_id, service)
        self.begun.append(tenant_id)
        self.under_way.append((tenant_id, turn))

    async def come(
        self, tenant_id: TenantId, count: int = 1, service: str = CALLS
    ) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.call(tenant_id, service)) for _ in range(count)]
        await settled()
        return tasks

    async def end_one(self, of: TenantId | None = None) -> None:
        place = next(n for n, (tenant, _) in enumerate(self.under_way) if of in (None, tenant))
        self.under_way.pop(place)[1].end()
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tenant_alone_has_its_bound_at_once_and_the_rest_in_order_of_arrival():
    desk = Desk()
    await desk.come(WILD, 6)
    assert desk.begun == [WILD] * 4
    await desk.end_one()
    assert (len(desk.begun), desk.turns.waiting(WILD)) == (5, 1)


async def test_a_calm_tenant_is_begun_at_once_whatever_another_has_waiting():
    desk = Desk()
    await desk.come(WILD, 10)
    await desk.come(CALM)
    assert desk.begun == [WILD] * 4 + [CALM]


async def test_beside_another_tenant_a_flood_has_few_at_once():
    desk = Desk()
    await desk.come(CALM)
    await desk.come(WILD, 10)
    assert desk.begun == [CALM, WILD, WILD]
    await desk.end_one(of=WILD)
    assert desk.begun[3:] == [WILD]
    desk.clock.advance(COMPANY_LASTS)
    await desk.end_one(of=WILD)
    assert desk.begun[4:] == [WILD] * 3, "alone again: four at once"


@pytest.mark.parametrize(("late_ms", "at_once"), [(4, 8), (5, 8), (6, 2)])
async def test_while_the_loop_is_late_fewer_are_begun(late_ms: int, at_once: int):
    desk = Desk(TurnBounds())
    desk.backlog = True
    for _ in range(5):
        desk.turns.was_late(timedelta(milliseconds=late_ms))
    await desk.come(WILD, 20)
    assert len(desk.begun) == at_once
    desk.turns.was_late(timedelta(0))
    await desk.end_one()
    assert len(desk.under_way) == min(at_once + 1, TurnBounds().at_once_in_company)


async def test_while_more_waits_than_slots_take_few_are_begun_though_nobody_else_is_there():
    desk = Desk()
    desk.backlog = True
    await desk.come(WILD, 10)
    assert len(desk.begun) == BOUNDS.at_once_in_company
    desk.backlog = False
    await desk.end_one()
    assert len(desk.under_way) == BOUNDS.at_once_of_tenant


async def test_waiting_tenants_take_turns():
    desk = Desk(
        TurnBounds(
            at_once=2, at_once_of_tenant=1, at_once_in_company=1, at_once_at_least=1, waiting_of_tenant=10
        )
    )
    other = TenantId("other")
    await desk.come(WILD, 6)
    await desk.come(other, 3)
    await desk.come(CALM, 2)
    assert desk.begun == [WILD, other]
    for _ in range(7):
        await desk.end_one()
    assert desk.begun[2:6] == [CALM, WILD, other, CALM]


async def test_operators_of_a_flooding_tenant_are_heard():
    desk = Desk()
    await desk.come(WILD, 14)
    operators = await desk.come(WILD, service=FLEET)
    assert operators[0].done()
    assert not operators[0].exception()


async def test_a_full_lane_refuses_and_says_when_to_come_again():
    desk = Desk()
    await desk.come(WILD, 14)
    desk.clock.advance(timedelta(seconds=2))
    refused = [one.exception() for one in await desk.come(WILD, 10)]
    pauses = [one.retry_after for one in refused if isinstance(one, ResourceExhaustedError)]
    assert len(pauses) == 10
    assert pauses[0] == timedelta(seconds=2.2), "so long as the oldest has waited, and a bit more for each"
    assert pauses[-1] == timedelta(seconds=4), "ten that come again need the lane a second time"
    [calm] = await desk.come(CALM)
    assert calm.done()
    assert not calm.exception()


@pytest.mark.parametrize(("waited_s", "pause"), [(0, MIN_RETRY_AFTER), (3600, MAX_RETRY_AFTER)])
async def test_what_a_refused_caller_is_told_is_bounded(waited_s: int, pause: timedelta):
    desk = Desk()
    await desk.come(WILD, 14)
    desk.clock.advance(timedelta(seconds=waited_s))
    [refused] = await desk.come(WILD)
    with pytest.raises(ResourceExhaustedError) as caught:
        await refused
    assert caught.value.retry_after == pause


async def test_a_caller_that_goes_away_while_it_waits_leaves_the_lane():
    desk = Desk()
    tasks = await desk.come(WILD, 6)
    tasks[4].cancel()
    await settled()
    assert desk.turns.waiting(WILD) == 1
    await desk.end_one()
    assert len(desk.begun) == 5


async def test_a_caller_that_goes_away_as_its_turn_comes_gives_it_on():
    desk = Desk()
    tasks = await desk.come(WILD, 6)
    desk.under_way.pop()[1].end()  # the fifth is told, and has not run since
    tasks[4].cancel()
    await settled()
    assert len(desk.begun) == 5, "the sixth"
    for _ in range(4):
        await desk.end_one()
    await desk.come(WILD, 4)
    assert len(desk.begun) == 9, "no turn was lost"


async def test_a_turn_ends_once():
    desk = Desk()
    await desk.come(WILD, 7)
    turn = desk.under_way[0][1]
    turn.end()
    turn.end()
    await settled()
    assert len(desk.begun) == 5


def test_no_tenant_may_have_all_turns():
    with pytest.raises(ValueError, match="all turns"):
        TurnBounds(at_once=4, at_once_of_tenant=4)

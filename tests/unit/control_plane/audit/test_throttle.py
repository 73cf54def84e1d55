"""Who calls for nothing fills no database, and the log says what it left out."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from control_plane.audit import throttle
from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.throttle import ANONYMOUS, BURST_ENTRIES, RefusalLog
from shared.errors import DatabaseUnavailableError
from shared.ids import AUDIT_ENTRY, TenantId, new_id
from tests.fakes.clock import FakeClock, FakeRandom

ANN = "spiffe://local/caller/ann"


class Recorded(list[NewAuditEntry]):
    away = False

    async def record(self, entries: Sequence[NewAuditEntry]) -> None:
        if self.away:
            raise DatabaseUnavailableError("postgres is away")
        self.extend(entries)


class Desk:
    def __init__(self) -> None:
        self.clock, self.random, self.recorded = FakeClock(), FakeRandom(), Recorded()
        self.log = RefusalLog(audit=self.recorded, clock=self.clock, random=self.random)

    async def refuse(self, count: int, *, peer: str = ANONYMOUS) -> None:
        for number in range(count):
            entry = NewAuditEntry(
                audit_entry_id=new_id(AUDIT_ENTRY, self.clock, self.random),
                tenant_id=TenantId("default"),
                actor=f"spiffe://elsewhere/caller/{number}" if peer == ANONYMOUS else peer,
                action="access.denied",
                subject="/agentfactory.v1.FleetService/ListNodes",
                result="UNAUTHENTICATED",
            )
            await self.log.record(entry, peer=peer)

    @property
    def counts(self) -> list[tuple[str, object]]:
        return [
            (one.actor, one.details["count"])
            for one in self.recorded
            if one.action == "access.denials_left_out"
        ]


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_flood_of_unknown_peers_is_one_entry_more_than_the_burst(desk: Desk):
    await desk.refuse(5000)
    await desk.log.flush()
    await desk.log.flush()
    assert len(desk.recorded) == BURST_ENTRIES + 1
    assert desk.counts == [(ANONYMOUS, 5000 - BURST_ENTRIES)]


async def test_a_flood_keeps_no_refusal_of_a_known_caller_off_the_record(desk: Desk):
    await desk.refuse(5000)
    await desk.refuse(1, peer=ANN)
    assert desk.recorded[-1].actor == ANN


async def test_a_peer_that_rests_is_recorded_one_by_one_again(desk: Desk):
    await desk.refuse(BURST_ENTRIES)
    desk.clock.advance(timedelta(seconds=3))
    await desk.refuse(5)
    await desk.log.flush()
    assert len(desk.recorded) == BURST_ENTRIES + 3 + 1
    assert desk.counts == [(ANONYMOUS, 2)]


async def test_a_count_that_could_not_be_recorded_is_kept(desk: Desk):
    await desk.refuse(BURST_ENTRIES + 2)
    desk.recorded.away = True
    with pytest.raises(DatabaseUnavailableError):
        await desk.log.flush()
    desk.recorded.away = False
    await desk.log.flush()
    assert desk.counts == [(ANONYMOUS, 2)]


async def test_buckets_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(throttle, "MAX_BUCKETS", 3)
    for number in range(10):
        await desk.refuse(BURST_ENTRIES + 1, peer=f"spiffe://local/caller/{number}")
    assert len(desk.log._buckets) <= 4

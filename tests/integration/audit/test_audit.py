"""The audit log on a real Postgres: entries with their change, lists, and a watch that misses nothing."""

import asyncio
import itertools
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from control_plane.audit.domain import AuditFilter, EntryOrder, NewAuditEntry
from control_plane.audit.service import AuditService
from control_plane.database.unit_of_work import connection_of
from control_plane.policy.store import PostgresDecisionReader
from shared.errors import InvalidInputError, NotFoundError
from shared.ids import AUDIT_ENTRY, TenantId, new_id
from tests.builders.executions import TENANT

BOUND_SECONDS = 30.0
FAR_BACK = datetime(2020, 1, 1, tzinfo=UTC)


def entry(world, action="test.happened", **changes):
    return NewAuditEntry(
        **{
            "audit_entry_id": new_id(AUDIT_ENTRY, world.build.clock, world.build.random),
            "tenant_id": TENANT,
            "actor": "ann",
            "action": action,
            "subject": "thing",
            "details": {"count": 3, "name": "x", "safe": True},
            **changes,
        }
    )


class Hints:
    """Subscriptions that the test triggers."""

    def __init__(self):
        self.subscribers = []

    @contextmanager
    def subscribe(self, hint):
        self.subscribers.append(hint)
        try:
            yield
        finally:
            self.subscribers.remove(hint)

    def hint(self):
        for subscriber in self.subscribers:
            subscriber(())


@pytest.fixture
def hints():
    return Hints()


@pytest.fixture
def service(world, hints):
    return AuditService(
        world.audit,
        decisions=PostgresDecisionReader(world.database),
        subscribe=hints.subscribe,
        poll_seconds=60,
    )


async def test_an_entry_is_as_it_was_recorded(world, service):
    recorded = entry(world, result="POLICY_DENIED")
    await world.audit.record([recorded])

    (found,) = (await service.list(TENANT, AuditFilter(subject="thing"), page_size=0, page_token="")).items

    assert (found.audit_entry_id, found.actor, found.result) == (
        recorded.audit_entry_id,
        "ann",
        "POLICY_DENIED",
    )
    assert found.details == '{"name": "x", "safe": true, "count": 3}'
    assert found.recorded_at.tzinfo is not None


async def test_an_entry_goes_with_its_transaction(world, service):
    async def change_that_fails():
        async with world.database.transaction() as tx:
            await world.audit.append(tx, [entry(world)])
            raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError):
        await change_that_fails()
    page = await service.list(TENANT, AuditFilter(subject="thing"), page_size=0, page_token="")
    assert page.items == ()


async def test_lists_are_paged_filtered_and_per_tenant(world, service):
    for number in range(5):
        await world.audit.record([entry(world, action=f"test.{number % 2}")])
    await world.audit.record([entry(world, tenant_id=TenantId("other"))])

    async def page(token="", action=""):
        return await service.list(
            TENANT, AuditFilter(action=action, subject="thing"), page_size=3, page_token=token
        )

    first = await page()
    second = await page(first.next_page_token)
    ids = [one.audit_entry_id for one in (*first.items, *second.items)]
    assert (len(ids), ids, second.next_page_token) == (5, sorted(ids, reverse=True), "")
    assert len((await page(action="test.0")).items) == 3
    with pytest.raises(InvalidInputError):
        await page(token="nonsense")


async def everything(service, wanted, order, page_size=7):
    found, token = [], ""
    while True:
        page = await service.list(TENANT, wanted, order=order, page_size=page_size, page_token=token)
        found += page.items
        token = page.next_page_token
        if not token:
            return found


FILTERS = (
    AuditFilter(),
    AuditFilter(actor="bob"),
    AuditFilter(action="test.*"),
    AuditFilter(action="test.two"),
    AuditFilter(action="te_t.*"),
    AuditFilter(subject="other", actor="ann"),
    AuditFilter(result="ok", actor="bob"),
    AuditFilter(result="refused"),
    AuditFilter(result="POLICY_DENIED", action="test.one", actor="ann"),
    AuditFilter(recorded_from=FAR_BACK, result="refused"),
    AuditFilter(recorded_before=FAR_BACK),
)


@pytest.mark.parametrize("order", list(EntryOrder))
async def test_filters_take_in_postgres_what_they_take_here(world, service, order):
    makings = itertools.product(
        ("test.one", "test.two", "tester.three"),
        ("ann", "bob"),
        ("ok", "POLICY_DENIED", "PERMISSION_DENIED"),
        ("thing", "other"),
    )
    await world.audit.record(
        [
            entry(world, action=action, actor=actor, result=result, subject=subject)
            for action, actor, result, subject in makings
        ]
    )
    recorded = await everything(service, AuditFilter(), order)
    ids = [one.audit_entry_id for one in recorded]
    assert len(set(ids)) == len(ids) >= 36
    assert ids == sorted(ids, reverse=order is EntryOrder.NEWEST_FIRST)
    middle = recorded[len(recorded) // 2].recorded_at
    for wanted in (*FILTERS, AuditFilter(recorded_from=middle), AuditFilter(recorded_before=middle)):
        assert await everything(service, wanted, order) == [one for one in recorded if wanted.takes(one)]


@pytest.mark.parametrize("order", list(EntryOrder))
async def test_pages_are_stable_while_others_write(world, service, order):
    before = [entry(world, subject="paged") for _ in range(60)]
    await world.audit.record(before)
    going = True

    async def write():
        while going:
            await world.audit.record([entry(world, subject="paged")])
            await asyncio.sleep(0)

    writers = [asyncio.ensure_future(write()) for _ in range(3)]
    try:
        found = []
        token = ""
        async with asyncio.timeout(BOUND_SECONDS):
            while len(found) < len(before):
                page = await service.list(
                    TENANT, AuditFilter(subject="paged"), order=order, page_size=7, page_token=token
                )
                found += [one.audit_entry_id for one in page.items]
                token = page.next_page_token
                assert token or len(found) >= len(before)
            while order is EntryOrder.NEWEST_FIRST and token:
                page = await service.list(
                    TENANT, AuditFilter(subject="paged"), order=order, page_size=500, page_token=token
                )
                found += [one.audit_entry_id for one in page.items]
                token = page.next_page_token
    finally:
        going = False
        await asyncio.gather(*writers)
    assert len(set(found)) == len(found)
    assert {one.audit_entry_id for one in before} <= set(found)


@pytest.mark.parametrize(
    "bad", [{"action": "*.x"}, {"recorded_from": FAR_BACK, "recorded_before": FAR_BACK}], ids=["star", "time"]
)
def test_a_filter_that_can_mean_nothing_is_refused(bad):
    with pytest.raises(InvalidInputError):
        AuditFilter(**bad)


async def test_a_watch_takes_what_its_filter_takes(world, service):
    recorded = [entry(world, actor=actor) for actor in ("ann", "bob", "ann", "bob")]
    for one in recorded:
        await world.audit.record([one])
    watching = service.watch(TENANT, after=recorded[0].audit_entry_id, wanted=AuditFilter(actor="bob"))
    assert await take(watching, 2) == [recorded[1].audit_entry_id, recorded[3].audit_entry_id]
    await watching.aclose()


async def take(watching, count):
    async with asyncio.timeout(BOUND_SECONDS):
        return [(await anext(watching)).audit_entry_id for _ in range(count)]


async def test_a_watch_begins_behind_the_named_entry(world, service):
    recorded = [entry(world) for _ in range(3)]
    for one in recorded:
        await world.audit.record([one])
    watching = service.watch(TENANT, after=recorded[0].audit_entry_id)
    assert await take(watching, 2) == [one.audit_entry_id for one in recorded[1:]]
    await watching.aclose()


async def test_a_watch_from_now_on_sees_only_what_is_new_after_a_hint(world, service, hints):
    await world.audit.record([entry(world)])
    watching = service.watch(TENANT, after="")
    coming = asyncio.ensure_future(anext(watching))
    async with asyncio.timeout(BOUND_SECONDS):
        while not hints.subscribers:
            await asyncio.sleep(0)
    new = entry(world)
    await asyncio.sleep(0.05)  # lets it read once more; a hint that is early is covered by the loop below
    await world.audit.record([new])
    async with asyncio.timeout(BOUND_SECONDS):
        while not coming.done():
            hints.hint()
            await asyncio.sleep(0.01)
    assert (await coming).audit_entry_id == new.audit_entry_id
    await watching.aclose()
    assert hints.subscribers == []


async def test_a_watch_misses_no_entry_that_commits_out_of_order(world, service, hints):
    first = entry(world)
    await world.audit.record([first])
    watching = service.watch(TENANT, after=first.audit_entry_id)
    slow, quick = entry(world), entry(world)
    async with world.database.transaction() as tx:
        # The slow one gets its transaction first and commits last.
        await world.audit.append(tx, [slow])
        assert connection_of(tx).in_transaction()
        await world.audit.record([quick])
        coming = asyncio.ensure_future(take(watching, 2))
        hints.hint()
        await asyncio.sleep(0)
    async with asyncio.timeout(BOUND_SECONDS):
        while not coming.done():
            hints.hint()
            await asyncio.sleep(0.01)
    assert await coming == [slow.audit_entry_id, quick.audit_entry_id]
    await watching.aclose()


@pytest.mark.parametrize("after", ["aud_0190f5ac-0000-7000-8000-000000000000"])
async def test_a_watch_behind_an_unknown_entry_is_refused(service, after):
    with pytest.raises(NotFoundError):
        await anext(service.watch(TENANT, after=after))


@pytest.mark.parametrize(
    "named",
    [
        {"receipt_id": "", "execution_id": ""},
        {"receipt_id": "rcp_1", "execution_id": "exe_1"},
        {"receipt_id": "rcp_1", "execution_id": ""},
    ],
)
async def test_a_receipt_is_named_in_one_way(service, named):
    with pytest.raises(InvalidInputError):
        await service.get_receipt(TENANT, **named)


async def test_a_receipt_that_is_not_there_is_not_found(service):
    unknown = "0190f5ac-0000-7000-8000-000000000000"
    for named in ({"receipt_id": f"rcp_{unknown}"}, {"execution_id": f"exe_{unknown}"}):
        with pytest.raises(NotFoundError):
            await service.get_receipt(TENANT, **{"receipt_id": "", "execution_id": "", **named})

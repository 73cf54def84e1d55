"""Whatever is taken from the evidence or altered in it is found; what is whole is not complained of."""

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from control_plane.audit.domain import AuditFilter, EntryOrder
from control_plane.audit.service import MAX_EXPORTS, AuditService
from control_plane.completeness.domain import Check, Finding, Progress, Summary
from control_plane.completeness.service import MAX_CHECKS, CompletenessService
from control_plane.completeness.store import PostgresCompletenessStore
from control_plane.database import retention
from control_plane.database.retention import RetentionPlan
from control_plane.log.store import PostgresLogStore
from shared.clock import SystemRandom
from shared.errors import InvalidInputError, ResourceExhaustedError
from shared.keyset import KeyPurpose
from shared.log_leaf import LeafKind
from tests.builders.executions import TENANT, node
from tests.fakes.clock import FakeClock
from tests.fixtures.execution_worlds import run_at_once
from tests.integration.log.test_log import KEY, ORIGIN, integrate_all, log_of, record

LONG = timedelta(hours=1)
NODE = node("one")
OWN_KINDS = 4
"""Leaves of the world itself that stand before all others: its node, template, policy and keyset."""
RECORDED = 315
ALL = RECORDED + OWN_KINDS


class Keyring:
    async def current(self):
        return SimpleNamespace(entries=[SimpleNamespace(purpose=KeyPurpose.LOG, key=KEY.public)])


class Gauges:
    def __init__(self):
        self.missing = None
        self.wrong = {}

    def receipts_missing(self, count):
        self.missing = count

    def log_waiting(self, seconds):
        self.waiting = seconds

    def evidence_wrong(self, check, count):
        self.wrong[check] = count


def checker(world, *, grace=timedelta(), gauges=None, store=None):
    return CompletenessService(
        database=world.database,
        store=store or PostgresCompletenessStore(),
        log=PostgresLogStore(),
        keys=Keyring(),
        origins=[ORIGIN],
        observer=gauges or Gauges(),
        random=SystemRandom(),
        grace=grace,
    )


async def run(world, **changes):
    placement = await run_at_once(world, world.build.execution())
    result = world.build.result(placement, **changes)
    result = replace(result, hash=hashlib.sha256(result.envelope).digest())
    await world.leases.finish([result])
    return result


async def logged(world, *, entries=300, receipts=5):
    log = log_of(world)
    ids = await record(world, entries)
    results = [await run(world) for _ in range(receipts)]
    await integrate_all(log)
    await log.sign()
    return ids, results


async def checked(world, start=None, **options):
    events = [event async for event in checker(world, **options).check(from_log_index=start)]
    assert isinstance(events[-1], Summary)
    return [one for one in events if isinstance(one, Finding)], events[-1]


async def test_what_is_whole_is_whole(world):
    await logged(world)
    for start in (None, 0):
        findings, summary = await checked(world, start)
        assert findings == []
        # Each execution leaves two audit entries beside its receipt.
        assert (summary.tree_size, summary.leaves, summary.facts) == (ALL, ALL, RECORDED)
        assert (summary.checkpoints, summary.nodes, summary.receipts) == (1, 1, 5)
    with pytest.raises(InvalidInputError):
        await checked(world, ALL + 1)


TAMPERING = {
    "an actor altered": (
        "UPDATE audit_entries SET actor = 'eve' WHERE audit_entry_id = '{entry}'",
        (Check.LOG, "{entry}", "not what was recorded"),
    ),
    "an entry altered and its digest forgotten": (
        "UPDATE log_entries SET salt = '' WHERE subject = '{entry}'",
        (Check.LOG, "{entry}", "its salt is not"),
    ),
    "an entry removed": (
        "DELETE FROM audit_entries WHERE audit_entry_id = '{entry}'",
        (Check.LOG, "{entry}", "is not stored any more"),
    ),
    "an entry moved to another tenant": (
        "UPDATE audit_entries SET tenant_id = 'other' WHERE audit_entry_id = '{entry}'",
        (Check.LOG, "{entry}", "is not stored any more"),
    ),
    "a receipt altered": (
        "UPDATE receipts SET envelope = 'x' WHERE receipt_id = '{receipt}'",
        (Check.LOG, "{receipt}", "not what was recorded"),
    ),
    "a receipt removed": (
        "DELETE FROM receipts WHERE receipt_id = '{receipt}'",
        (Check.RECEIPTS, NODE, "1 receipts are missing: number 3"),
    ),
    "the last receipt removed": (
        "DELETE FROM receipts WHERE sequence = 5",
        (Check.RECEIPTS, NODE, "number 5"),
    ),
    "all receipts removed": ("DELETE FROM receipts", (Check.RECEIPTS, NODE, "number 1-5")),
    "a leaf altered": (
        "UPDATE log_entries SET commitment = sha256('x') WHERE log_index = 7",
        (Check.TREE, "leaf 7", "is not what its tile holds"),
    ),
    "a leaf removed": (
        "DELETE FROM log_entries WHERE log_index = 7",
        (Check.TREE, "leaf 7", "no entry at this place"),
    ),
    "a tile altered": (
        "UPDATE log_tiles SET hashes = set_byte(hashes, 40, 255 - get_byte(hashes, 40)) WHERE level = 0 AND tile_index = 0",
        (Check.TREE, "leaf 1", "is not what its tile holds"),
    ),
    "a tile above altered": (
        "UPDATE log_tiles SET hashes = set_byte(hashes, 4, 255 - get_byte(hashes, 4)) WHERE level = 1",
        (Check.TREE, "tile 0/0", "another root"),
    ),
    "a tile removed": (
        "DELETE FROM log_tiles WHERE level = 0 AND tile_index = 1",
        (Check.TREE, "leaf 300", "its tile does not hold it"),
    ),
    "the head's root altered": (
        "UPDATE log_head SET root = sha256('x')",
        (Check.TREE, "head", "another root"),
    ),
    "the head put back": (
        "UPDATE log_head SET tree_size = 300",
        (Check.TREE, "head", f"a checkpoint has {ALL}"),
    ),
    "a checkpoint altered": (
        "UPDATE log_checkpoints SET note = overlay(note placing 'A'::bytea from 36 for 1)",
        (Check.TREE, f"checkpoint {ALL}", "another root"),
    ),
    "checkpoints removed": (
        "DELETE FROM log_checkpoints",
        (Check.TREE, "head", "no checkpoint has covered it"),
    ),
}


@pytest.mark.parametrize("what", TAMPERING)
async def test_what_is_altered_is_found(world, what):
    statement, (check, subject, message) = TAMPERING[what]
    ids, results = await logged(world)
    names = {"entry": ids[9], "receipt": results[2].receipt_id}
    await world.fetch_none(statement.format(**names))
    for start in (None, 0):
        findings, summary = await checked(world, start)
        assert summary.findings == len(findings)
        assert [
            one
            for one in findings
            if (one.check, one.subject) == (check, subject.format(**names)) and message in one.message
        ], findings


async def test_what_was_never_announced_is_found(world):
    await logged(world)
    hidden = await record(world, 2)
    [result] = [await run(world)]
    await world.fetch_none("DELETE FROM log_pending")
    for start in (None, 0):
        findings, _ = await checked(world, start)
        assert {hidden[0], hidden[1], result.receipt_id} <= {one.subject for one in findings}
        assert {one.check for one in findings} == {Check.LOG}


async def test_what_waits_for_long_is_found_and_what_is_young_is_not(world):
    await logged(world)
    await record(world, 2)
    findings, _ = await checked(world)
    assert [(one.check, one.subject) for one in findings] == [(Check.LOG, "log")]
    assert await checked(world, grace=LONG) == ([], (await checked(world, grace=LONG))[1])


async def test_a_missing_number_is_in_flight_until_its_bound_and_comes_back_when_it_comes(world):
    gauges = Gauges()
    background = checker(world, gauges=gauges)
    await run(world)
    placement = await run_at_once(world, world.build.execution())
    late = world.build.result(placement)
    late = replace(late, hash=hashlib.sha256(late.envelope).digest())
    await run(world)
    await checker(world, grace=LONG, gauges=gauges).look()
    assert gauges.missing == 0
    await background.look()
    assert gauges.missing == 1
    assert await world.fetch("SELECT missing::text || checked_to FROM receipt_marks") == ["{2}3"]
    findings, _ = await checked(world)
    assert [one.message for one in findings if one.check is Check.RECEIPTS] == [
        "1 receipts are missing: number 2"
    ]
    await world.leases.finish([late])
    await background.look()
    assert gauges.missing == 0
    assert await world.fetch("SELECT missing::text || checked_to FROM receipt_marks") == ["{}3"]


async def test_another_replica_tells_what_the_one_that_checks_found(world):
    gauges = Gauges()
    await run(world)
    world.build.sequences[NODE] = 4
    await run(world)
    async with world.database.transaction() as tx:
        assert await PostgresCompletenessStore().take_lead(tx)
        await checker(world, gauges=gauges).look()
        assert gauges.missing == 0
    await checker(world).look()
    async with world.database.transaction() as tx:
        assert await PostgresCompletenessStore().take_lead(tx)
        await checker(world, gauges=gauges).look()
        assert gauges.missing == 3


async def test_the_background_finds_what_is_altered_and_tells_until_a_pass_finds_nothing(world):
    ids, _ = await logged(world)
    gauges = Gauges()
    background = checker(world, gauges=gauges)
    await world.fetch_none(f"UPDATE audit_entries SET actor = 'eve' WHERE audit_entry_id = '{ids[3]}'")
    await background.look()
    assert gauges.wrong == {Check.LOG: 1}
    await world.fetch_none(f"UPDATE audit_entries SET actor = 'ann' WHERE audit_entry_id = '{ids[3]}'")
    for _ in range(2):
        await background.look()
    assert gauges.wrong == dict.fromkeys(Check, 0)


async def test_the_background_finds_nothing_wrong_with_a_log_that_grows_between_its_windows(world):
    log, gauges = log_of(world), Gauges()
    background = checker(world, gauges=gauges)
    for entries in (300, 90, 1, 500):
        await record(world, entries)
        await integrate_all(log)
        await log.sign()
        await background.look()
    assert not any(gauges.wrong.values())


async def test_a_checkpoint_that_comes_during_a_look_is_not_held_against_the_head_of_before(world):
    await logged(world)
    log = log_of(world)

    class Growing(PostgresCompletenessStore):
        async def state(self, tx):
            before = await super().state(tx)
            await record(world, 3)
            await integrate_all(log)
            await log.sign()
            return before

    findings, _ = await checked(world, store=Growing())
    assert findings == []


async def test_checks_and_exports_at_the_same_time_have_a_bound(world):
    await logged(world, entries=1, receipts=0)
    service = checker(world)
    running = [service.check(from_log_index=0) for _ in range(MAX_CHECKS)]
    for one in running:
        await anext(one)
    with pytest.raises(ResourceExhaustedError):
        await anext(service.check(from_log_index=0))
    for one in running:
        await one.aclose()
    await anext(service.check(from_log_index=0))
    reader = AuditService(world.audit, decisions=None, subscribe=lambda _: None)  # type: ignore[arg-type,return-value]
    exports = [reader.export(TENANT, after=None) for _ in range(MAX_EXPORTS)]
    for one in exports:
        await anext(one)
    with pytest.raises(ResourceExhaustedError):
        await anext(reader.export(TENANT, after=None))
    await exports[0].aclose()
    await anext(reader.export(TENANT, after=None))


async def test_a_check_goes_on_where_it_was_interrupted(world):
    await logged(world)
    events = [event async for event in checker(world).check(from_log_index=300)]
    assert [one.next_log_index for one in events if isinstance(one, Progress)] == [ALL]
    assert events[-1].leaves == ALL - 256


async def test_after_retention_proofs_hold_and_nothing_is_missing(world, owner_url):
    await logged(world)
    [before] = await world.fetch("SELECT root FROM log_head")
    plan = RetentionPlan(older_than=timedelta(days=30), audit_older_than=timedelta(days=30))
    later = FakeClock(datetime.now(UTC) + timedelta(days=60))
    await retention.retain(owner_url, plan, clock=later, random=SystemRandom(), tenant=TENANT)
    assert await world.fetch("SELECT count(*) FROM receipts") == [0]
    assert await world.fetch("SELECT root FROM log_head") == [before]
    # Nobody can confirm a guess of what is gone.
    assert await world.fetch(
        "SELECT count(*) FROM log_entries WHERE salt <> '' AND log_index < :all", all=ALL
    ) == [OWN_KINDS]
    assert await world.fetch("SELECT dropped_to FROM receipt_marks") == [5]
    log = log_of(world)
    await integrate_all(log)
    await log.sign()
    for start in (None, 0):
        findings, summary = await checked(world, start)
        assert findings == []
        assert summary.removed == RECORDED
    world.build.clock = later
    kept = world.build.sequences[NODE]
    world.build.sequences[NODE] = kept + 1
    await run(world)
    findings, _ = await checked(world)
    assert [one.message for one in findings if one.check is Check.RECEIPTS] == [
        f"1 receipts are missing: number {kept + 1}"
    ]


async def test_an_export_has_every_leaf_once_and_goes_on_behind_any(world):
    ids, results = await logged(world, entries=450)
    service = AuditService(world.audit, decisions=None, subscribe=lambda _: None)  # type: ignore[arg-type,return-value]
    whole = [one async for one in service.export(TENANT, after=None)]
    assert [one.log_index for one in whole] == await world.fetch(
        "SELECT log_index FROM log_entries WHERE tenant_id = :tenant ORDER BY log_index", tenant=TENANT
    )
    assert {one.subject for one in whole} >= {*ids, *(result.receipt_id for result in results)}
    [receipt] = [one.fact for one in whole if one.subject == results[1].receipt_id]
    assert (receipt.envelope, receipt.sequence, receipt.accepted) == (results[1].envelope, 2, True)
    listed = await world.audit.list(
        TENANT, AuditFilter(), order=EntryOrder.OLDEST_FIRST, page_size=500, page_token=""
    )
    exported = {one.subject: one.fact for one in whole}
    assert all(exported[entry.audit_entry_id] == entry for entry in listed.items)
    for position in (0, 199, 200, len(whole) - 2, len(whole) - 1):
        rest = [one async for one in service.export(TENANT, after=whole[position].log_index)]
        assert rest == whole[position + 1 :]
    assert [one async for one in service.export("nobody", after=None)] == []


async def test_an_export_beside_writers_misses_nothing(world):
    log = log_of(world)
    service = AuditService(world.audit, decisions=None, subscribe=lambda _: None)  # type: ignore[arg-type,return-value]
    recorded = []

    async def write():
        for _ in range(20):
            recorded.extend(await record(world, 7))
            await log.integrate()

    writers = [asyncio.ensure_future(write()) for _ in range(3)]
    found, last = [], None
    while not all(one.done() for one in writers):
        found += [one async for one in service.export(TENANT, after=last)]
        last = found[-1].log_index if found else None
        await asyncio.sleep(0)
    await asyncio.gather(*writers)
    await integrate_all(log)
    found += [one async for one in service.export(TENANT, after=last)]
    assert sorted(one.subject for one in found if one.kind == LeafKind.AUDIT_ENTRY) == sorted(recorded)
    places = [one.log_index for one in found]
    assert places == sorted(set(places))

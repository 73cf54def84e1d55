"""The transparency log on a real Postgres: nothing is left out, doubled or changed, whatever ends when."""

import asyncio

import pytest
from sqlalchemy import select

from control_plane.audit.domain import AuditFilter, EntryOrder, NewAuditEntry
from control_plane.database.tables import audit_entries, log_entries, log_pending
from control_plane.database.unit_of_work import connection_of
from control_plane.log.domain import Head
from control_plane.log.service import LogService
from control_plane.log.store import PostgresLogStore
from shared.checkpoints import log_origin, parse_checkpoint, verify_log_signature
from shared.clock import SystemRandom
from shared.errors import ConflictError, NotFoundError
from shared.ids import AUDIT_ENTRY, TenantId, new_id
from shared.log_leaf import audit_content, commitment
from shared.merkle import leaf_hash, root_hash, verify_consistency, verify_inclusion
from shared.signatures import FileSigner, PrivateKey
from tests.builders.executions import TENANT

KEY = PrivateKey.generate_ed25519()
ORIGIN = log_origin("local", 1)


class Keys(FileSigner):
    async def public(self):
        return self.key.public


class Counted:
    def __init__(self):
        self.leaves = 0

    def log_integrated(self, leaves: int, seconds: float) -> None:
        self.leaves += leaves

    def log_size(self, tree_size: int) -> None:
        self.size = tree_size


def log_of(world, store=None, kind=LogService) -> LogService:
    return kind(
        database=world.database,
        store=store or PostgresLogStore(),
        origin=ORIGIN,
        keys=Keys(key=KEY),
        observer=Counted(),
        random=SystemRandom(),
    )


async def record(world, count: int, subject="thing") -> list[str]:
    entries = [
        NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, world.build.clock, world.build.random),
            tenant_id=TENANT,
            actor="ann",
            action="test.happened",
            subject=subject,
            details={"number": number, "text": "ü \\ \n"},
        )
        for number in range(count)
    ]
    await world.audit.record(entries)
    return [entry.audit_entry_id for entry in entries]


async def leaves(world) -> list:
    async with world.database.reading() as connection:
        rows = await connection.execute(select(log_entries).order_by(log_entries.c.log_index))
        return list(rows.mappings())


async def checkpointed(log: LogService) -> bool:
    try:
        return bool(await log.checkpoint())
    except NotFoundError:
        return False


async def once(log: LogService) -> None:
    await log.integrate()
    await log.sign()


async def integrate_all(log: LogService) -> None:
    while await log.integrate():
        pass


async def test_what_is_recorded_is_proved_in_a_signed_checkpoint(world):
    log = log_of(world)
    [named, *_] = await record(world, 300)
    await integrate_all(log)
    note = await log.sign()
    checkpoint = verify_log_signature(parse_checkpoint(note), origin=ORIGIN, keys=[KEY.public])
    everything = await leaves(world)
    assert checkpoint.root == root_hash([leaf_hash(row["commitment"]) for row in everything])
    proof = await log.prove_inclusion(TENANT, named)
    verify_inclusion(
        leaf=leaf_hash(proof.entry.commitment),
        index=proof.entry.log_index,
        size=checkpoint.size,
        path=proof.path,
        root=checkpoint.root,
    )
    async with world.database.reading() as connection:
        rows = await connection.execute(select(audit_entries).where(audit_entries.c.audit_entry_id == named))
        [row] = rows.mappings()
    entries = await world.audit.list(
        TENANT, AuditFilter(subject="thing"), order=EntryOrder.NEWEST_FIRST, page_size=300, page_token=""
    )
    served = next(entry for entry in entries.items if entry.audit_entry_id == named)
    content = audit_content(
        audit_entry_id=served.audit_entry_id,
        tenant_id=served.tenant_id,
        actor=served.actor,
        action=served.action,
        subject=served.subject,
        result=served.result,
        recorded_at=served.recorded_at,
        details=served.details,
    )
    assert row["details"]["number"] == 0
    assert proof.entry.commitment == commitment(
        kind="audit_entry", subject=named, salt=proof.entry.salt, content=content
    )


async def test_each_checkpoint_begins_the_next(world):
    log = log_of(world)
    checkpoints = []
    for count in (1, 255, 1, 700):
        await record(world, count)
        await integrate_all(log)
        checkpoints.append(parse_checkpoint(await log.sign()).checkpoint)
    last = checkpoints[-1]
    for first in checkpoints:
        path, note = await log.prove_consistency(first.size, 0)
        assert parse_checkpoint(note).checkpoint == last
        verify_consistency(
            first_size=first.size,
            second_size=last.size,
            proof=path,
            first_root=first.root,
            second_root=last.root,
        )
    assert await log.sign() is None


async def test_one_of_many_replicas_integrates_and_none_doubles(world):
    logs = [log_of(world) for _ in range(4)]
    recorded = []
    for _ in range(5):
        recorded += await record(world, 40)
        await asyncio.gather(*(log.integrate() for log in logs))
    await integrate_all(logs[0])
    subjects = [row["subject"] for row in await leaves(world)]
    assert sorted(set(recorded)) == sorted(subject for subject in subjects if subject in set(recorded))
    assert [row["log_index"] for row in await leaves(world)] == list(range(len(subjects)))


class KilledError(Exception):
    """The replica ended here."""


STEPS = ("take_lead", "pending", "head", "tiles", "append", "add_checkpoint", "newest_checkpoint")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
async def test_an_end_at_any_step_loses_and_doubles_nothing(world, step, done):
    class Ending(PostgresLogStore):
        pass

    async def end(self, *arguments, **named):
        if done:
            await getattr(PostgresLogStore, step)(self, *arguments, **named)
        raise KilledError

    setattr(Ending, step, end)
    recorded = await record(world, 10)
    ending, log = log_of(world, Ending()), log_of(world)
    with pytest.raises(KilledError):
        await asyncio.wait_for(once(ending), 30)
    await integrate_all(log)
    await log.sign()
    rows = await leaves(world)
    assert sorted(row["subject"] for row in rows if row["subject"] in set(recorded)) == sorted(recorded)
    head = parse_checkpoint(await log.checkpoint()).checkpoint
    assert (head.size, head.root) == (len(rows), root_hash([leaf_hash(row["commitment"]) for row in rows]))
    async with world.database.reading() as connection:
        assert not (await connection.execute(select(log_pending))).all()


async def test_another_tenant_and_what_is_not_integrated_yet_are_not_found(world):
    log = log_of(world)
    [named] = await record(world, 1)
    with pytest.raises(NotFoundError):
        await log.prove_inclusion(TENANT, named)
    await integrate_all(log)
    with pytest.raises(NotFoundError):
        await log.prove_inclusion(TENANT, named)  # no checkpoint covers it
    await log.sign()
    await log.prove_inclusion(TENANT, named)
    with pytest.raises(NotFoundError):
        await log.prove_inclusion(TenantId("another"), named)


async def test_a_head_that_somebody_moved_stops_the_integration(world):
    log = log_of(world)
    await record(world, 3)

    class Moved(PostgresLogStore):
        async def append(self, tx, **named):
            named["before"] = Head(tree_size=named["before"].tree_size, root=bytes(32))
            await super().append(tx, **named)

    await log.integrate()
    await record(world, 3)
    with pytest.raises(ConflictError):
        await log_of(world, Moved()).integrate()
    assert await log.integrate() == 3


async def test_a_log_that_never_comes_to_rest_is_signed_all_the_same(world):
    class Restless(LogService):
        async def integrate(self) -> int:
            await super().integrate()
            return 1

    log = log_of(world, kind=Restless)
    await record(world, 3)
    running = asyncio.create_task(log.run())
    try:
        async with asyncio.timeout(30):
            while not await checkpointed(log):
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_record_that_is_rolled_back_never_enters(world):
    log = log_of(world)
    await integrate_all(log)
    row = {"tenant_id": TENANT, "actor": "ann", "action": "x", "subject": "x", "details": {}}
    named = new_id(AUDIT_ENTRY, world.build.clock, world.build.random)

    async def record_and_end() -> None:
        async with world.database.transaction() as tx:
            await connection_of(tx).execute(audit_entries.insert().values(audit_entry_id=named, **row))
            raise KilledError

    with pytest.raises(KilledError):
        await record_and_end()
    assert await log.integrate() == 0

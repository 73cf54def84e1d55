"""What only a real Postgres can show: replicas that race, locks, rights, and the time that counts."""

import asyncio
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from control_plane.database.notifications import Channel
from control_plane.executions.domain import (
    AcceptOutcome,
    BatchPlace,
    Disposition,
    ExecutionState,
    Outcome,
    PendingReason,
    SignedBatchRecord,
)
from control_plane.executions.lease_store import PostgresLeaseStore
from control_plane.executions.store import PostgresExecutionStore
from control_plane.policy.store import PostgresDecisionLog
from shared.clock import SystemClock, SystemRandom
from shared.ids import KeyId, OrderBatchId, ReceiptId
from tests.builders.executions import TENANT, node, session
from tests.fakes.clock import FakeClock
from tests.fixtures.execution_worlds import claim, run_at_once, submit

BOUND_SECONDS = 30.0


def another_replica(world):
    clock, random = SystemClock(), SystemRandom()
    store = PostgresExecutionStore(
        world.database, audit=world.audit, decisions=PostgresDecisionLog(), clock=clock, random=random
    )
    leases = PostgresLeaseStore(
        world.database, executions=store, audit=world.audit, clock=clock, random=random
    )
    return store, leases


@pytest.fixture
async def replica(world):
    store, leases = another_replica(world)
    yield store, leases
    await store.close()
    await leases.close()


async def test_rule_3_two_replicas_never_claim_the_same_execution(world, replica):
    await submit(world, *(world.build.execution() for _ in range(40)))

    async def take(leases, name):
        at, taken = session(name), []
        while True:
            claimed = await leases.claim(
                at, limit=3, place=lambda works: [world.build.placement(one, at) for one in works]
            )
            if not claimed.placements:
                return taken
            taken += [one.execution_id for one in claimed.placements]

    async with asyncio.timeout(BOUND_SECONDS):
        one, other = await asyncio.gather(take(world.leases, "one"), take(replica[1], "two"))

    assert len(one) + len(other) == len({*one, *other}) == 40


async def test_rule_8_replicas_that_race_with_one_request_id_accept_it_once(world, replica):
    items = [world.build.execution(request_id=f"r{n % 4}") for n in range(16)]
    async with asyncio.timeout(BOUND_SECONDS):
        first, second = await asyncio.gather(
            world.store.accept(items[:8], [None] * 8), replica[0].accept(items[8:], [None] * 8)
        )
    outcomes = [one.outcome for one in (*first, *second)]
    assert outcomes.count(AcceptOutcome.NEW) == 4
    assert outcomes.count(AcceptOutcome.DUPLICATE) == 12
    assert await world.fetch("SELECT count(*) FROM executions") == [4]


async def test_rule_2_replicas_that_race_with_results_decide_once(world, replica):
    placements = [await run_at_once(world, world.build.execution()) for _ in range(6)]
    groups = [
        [world.build.result(one, outcome) for one in order]
        for outcome, order in ((Outcome.SUCCEEDED, placements), (Outcome.FAILED, placements[::-1]))
    ]
    async with asyncio.timeout(BOUND_SECONDS):
        answers = await asyncio.gather(world.leases.finish(groups[0]), replica[1].finish(groups[1]))
    dispositions = [one.disposition for group in answers for one in group]
    assert dispositions.count(Disposition.ACCEPTED) == dispositions.count(Disposition.EVIDENCE) == 6
    assert await world.fetch("SELECT count(*) FROM receipts WHERE accepted") == [6]


async def test_rule_3_a_session_that_moves_while_a_claim_runs_waits_for_it(world):
    await submit(world, world.build.execution())
    moved = None

    def place(works):
        nonlocal moved
        moved = asyncio.ensure_future(world.connect("one", epoch=2, boot="boot_1"))
        return [world.build.placement(one) for one in works]

    async with asyncio.timeout(BOUND_SECONDS):
        claimed = await world.leases.claim(session(), limit=1, place=place)
        await moved

    assert len(claimed.placements) == 1
    assert await world.fetch("SELECT session_epoch FROM sessions WHERE node_id = :n", n=node("one")) == [2]


async def test_rule_9_leases_expire_by_the_time_of_postgres(world):
    world.build.clock = FakeClock()  # a replica whose clock is years off
    placement = await run_at_once(world, world.build.execution(run_deadline=timedelta(days=4000)))

    (left,) = await world.fetch("SELECT lease_expires_at - now() FROM attempts")

    assert timedelta(0) < left <= placement.lease
    assert list(await world.leases.expire_leases(limit=10)) == []
    await world.pass_time(placement.lease)
    assert len(await world.leases.expire_leases(limit=10)) == 1


async def test_rule_9_a_claimed_lease_counts_from_the_choice_of_the_place(world):
    """What is left of the lease is reckoned then; the node counts no later."""
    await submit(world, world.build.execution())

    def place(works):
        time.sleep(0.2)  # the transaction has begun long ago
        return [world.build.placement(one) for one in works]

    claimed = await world.leases.claim(session(), limit=1, place=place)

    (total,) = await world.fetch("SELECT lease_expires_at - leased_at FROM attempts")
    assert total >= claimed.placements[0].lease + timedelta(seconds=0.2)


async def test_rule_9_no_lease_expires_soon_after_a_restart_of_postgres(world):
    await run_at_once(world, world.build.execution())
    await world.pass_time(timedelta(seconds=60))
    (up,) = await world.fetch("SELECT now() - pg_postmaster_start_time()")
    longer = up + timedelta(hours=1)

    assert list(await world.leases.expire_leases(limit=10, database_up_for=longer)) == []
    assert len(await world.leases.expire_leases(limit=10, database_up_for=up)) == 1


async def test_an_expired_lease_that_is_renewed_meanwhile_is_not_lost(world):
    placement = await run_at_once(world, world.build.execution())
    await world.pass_time(timedelta(seconds=60))
    async with world.owner.begin() as connection:
        await connection.execute(text("UPDATE attempts SET lease_expires_at = now() + interval '1 hour'"))
        expiring = asyncio.ensure_future(world.leases.expire_leases(limit=10))
        await asyncio.sleep(0)
    assert list(await expiring) == []
    assert (await world.store.get(TENANT, placement.execution_id)).live_attempt is not None


async def test_a_claim_skips_what_somebody_else_holds(world):
    items = await submit(world, world.build.execution(), world.build.execution())
    held = min(one.run.execution_id for one in items)
    async with world.owner.begin() as connection:
        await connection.execute(
            text("SELECT 1 FROM executions WHERE execution_id = :e FOR UPDATE"), {"e": held}
        )
        claimed = await claim(world)
    assert len(claimed.placements) == 1
    assert claimed.placements[0].execution_id != held


async def test_rule_5_the_head_of_a_nodes_chain_moves_forward_only(world):
    placements = [await run_at_once(world, world.build.execution()) for _ in range(3)]
    results = [world.build.result(one) for one in placements]
    await world.leases.finish([results[2]])
    await world.leases.finish([results[0], results[1]])
    query = "SELECT last_hash FROM nodes WHERE node_id = :n AND last_sequence = 3"
    assert await world.fetch(query, n=node("one")) == [results[2].hash]


async def test_one_notification_per_group_names_what_changed(world):
    placements = [await run_at_once(world, world.build.execution()) for _ in range(2)]
    world.heard.notes.clear()
    await world.leases.finish([world.build.result(one) for one in placements])
    told = [payloads for channel, payloads in world.heard.notes if channel == Channel.EXECUTIONS]
    assert told == [tuple(one.execution_id for one in placements)]


async def test_an_end_that_is_awaited_here_is_no_hurry_to_others(world):
    placements = [await run_at_once(world, world.build.execution()) for _ in range(2)]
    world.awaited.add(placements[0].execution_id)
    world.heard.notes.clear()
    await world.leases.finish([world.build.result(one) for one in placements])
    told = [note for note in world.heard.notes if note[0] != Channel.AUDIT]
    assert told == [
        (Channel.ENDS, (placements[0].execution_id,)),
        (Channel.EXECUTIONS, (placements[1].execution_id,)),
    ]


async def test_nothing_is_told_to_the_queue_when_all_were_placed(world):
    await run_at_once(world, world.build.execution())
    assert Channel.QUEUE not in [channel for channel, _ in world.heard.notes]
    await submit(world, world.build.execution())
    assert Channel.QUEUE in [channel for channel, _ in world.heard.notes]


async def test_a_waiting_execution_says_that_no_node_may_run_it(world):
    (item,) = await submit(world, world.build.execution())
    before = await world.store.get(TENANT, item.run.execution_id)
    async with world.owner.begin() as connection:
        await connection.execute(text("UPDATE sessions SET replica_id = ''"))
    after = await world.store.get(TENANT, item.run.execution_id)
    assert (before.pending_reason, after.pending_reason) == (
        PendingReason.QUEUED,
        PendingReason.NO_ELIGIBLE_NODE,
    )


async def test_rule_6_after_an_unsafe_call_a_lost_attempt_is_retried_only_if_that_is_safe(world):
    unsafe = await run_at_once(world, world.build.execution(retry_is_safe=False))
    safe = await run_at_once(world, world.build.execution(retry_is_safe=True))
    async with world.owner.begin() as connection:
        await connection.execute(text("UPDATE attempts SET unsafe_call_at = now()"))
    await world.pass_time(timedelta(seconds=60))
    await world.leases.expire_leases(limit=10)
    states = {one: (await world.store.get(TENANT, one.execution_id)).state for one in (unsafe, safe)}
    assert states == {unsafe: ExecutionState.LOST, safe: ExecutionState.PENDING}


def a_signature() -> SignedBatchRecord:
    return SignedBatchRecord(batch_id=OrderBatchId("obt_1"), envelope=b"envelope", key_id=KeyId("sha256:k"))


async def test_the_signature_of_a_batch_is_stored_once_with_its_first_receipts(world):
    paths = ((b"\x01" * 32, b"\x02" * 32), ())
    items = [world.build.execution() for _ in paths]
    placements = [
        world.build.placement(
            item, batch=BatchPlace(batch_id=a_signature().batch_id, leaf_index=index, path=path)
        )
        for index, (item, path) in enumerate(zip(items, paths, strict=True))
    ]
    await world.store.accept(items, placements)
    results = [world.build.result(one, batch=a_signature()) for one in placements]
    result = results[0]
    await world.leases.finish(results)
    await world.leases.record_batches([a_signature()])

    evidence = await world.audit.get_receipt(TENANT, ReceiptId(result.receipt_id))

    assert (evidence.path, evidence.leaf_index, evidence.batch_envelope) == (paths[0], 0, b"envelope")
    assert evidence.order_content == placements[0].order_content
    assert (evidence.envelope, evidence.receipt_public_key) == (result.envelope, b"public key")
    assert evidence.template_envelope == b"template envelope"
    assert await world.audit.receipt_of(TENANT, placements[0].execution_id) == result.receipt_id
    assert await world.fetch("SELECT proof FROM orders WHERE leaf_index = 1") == [b""]
    assert await world.fetch("SELECT count(*) FROM order_batches") == [1]


async def test_the_signature_of_a_batch_without_receipts_is_stored_by_itself(world):
    await world.leases.record_batches([a_signature()])
    await world.leases.record_batches([a_signature()])
    assert await world.fetch("SELECT envelope FROM order_batches") == [b"envelope"]


async def test_groups_of_the_largest_size_are_stored(world):
    items = [world.build.execution() for _ in range(256)]
    placements = [world.build.placement(item) for item in items]
    accepted = await world.store.accept(items, placements)
    finished = await world.leases.finish([world.build.result(one) for one in placements])
    assert {one.placed for one in accepted} == {True}
    assert {one.disposition for one in finished} == {Disposition.ACCEPTED}

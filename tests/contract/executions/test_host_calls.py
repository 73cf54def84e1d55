"""What every store promises about host calls: values of agents, unsafe calls, recordings (rule 6)."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.executions.domain import (
    BodyKind,
    Disposition,
    EndReason,
    ExecutionState,
    LossReason,
    Outcome,
    UnsafeCall,
    UploadQuota,
)
from control_plane.kv.domain import KvDenial, KvRead, KvWrite
from shared.ids import BootId
from shared.manifest import Capabilities
from tests.builders.executions import LEASE, OTHER_TENANT, TENANT, node, session
from tests.fixtures.execution_worlds import KV_QUOTA, claim, run_at_once

LATER = LEASE + timedelta(seconds=1)
LONG_BACKOFF = timedelta(seconds=11)
KV = Capabilities(kv=True)


def put(**values: bytes | None) -> tuple[KvWrite, ...]:
    return tuple(KvWrite(key=key, value=value) for key, value in sorted(values.items()))


async def run(world, **changes):
    """Start an execution whose agent may use kv."""
    return await run_at_once(world, world.build.execution(capabilities=KV, **changes))


async def finish(world, placement, outcome=Outcome.SUCCEEDED, **changes):
    (finished,) = await world.leases.finish([world.build.result(placement, outcome, **changes)])
    return finished


async def write(world, **values):
    return await finish(world, await run(world), kv_writes=put(**values))


def question(placement, key="n", **changes):
    asked = KvRead(
        node_id=placement.node_id,
        execution_id=placement.execution_id,
        attempt_number=placement.attempt_number,
        fencing_token=placement.fencing_token,
        key=key,
    )
    return replace(asked, **changes)


async def kept(world, *keys, tenant=TENANT):
    """Return what a next run of the agent would read."""
    placement = await run(world, tenant=tenant)
    answers = await world.kv.read([question(placement, key) for key in keys])
    assert {one.denial for one in answers} == {None}
    return [one.value for one in answers]


# --- reading


async def test_a_running_attempt_reads_what_earlier_runs_of_its_agent_wrote(world):
    await write(world, a=b"1", b=b"")
    placement = await run(world)

    answers = await world.kv.read([question(placement, key) for key in ("b", "a", "c")])

    assert [(one.value, one.denial) for one in answers] == [(b"", None), (b"1", None), (None, None)]


async def test_values_belong_to_one_agent_of_one_tenant(world):
    await write(world, a=b"mine")
    assert await kept(world, "a", tenant=OTHER_TENANT) == [None]


@pytest.mark.parametrize(
    "changes",
    [{"node_id": node("two")}, {"fencing_token": 2}, {"attempt_number": 2}, {"execution_id": "exe_1"}],
)
async def test_rule_6_a_node_reads_only_for_the_attempt_whose_lease_it_holds(world, changes):
    await write(world, n=b"secret")
    placement = await run(world)

    (foreign, own) = await world.kv.read([question(placement, **changes), question(placement)])

    assert (foreign.denial, foreign.value) == (KvDenial.LEASE_NOT_HELD, None)
    assert own.value == b"secret"


async def test_rule_6_nothing_is_read_after_the_lease(world):
    placement = await run(world)
    await world.pass_time(LEASE - timedelta(seconds=1))
    (before,) = await world.kv.read([question(placement)])
    await world.pass_time(timedelta(seconds=2))
    (after,) = await world.kv.read([question(placement)])
    assert (before.denial, after.denial) == (None, KvDenial.LEASE_NOT_HELD)


async def test_nothing_is_read_for_an_attempt_that_has_ended(world):
    placement = await run(world)
    await finish(world, placement)
    (answer,) = await world.kv.read([question(placement)])
    assert answer.denial is KvDenial.LEASE_NOT_HELD


async def test_an_execution_without_the_capability_reads_nothing(world):
    await write(world, n=b"1")
    placement = await run_at_once(world, world.build.execution())
    (answer,) = await world.kv.read([question(placement)])
    assert (answer.denial, answer.value) == (KvDenial.NOT_GRANTED, None)


# --- writing


async def test_rule_6_values_are_there_when_the_result_is_accepted_and_not_before(world):
    placement = await run(world)
    assert await kept(world, "n") == [None]
    finished = await finish(world, placement, kv_writes=put(n=b"1"))
    assert finished.execution.state is ExecutionState.SUCCEEDED
    assert await kept(world, "n") == [b"1"]


async def test_a_deletion_removes_a_value(world):
    await write(world, n=b"1", m=b"2")
    await write(world, n=None, never=None)
    assert await kept(world, "n", "m") == [None, b"2"]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TRAPPED, Outcome.KILLED, Outcome.CANCELLED])
async def test_a_run_that_does_not_succeed_writes_nothing(world, outcome):
    await write(world, n=b"1")
    finished = await finish(world, await run(world), outcome, kv_writes=put(n=b"2"))
    assert (finished.disposition, finished.execution.state) == (Disposition.ACCEPTED, outcome.value)
    assert await kept(world, "n") == [b"1"]


async def test_rule_2_a_late_receipt_writes_nothing(world):
    first = await run(world)
    await world.pass_time(LATER)
    await world.leases.expire_leases(limit=10)
    await world.pass_time(LONG_BACKOFF)
    (second,) = (await claim(world, session("two"))).placements

    late = await finish(world, first, kv_writes=put(n=b"late"))
    newest = await finish(world, second, kv_writes=put(n=b"newest"))
    later = await finish(world, first, kv_writes=put(n=b"later"))

    assert [one.disposition for one in (late, newest, later)] == [
        Disposition.EVIDENCE,
        Disposition.ACCEPTED,
        Disposition.EVIDENCE,
    ]
    assert await kept(world, "n") == [b"newest"]


async def test_rule_6_the_attempt_after_a_lost_one_does_not_see_what_that_one_wrote(world):
    first = await run(world)
    await world.pass_time(LATER)
    await world.leases.expire_leases(limit=10)
    await world.pass_time(LONG_BACKOFF)
    (second,) = (await claim(world, session("two"))).placements
    (answer,) = await world.kv.read([question(second)])
    assert (answer.denial, answer.value) == (None, None)
    assert (await world.kv.read([question(first)]))[0].denial is KvDenial.LEASE_NOT_HELD


async def test_the_same_receipt_twice_writes_once(world):
    result = world.build.result(await run(world), kv_writes=put(n=b"1"))
    await world.leases.finish([result])
    await write(world, n=b"2")

    (again,) = await world.leases.finish([result])
    (other_replica,) = await world.leases.finish([replace(result, receipt_id="rcp_other")])

    assert (again.disposition, other_replica.disposition) == (Disposition.ACCEPTED, Disposition.DUPLICATE)
    assert await kept(world, "n") == [b"2"]


async def test_the_last_accepted_writer_of_a_key_wins(world):
    first, second = await run(world), await run(world)
    await finish(world, second, kv_writes=put(a=b"second", b=b"second"))
    await finish(world, first, kv_writes=put(a=b"first"))
    assert await kept(world, "a", "b") == [b"first", b"second"]


async def test_in_one_group_the_later_receipt_wins_and_plain_ones_are_recorded_beside(world):
    placements = [await run(world) for _ in range(3)]
    plain = await run_at_once(world, world.build.execution())
    values = (b"1", b"2", b"3")
    results = [
        world.build.result(one, kv_writes=put(n=value)) for one, value in zip(placements, values, strict=True)
    ]
    finished = await world.leases.finish([results[0], world.build.result(plain), *results[1:]])
    assert {one.execution.state for one in finished} == {ExecutionState.SUCCEEDED}
    assert [one.execution.execution_id for one in finished] == [
        one.execution_id for one in (placements[0], plain, *placements[1:])
    ]
    assert await kept(world, "n") == [b"3"]


async def test_runs_side_by_side_write_all_their_keys(world):
    placements = [await run(world) for _ in range(3)]
    results = [world.build.result(one, kv_writes=put(**{f"k{n}": b"x"})) for n, one in enumerate(placements)]
    await asyncio.gather(*(world.leases.finish([one]) for one in results))
    assert await kept(world, "k0", "k1", "k2") == [b"x"] * 3


async def test_a_deleted_agent_keeps_nothing_that_a_run_still_brings(world):
    placement = await run(world)
    await world.delete_agent()
    finished = await finish(world, placement, kv_writes=put(n=b"1"))
    assert finished.execution.state is ExecutionState.SUCCEEDED
    other = await world.kv.read([question(placement)])
    assert other[0].value is None


# --- quotas


async def test_a_run_that_would_pass_the_quota_of_keys_writes_nothing_and_is_killed_by_it(world):
    await write(world, a=b"1", b=b"1", c=b"1", d=b"1")

    over = await write(world, e=b"1", a=b"2")

    execution = over.execution
    assert (execution.state, execution.limit, execution.reason) == ("killed", "kv_keys", "KV_QUOTA")
    assert (execution.exit_code, over.disposition) == (None, Disposition.ACCEPTED)
    assert (await world.actions(execution.execution_id))[-1] == "execution.killed"
    assert await kept(world, "a", "e") == [b"1", None]


async def test_exactly_the_quota_of_bytes_fits_and_one_more_does_not(world):
    room = KV_QUOTA.max_bytes - len("a")
    assert (await write(world, a=b"x" * (room + 1))).execution.limit == "kv_bytes"
    assert (await write(world, a=b"x" * room)).execution.state == "succeeded"
    assert (await write(world, b=b"")).execution.limit == "kv_bytes"
    assert (await write(world, a=b"y" * room)).execution.state == "succeeded"


async def test_what_is_deleted_makes_room_in_the_same_run(world):
    await write(world, a=b"1", b=b"1", c=b"1", d=b"1")
    assert (await write(world, a=None, e=b"1")).execution.state == "succeeded"
    assert await kept(world, "a", "e") == [None, b"1"]


async def test_in_one_group_the_one_that_passes_the_quota_is_killed_alone(world):
    await write(world, a=b"1", b=b"1", c=b"1")
    placements = [await run(world) for _ in range(3)]
    results = [
        world.build.result(one, kv_writes=put(**{key: b"x"}))
        for one, key in zip(placements, ("d", "e", "a"), strict=True)
    ]
    finished = await world.leases.finish(results)
    assert [one.execution.state for one in finished] == ["succeeded", "killed", "succeeded"]
    assert await kept(world, "a", "d", "e") == [b"x", b"x", None]


async def test_writes_that_nothing_allowed_end_killed(world):
    placement = await run_at_once(world, world.build.execution())
    finished = await finish(world, placement, kv_writes=put(n=b"1"))
    assert (finished.execution.state, finished.execution.reason) == ("killed", "KV_NOT_GRANTED")
    assert await kept(world, "n") == [None]


# --- unsafe calls


def call(placement, **changes):
    return replace(UnsafeCall(node_id=placement.node_id, attempt=placement.attempt), **changes)


async def lose(world):
    await world.pass_time(LATER)
    (lost,) = await world.leases.expire_leases(limit=10)
    return lost


async def test_rule_6_after_an_unsafe_call_a_lost_attempt_is_not_retried(world):
    placement = await run(world)
    assert await world.leases.declare_unsafe([call(placement)]) == [True]

    lost = await lose(world)

    found = await world.store.get(TENANT, placement.execution_id)
    assert (lost.state, lost.reason) == (ExecutionState.LOST, LossReason.LEASE_EXPIRED)
    assert (found.state, found.reason) == (ExecutionState.LOST, EndReason.RETRY_UNSAFE)
    assert "attempt.unsafe_call" in await world.actions(placement.execution_id)


async def test_rule_6_a_manifest_that_calls_a_retry_safe_gets_one(world):
    placement = await run(world, retry_is_safe=True)
    await world.leases.declare_unsafe([call(placement)])
    assert (await lose(world)).state is ExecutionState.PENDING


async def test_rule_6_without_an_unsafe_call_a_lost_attempt_is_retried(world):
    await run(world)
    assert (await lose(world)).state is ExecutionState.PENDING


async def test_rule_6_a_node_that_starts_anew_after_an_unsafe_call_ends_the_execution(world):
    placement = await run(world)
    await world.leases.declare_unsafe([call(placement)])
    (lost,) = await world.leases.lose_attempts_of_other_boots(node(), BootId("boot_2"))
    assert (lost.state, lost.attempt) == (ExecutionState.LOST, placement.attempt)


async def give_up(world, placement):
    """The node's answer is a reason of its own: busy, stale, draining."""
    calls = world.build.body(b"calls")
    result = world.build.result(placement, Outcome.REJECTED, reason="stale", counts=False, recording=calls)
    (finished,) = await world.leases.finish([result])
    return finished.execution


async def test_rule_6_after_an_unsafe_call_a_node_that_gives_up_gets_the_run_repeated_nowhere(world):
    placement = await run(world)
    await world.leases.declare_unsafe([call(placement)])

    ended = await give_up(world, placement)

    assert (ended.state, ended.reason) == (ExecutionState.LOST, EndReason.RETRY_UNSAFE)
    assert ended.recording_bytes == 5
    assert ended == await world.store.get(TENANT, placement.execution_id)
    assert "execution.lost" in await world.actions(placement.execution_id)
    await world.pass_time(LONG_BACKOFF)
    assert (await claim(world)).placements == ()


@pytest.mark.parametrize(("retry_is_safe", "declares"), [(True, True), (False, False)])
async def test_rule_6_a_node_that_gives_up_leaves_to_others_what_is_safe(world, retry_is_safe, declares):
    placement = await run(world, retry_is_safe=retry_is_safe)
    if declares:
        await world.leases.declare_unsafe([call(placement)])
    again = await give_up(world, placement)
    assert (again.state, again.recording_bytes) == (ExecutionState.PENDING, 0)


async def test_rule_6_the_intent_of_an_earlier_attempt_does_not_bind_the_next(world):
    placement = await run(world, retry_is_safe=True)
    await world.leases.declare_unsafe([call(placement)])
    await lose(world)
    await world.pass_time(LONG_BACKOFF)
    (second,) = (await claim(world)).placements
    found = await world.store.get(TENANT, second.execution_id)
    assert [one.unsafe_call_at is None for one in found.attempts] == [False, True]


async def test_rule_6_declaring_twice_is_on_record_once(world):
    placement = await run(world)
    assert await world.leases.declare_unsafe([call(placement)]) == [True]
    first = (await world.store.get(TENANT, placement.execution_id)).attempts[0].unsafe_call_at
    assert await world.leases.declare_unsafe([call(placement), call(placement)]) == [True, True]
    again = (await world.store.get(TENANT, placement.execution_id)).attempts[0].unsafe_call_at
    assert again == first
    assert (await world.actions(placement.execution_id)).count("attempt.unsafe_call") == 1


async def test_rule_6_only_the_holder_of_a_live_lease_declares(world):
    placement = await run(world)
    ended = await run(world)
    await finish(world, ended)
    other_number = replace(placement.attempt, attempt_number=2)
    other_token = replace(placement.attempt, fencing_token=2)

    answers = await world.leases.declare_unsafe(
        [
            call(placement, node_id=node("two")),
            call(placement, attempt=other_number),
            call(placement, attempt=other_token),
            call(ended),
        ]
    )

    assert answers == [False] * 4
    assert (await world.store.get(TENANT, placement.execution_id)).attempts[0].unsafe_call_at is None


async def test_rule_6_after_the_lease_nothing_is_declared(world):
    placement = await run(world)
    await world.pass_time(LATER)
    assert await world.leases.declare_unsafe([call(placement)]) == [False]


# --- recordings


async def test_a_recording_is_kept_beside_output_and_log(world):
    placement = await run(world)
    recording, log = world.build.body(b"calls"), world.build.body(b"log")
    finished = await finish(world, placement, recording=recording, log=log, kv_writes=put(n=b"1"))

    assert finished.execution.recording_bytes == 5
    found = await world.store.body_of(TENANT, placement.execution_id, BodyKind.RECORDING)
    assert found == replace(recording, content=None)
    assert await world.store.read_body(TENANT, found.body_id, offset_bytes=0, max_bytes=99) == b"calls"
    stored = await world.store.get(TENANT, placement.execution_id)
    assert (stored.recording_bytes, stored.log_bytes, stored.output) == (5, 3, b"output")


async def test_a_recording_that_was_uploaded_is_used_and_a_missing_one_is_waited_for(world):
    placement = await run(world)
    recording = world.build.body(b"r" * 70_000)
    result = world.build.result(placement, recording=replace(recording, content=None))

    (missing,) = await world.leases.finish([result])
    await world.store.add_body(
        TENANT, recording, quota=UploadQuota(owner="attempt", max_bodies=9, max_bytes=1 << 20)
    )
    (finished,) = await world.leases.finish([result])
    await world.pass_time(timedelta(hours=25))

    assert (missing.disposition, finished.disposition) == (Disposition.OUTPUT_MISSING, Disposition.ACCEPTED)
    assert await world.store.remove_unused_bodies(limit=10) == 0

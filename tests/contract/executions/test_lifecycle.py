"""What every store of executions promises: the states and rules of the protocol, whoever keeps them."""

from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.audit.domain import NewAuditEntry
from control_plane.executions.domain import (
    EXCLUSION_LAPSE,
    AcceptOutcome,
    AttemptState,
    BodyKind,
    Disposition,
    EndReason,
    ExecutionState,
    HaltScope,
    LossReason,
    Outcome,
    UploadQuota,
)
from shared.errors import (
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SessionSupersededError,
    WrongStateError,
)
from shared.ids import AUDIT_ENTRY, BootId, TenantId, new_id
from tests.builders.executions import LEASE, OTHER_TENANT, TEMPLATE, TENANT, node, session
from tests.fixtures.execution_worlds import claim, run_at_once, submit

LATER = LEASE + timedelta(seconds=1)
LONG_BACKOFF = timedelta(seconds=11)
QUOTA = UploadQuota(owner="somebody", max_bodies=100, max_bytes=1 << 30)


def cancel_entry(world, execution_id):
    return NewAuditEntry(
        audit_entry_id=new_id(AUDIT_ENTRY, world.build.clock, world.build.random),
        tenant_id=TENANT,
        actor="test",
        action="execution.cancel_requested",
        subject=execution_id,
    )


async def cancel(world, execution_id):
    return await world.store.request_cancel(TENANT, execution_id, cancel_entry(world, execution_id))


async def lose(world):
    await world.pass_time(LATER)
    return await world.leases.expire_leases(limit=10)


# --- accept


async def test_an_accepted_execution_waits_for_a_node(world):
    item = world.build.execution()
    (accepted,) = await world.store.accept([item], [None])

    found = await world.store.get(TENANT, item.run.execution_id)

    assert (accepted.outcome, accepted.placed) == (AcceptOutcome.NEW, False)
    assert (found.state, found.fencing_token, found.attempts) == (ExecutionState.PENDING, 0, ())


async def test_rule_3_accepting_and_leasing_are_one_transaction(world):
    item = world.build.execution()
    placement = world.build.placement(item)
    (accepted,) = await world.store.accept([item], [placement])

    found = await world.store.get(TENANT, item.run.execution_id)

    assert accepted.placed
    assert [(one.number, one.fencing_token, one.state) for one in found.attempts] == [
        (1, 1, AttemptState.LEASED)
    ]
    assert not (await claim(world)).placements


@pytest.mark.parametrize(("epoch", "boot"), [(2, "boot_1"), (2, "boot_2")])
async def test_rule_3_a_placement_of_an_older_session_is_accepted_as_pending_only(world, epoch, boot):
    await world.connect("one", epoch=epoch, boot=boot)
    item = world.build.execution()

    (accepted,) = await world.store.accept([item], [world.build.placement(item, session(epoch=1))])

    assert (accepted.outcome, accepted.placed) == (AcceptOutcome.NEW, False)
    assert len((await claim(world, session(epoch=epoch, boot=boot))).placements) == 1


async def test_rule_8_the_same_request_is_the_same_execution(world):
    first, again = (world.build.execution(request_id="r1", fingerprint=b"a") for _ in range(2))
    await submit(world, first)

    (accepted,) = await world.store.accept([again], [None])

    assert accepted.outcome is AcceptOutcome.DUPLICATE
    assert accepted.execution_id == first.run.execution_id
    with pytest.raises(NotFoundError):
        await world.store.get(TENANT, again.run.execution_id)


async def test_rule_8_another_request_under_the_same_id_is_a_conflict(world):
    await submit(world, world.build.execution(request_id="r1", fingerprint=b"a"))

    (accepted,) = await world.store.accept([world.build.execution(request_id="r1", fingerprint=b"b")], [None])

    assert accepted.outcome is AcceptOutcome.CONFLICT


async def test_rule_8_request_ids_of_other_callers_do_not_collide(world):
    items = [world.build.execution(request_id="r1", caller=f"caller {n}") for n in range(2)]

    accepted = await world.store.accept(items, [None, None])

    assert [one.outcome for one in accepted] == [AcceptOutcome.NEW, AcceptOutcome.NEW]


async def test_rule_8_two_equal_requests_in_one_group_are_one_execution(world):
    items = [world.build.execution(request_id="r1") for _ in range(2)]

    accepted = await world.store.accept(items, [None, None])

    assert sorted(one.outcome for one in accepted) == [AcceptOutcome.DUPLICATE, AcceptOutcome.NEW]
    assert len({one.execution_id for one in accepted}) == 1


async def test_a_forgotten_request_id_is_new_again(world):
    await submit(world, world.build.execution(request_id="r1"))
    await world.pass_time(timedelta(hours=25))

    assert await world.store.remove_idempotency_keys(older_than=timedelta(hours=24), limit=10) == 1
    (accepted,) = await world.store.accept([world.build.execution(request_id="r1")], [None])

    assert accepted.outcome is AcceptOutcome.NEW


async def test_accepting_again_after_an_unknown_commit_tells_that_it_was_stored(world):
    item = world.build.execution()
    placement = world.build.placement(item)
    await world.store.accept([item], [placement])

    (again,) = await world.store.accept([item], [placement])

    assert (again.outcome, again.placed) == (AcceptOutcome.NEW, True)


async def test_an_agent_that_was_deleted_meanwhile_is_stale(world):
    await world.delete_agent()
    item = world.build.execution()

    (accepted,) = await world.store.accept([item], [None])

    assert accepted.outcome is AcceptOutcome.STALE_AGENT
    with pytest.raises(NotFoundError):
        await world.store.get(TENANT, item.run.execution_id)


async def test_an_agent_of_another_revision_is_stale(world):
    (accepted,) = await world.store.accept([world.build.execution(revision=2)], [None])
    assert accepted.outcome is AcceptOutcome.STALE_AGENT


async def test_nothing_of_a_revoked_template_is_accepted(world):
    await world.revoke_template()
    (accepted,) = await world.store.accept([world.build.execution()], [None])
    assert accepted.outcome is AcceptOutcome.STALE_AGENT


async def test_a_repeat_of_an_accepted_request_is_answered_after_its_agent_is_gone(world):
    (item,) = await submit(world, world.build.execution(request_id="r1"))
    await world.delete_agent()

    (accepted,) = await world.store.accept([world.build.execution(request_id="r1")], [None])

    assert (accepted.outcome, accepted.execution_id) == (AcceptOutcome.DUPLICATE, item.run.execution_id)


async def test_an_uploaded_input_that_is_gone_is_refused(world):
    body = replace(world.build.body(b"x" * 70_000), content=None)
    (accepted,) = await world.store.accept([world.build.execution(body=body)], [None])
    assert accepted.outcome is AcceptOutcome.BODY_GONE


async def test_a_mixed_group_is_answered_in_order(world):
    await submit(world, world.build.execution(request_id="known", fingerprint=b"a"))
    items = [
        world.build.execution(),
        world.build.execution(request_id="known", fingerprint=b"a"),
        world.build.execution(revision=9),
        world.build.execution(request_id="known", fingerprint=b"b"),
        world.build.execution(),
    ]

    accepted = await world.store.accept(items, [world.build.placement(items[0]), None, None, None, None])

    assert [(one.outcome, one.placed) for one in accepted] == [
        (AcceptOutcome.NEW, True),
        (AcceptOutcome.DUPLICATE, False),
        (AcceptOutcome.STALE_AGENT, False),
        (AcceptOutcome.CONFLICT, False),
        (AcceptOutcome.NEW, False),
    ]


# --- claim


async def test_a_claim_leases_the_oldest_first_and_says_when_nothing_is_left(world):
    for _ in range(3):
        await submit(world, world.build.execution())
        await world.pass_time(timedelta(milliseconds=5))

    first = await claim(world, limit=2)
    second = await claim(world, limit=2)

    assert (len(first.placements), first.queue_empty) == (2, False)
    assert (len(second.placements), second.queue_empty) == (1, True)
    ids = [one.execution_id for one in (*first.placements, *second.placements)]
    assert ids == sorted(ids)


async def test_a_claim_hands_over_all_that_an_order_needs(world):
    item = world.build.execution(body=world.build.body(b"hello"))
    await submit(world, item)

    claimed = await claim(world)

    (work,) = claimed.executions
    assert work.run == item.run
    assert (work.attempt_number, work.fencing_token) == (1, 1)


async def test_what_place_leaves_stays_in_the_queue(world):
    await submit(world, world.build.execution())

    left = await world.leases.claim(session(), limit=10, place=lambda _: [])

    assert (left.placements, left.queue_empty) == ((), False)
    assert len((await claim(world)).placements) == 1


async def test_rule_11_what_is_too_new_for_a_node_waits_for_another_and_says_so(world):
    first, second = world.build.execution(), world.build.execution()
    await submit(world, first, second)

    def place(works):
        return [world.build.placement(work) for work in works]

    too_new = (first.run.execution_id,)
    claimed = await world.leases.claim(session(), limit=1, place=place, too_new=too_new)

    assert [one.run.execution_id for one in claimed.executions] == [second.run.execution_id]
    waiting = await world.store.get(first.run.tenant_id, first.run.execution_id)
    assert (waiting.state, waiting.pending_reason) == ("pending", "NEEDS_NEWER_NODE")
    again = await world.leases.claim(session("two"), limit=1, place=place)
    assert [one.run.execution_id for one in again.executions] == [first.run.execution_id]


async def test_rule_11_what_is_held_already_is_not_marked_as_too_new(world):
    (held,) = await submit(world, world.build.execution())
    await claim(world)

    found = await world.leases.claim(session(), limit=1, place=lambda _: [], too_new=(held.run.execution_id,))

    assert found.queue_empty
    assert (await world.store.get(held.run.tenant_id, held.run.execution_id)).pending_reason == ""


async def test_rule_3_the_newest_session_wins_a_claim(world):
    await submit(world, world.build.execution())
    await world.connect("one", epoch=2, boot="boot_1")

    with pytest.raises(SessionSupersededError):
        await claim(world, session(epoch=1))

    assert len((await claim(world, session(epoch=2))).placements) == 1


async def test_an_attempt_lives_until_it_is_finished(world):
    placement = await run_at_once(world, world.build.execution())
    assert list(await world.leases.live_of([placement.attempt])) == [placement.attempt]

    await world.leases.finish([world.build.result(placement)])

    assert list(await world.leases.live_of([placement.attempt])) == []


# --- start and finish


async def test_rule_1_started_means_running(world):
    placement = await run_at_once(world, world.build.execution())

    await world.leases.start([placement.attempt])

    found = await world.store.get(TENANT, placement.execution_id)
    assert (found.state, found.attempts[0].state) == (ExecutionState.RUNNING, AttemptState.RUNNING)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.SUCCEEDED, ExecutionState.SUCCEEDED),
        (Outcome.FAILED, ExecutionState.FAILED),
        (Outcome.TRAPPED, ExecutionState.TRAPPED),
        (Outcome.KILLED, ExecutionState.KILLED),
        (Outcome.REJECTED, ExecutionState.REJECTED),
    ],
)
async def test_rule_1_a_result_is_accepted_from_leased_or_running(world, started, outcome, state):
    placement = await run_at_once(world, world.build.execution())
    if started:
        await world.leases.start([placement.attempt])
    result = world.build.result(placement, outcome)

    (finished,) = await world.leases.finish([result])

    assert finished.disposition is Disposition.ACCEPTED
    found = await world.store.get(TENANT, placement.execution_id)
    assert (found.state, found.receipt_id, found.attempts[0].state) == (
        state,
        result.receipt_id,
        AttemptState.FINISHED,
    )
    assert (found.exit_code, found.limit, found.trap, found.reason) == (
        result.exit_code,
        result.limit,
        result.trap,
        result.reason,
    )


async def test_what_finish_answers_is_what_get_reads(world):
    placement = await run_at_once(world, world.build.execution())

    (finished,) = await world.leases.finish([world.build.result(placement)])

    assert finished.execution == await world.store.get(TENANT, placement.execution_id)
    assert finished.execution.output == b"output"


async def test_rule_2_first_committed_terminal_transition_wins(world):
    placement = await run_at_once(world, world.build.execution())
    first = world.build.result(placement, Outcome.FAILED)
    second = world.build.result(placement, Outcome.SUCCEEDED)

    answers = [*await world.leases.finish([first]), *await world.leases.finish([second])]

    assert [one.disposition for one in answers] == [Disposition.ACCEPTED, Disposition.EVIDENCE]
    found = await world.store.get(TENANT, placement.execution_id)
    assert (found.state, found.receipt_id) == (ExecutionState.FAILED, first.receipt_id)


async def test_rule_2_two_results_in_one_group_decide_once(world):
    placement = await run_at_once(world, world.build.execution())
    results = [world.build.result(placement, outcome) for outcome in (Outcome.FAILED, Outcome.SUCCEEDED)]

    answers = await world.leases.finish(results)

    assert [one.disposition for one in answers] == [Disposition.ACCEPTED, Disposition.EVIDENCE]


async def test_rule_2_an_expired_lease_does_not_invalidate_a_result(world):
    placement = await run_at_once(world, world.build.execution())
    (lost,) = await lose(world)

    (finished,) = await world.leases.finish([world.build.result(placement)])

    assert lost.state is ExecutionState.PENDING
    assert finished.disposition is Disposition.ACCEPTED
    assert not (await claim(world)).placements


async def test_rule_2_a_higher_token_makes_a_late_receipt_evidence(world):
    placement = await run_at_once(world, world.build.execution())
    await lose(world)
    await world.pass_time(LONG_BACKOFF)
    (second,) = (await claim(world, session("two"))).placements

    (late,) = await world.leases.finish([world.build.result(placement, Outcome.FAILED)])
    (current,) = await world.leases.finish([world.build.result(second)])

    assert (late.disposition, late.execution) == (Disposition.EVIDENCE, None)
    assert current.disposition is Disposition.ACCEPTED
    found = await world.store.get(TENANT, placement.execution_id)
    assert [one.state for one in found.attempts] == [AttemptState.LOST, AttemptState.FINISHED]


async def test_rule_5_the_same_receipt_twice_is_recorded_once(world):
    placement = await run_at_once(world, world.build.execution())
    result = world.build.result(placement)
    await world.leases.finish([result])

    (again,) = await world.leases.finish([replace(result, receipt_id="rcp_other")])

    assert (again.disposition, again.disposition.is_recorded) == (Disposition.DUPLICATE, True)


async def test_rule_5_two_receipts_for_one_sequence_are_a_conflict(world):
    first = await run_at_once(world, world.build.execution())
    second = await run_at_once(world, world.build.execution())
    one = world.build.result(first)
    await world.leases.finish([one])

    (other,) = await world.leases.finish([replace(world.build.result(second), sequence=one.sequence)])

    assert (other.disposition, other.disposition.is_recorded) == (Disposition.CONFLICT, False)
    assert (await world.store.get(TENANT, second.execution_id)).state is ExecutionState.PENDING


async def test_finishing_again_after_an_unknown_commit_tells_that_it_was_accepted(world):
    placement = await run_at_once(world, world.build.execution())
    result = world.build.result(placement)
    (first,) = await world.leases.finish([result])

    (again,) = await world.leases.finish([result])

    assert again.disposition is Disposition.ACCEPTED
    assert again.execution == first.execution


@pytest.mark.parametrize(
    "changes",
    [
        {"order_id": "ord_unknown"},
        {"order_digest": "sha256:" + "0" * 64},
        {"node_id": node("two")},
        {"execution_id": "exe_unknown"},
        {"fencing_token": 2},
    ],
)
async def test_a_receipt_that_matches_no_order_of_its_node_is_not_stored(world, changes):
    placement = await run_at_once(world, world.build.execution())
    result = replace(world.build.result(placement), **changes)

    (finished,) = await world.leases.finish([result])

    assert (finished.disposition, finished.disposition.is_recorded) == (Disposition.UNKNOWN_ORDER, False)
    assert (await world.store.get(TENANT, placement.execution_id)).state is ExecutionState.PENDING


async def test_a_result_whose_output_was_not_uploaded_is_not_accepted(world):
    placement = await run_at_once(world, world.build.execution())
    output = replace(world.build.body(b"x" * 70_000), content=None)

    (finished,) = await world.leases.finish([world.build.result(placement, output=output)])

    assert finished.disposition is Disposition.OUTPUT_MISSING
    assert not (await world.store.get(TENANT, placement.execution_id)).state.is_terminal


async def test_an_uploaded_output_is_kept_with_its_execution(world):
    placement = await run_at_once(world, world.build.execution())
    content = b"x" * 70_000
    output = world.build.body(content)
    await world.store.add_body(TENANT, output, quota=QUOTA)
    assert await world.store.find_uploaded_body(TENANT, output.commitment) == replace(output, content=None)
    found = await world.store.find_output(placement.execution_id, output.commitment)
    assert found == replace(output, content=None)

    await world.leases.finish([world.build.result(placement, output=replace(output, content=None))])
    await world.pass_time(timedelta(hours=25))
    removed = await world.store.remove_unused_bodies(limit=10)

    found = await world.store.body_of(TENANT, placement.execution_id, BodyKind.OUTPUT)
    assert (removed, found.size_bytes) == (0, 70_000)
    piece = await world.store.read_body(TENANT, found.body_id, offset_bytes=69_990, max_bytes=100)
    assert piece == b"x" * 10
    assert (await world.store.get(TENANT, placement.execution_id)).output is None


# --- rejections of one node


async def test_rule_1_a_rejection_of_one_node_excludes_it_and_does_not_count(world):
    placement = await run_at_once(world, world.build.execution(max_attempts=1))
    busy = world.build.result(placement, Outcome.REJECTED, reason="busy", counts=False)

    (finished,) = await world.leases.finish([busy])
    await world.pass_time(timedelta(seconds=1))

    assert finished.disposition is Disposition.ACCEPTED
    assert finished.execution.state is ExecutionState.PENDING
    assert not (await claim(world, session("one"))).placements
    (second,) = (await claim(world, session("two"))).placements
    assert (second.attempt_number, second.fencing_token) == (2, 2)
    await world.leases.finish([world.build.result(second)])
    found = await world.store.get(TENANT, placement.execution_id)
    assert (found.state, found.counted_attempts) == (ExecutionState.SUCCEEDED, 0)


async def test_a_lone_node_that_was_busy_is_asked_again_later(world):
    placement = await run_at_once(world, world.build.execution())
    await world.leases.finish([world.build.result(placement, Outcome.REJECTED, counts=False)])
    await world.pass_time(EXCLUSION_LAPSE + timedelta(seconds=1))

    assert len((await claim(world, session("one"))).placements) == 1


async def test_a_second_receipt_for_a_rejected_attempt_is_evidence(world):
    placement = await run_at_once(world, world.build.execution())
    await world.leases.finish([world.build.result(placement, Outcome.REJECTED, counts=False)])

    (second,) = await world.leases.finish([world.build.result(placement)])

    assert second.disposition is Disposition.EVIDENCE


async def test_the_rejection_of_an_order_that_came_twice_ends_nothing(world):
    placement = await run_at_once(world, world.build.execution())
    repeat = world.build.result(placement, Outcome.REJECTED, reason="replay")

    (refused,) = await world.leases.finish([repeat])
    (finished,) = await world.leases.finish([world.build.result(placement)])

    assert (refused.disposition, refused.execution) == (Disposition.EVIDENCE, None)
    assert finished.disposition is Disposition.ACCEPTED
    assert finished.execution.state is ExecutionState.SUCCEEDED


# --- losses


async def test_rule_1_a_lost_attempt_leads_to_another_which_runs_alone(world):
    placement = await run_at_once(world, world.build.execution())

    (lost,) = await lose(world)
    await world.pass_time(LONG_BACKOFF)
    (work,) = (await claim(world)).executions

    assert (lost.attempt, lost.reason, lost.state) == (
        placement.attempt,
        LossReason.LEASE_EXPIRED,
        ExecutionState.PENDING,
    )
    assert (work.runs_alone, work.fencing_token) == (True, 2)


async def test_rule_1_after_max_attempts_it_is_lost(world):
    await run_at_once(world, item := world.build.execution(max_attempts=2))
    await lose(world)
    await world.pass_time(LONG_BACKOFF)
    await claim(world)

    (second,) = await lose(world)

    found = await world.store.get(TENANT, item.run.execution_id)
    assert second.state is ExecutionState.LOST
    assert (found.state, found.reason, found.counted_attempts) == (ExecutionState.LOST, "MAX_ATTEMPTS", 2)


async def test_rule_1_an_order_that_never_left_is_released_uncounted(world):
    placement = await run_at_once(world, world.build.execution(max_attempts=1))

    (released,) = await world.leases.release_unsent([placement])

    assert (released.reason, released.state) == (LossReason.ORDER_NOT_SENT, ExecutionState.PENDING)
    (again,) = (await claim(world)).placements
    assert (again.attempt_number, again.fencing_token) == (2, 2)
    assert not (await claim(world)).placements


async def test_rule_9_a_lease_counts_until_it_has_run_out(world):
    placement = await run_at_once(world, world.build.execution())
    await world.pass_time(LEASE - timedelta(seconds=1))
    assert await world.leases.expire_leases(limit=10) == []

    renewed = await world.leases.renew(placement.node_id, [placement.attempt], lease=LEASE)
    await world.pass_time(timedelta(seconds=2))

    assert list(renewed) == [placement.attempt]
    assert await world.leases.expire_leases(limit=10) == []


async def test_only_the_holder_renews_and_only_what_lives(world):
    placement = await run_at_once(world, world.build.execution())
    assert list(await world.leases.renew(node("two"), [placement.attempt], lease=LEASE)) == []

    await world.leases.finish([world.build.result(placement)])

    assert list(await world.leases.renew(placement.node_id, [placement.attempt], lease=LEASE)) == []


async def test_a_new_boot_loses_the_attempts_of_the_old_one(world):
    placement = await run_at_once(world, world.build.execution())
    other = await run_at_once(world, world.build.execution(), session("two"))

    same = await world.leases.lose_attempts_of_other_boots(node("one"), BootId("boot_1"))
    lost = await world.leases.lose_attempts_of_other_boots(node("one"), BootId("boot_2"))

    assert list(same) == []
    assert [(one.attempt, one.reason) for one in lost] == [(placement.attempt, LossReason.NODE_RESTARTED)]
    assert (await world.store.get(TENANT, other.execution_id)).live_attempt is not None


async def test_rule_6_only_the_holder_of_a_live_lease_may_fetch(world):
    placement = await run_at_once(world, world.build.execution())

    live = await world.leases.live_attempt(placement.node_id, placement.attempt)
    with pytest.raises(PermissionDeniedError):
        await world.leases.live_attempt(node("two"), placement.attempt)
    await world.pass_time(LATER)
    with pytest.raises(PermissionDeniedError):
        await world.leases.live_attempt(placement.node_id, placement.attempt)

    assert (live.tenant_id, live.template_digest) == (TENANT, TEMPLATE)


# --- cancellation and deadlines


async def test_rule_7_a_pending_execution_is_cancelled_at_once(world):
    (item,) = await submit(world, world.build.execution())

    execution, request = await cancel(world, item.run.execution_id)

    assert (execution.state, request) == (ExecutionState.CANCELLED, None)
    assert not (await claim(world)).placements


async def test_rule_7_a_running_execution_ends_when_its_node_says_so(world):
    placement = await run_at_once(world, world.build.execution())
    await world.leases.start([placement.attempt])

    execution, request = await cancel(world, placement.execution_id)
    (listed,) = await world.leases.cancel_requests([placement.node_id])
    (finished,) = await world.leases.finish([world.build.result(placement, Outcome.CANCELLED)])

    assert (execution.state, execution.cancel_requested) == (ExecutionState.RUNNING, True)
    assert request == listed
    assert (request.attempt, request.node_id) == (placement.attempt, placement.node_id)
    assert finished.execution.state is ExecutionState.CANCELLED
    assert list(await world.leases.cancel_requests([placement.node_id])) == []


async def test_rule_7_losing_the_node_after_a_cancel_means_cancelled(world):
    placement = await run_at_once(world, world.build.execution())
    await cancel(world, placement.execution_id)

    (lost,) = await lose(world)

    assert lost.state is ExecutionState.CANCELLED
    assert not (await claim(world)).placements


async def test_rule_7_a_result_that_was_faster_than_the_cancel_stands(world):
    placement = await run_at_once(world, world.build.execution())
    await cancel(world, placement.execution_id)

    (finished,) = await world.leases.finish([world.build.result(placement)])

    assert finished.execution.state is ExecutionState.SUCCEEDED


async def test_rule_7_a_busy_node_does_not_revive_what_is_cancelled(world):
    placement = await run_at_once(world, world.build.execution())
    await cancel(world, placement.execution_id)

    (finished,) = await world.leases.finish([world.build.result(placement, Outcome.REJECTED, counts=False)])

    assert finished.execution.state is ExecutionState.CANCELLED


async def test_cancelling_twice_has_no_effect_and_an_ended_one_is_refused(world):
    placement = await run_at_once(world, world.build.execution())
    first = await cancel(world, placement.execution_id)
    assert await cancel(world, placement.execution_id) == first
    await world.leases.finish([world.build.result(placement, Outcome.CANCELLED)])

    with pytest.raises(WrongStateError):
        await cancel(world, placement.execution_id)


async def halt(world, reason):
    scope = HaltScope(tenant_id=TENANT, template_digest=TEMPLATE)
    return await world.store.halt(scope, reason, actor="ann", limit=10)


SCOPES = {
    "tenant": HaltScope(tenant_id=TENANT),
    "template": HaltScope(tenant_id=TENANT, template_name="redact"),
    "version": HaltScope(tenant_id=TENANT, template_digest=TEMPLATE),
}
ELSEWHERE = {
    "other tenant": HaltScope(tenant_id=OTHER_TENANT),
    "other template": HaltScope(tenant_id=TENANT, template_name="other"),
    "other version": HaltScope(tenant_id=TENANT, template_digest="sha256:" + "f" * 64),
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
async def test_nothing_is_accepted_while_a_stop_holds_and_its_reason_is_told(world, scope):
    await world.stop(scope, "it leaks")
    refused = world.build.execution()

    (answer,) = await world.store.accept([refused], [world.build.placement(refused)])
    await world.lift()
    (later,) = await world.store.accept([world.build.execution()], [None])

    assert (answer.outcome, answer.placed, answer.stop_reason) == (AcceptOutcome.STOPPED, False, "it leaks")
    assert later.outcome is AcceptOutcome.NEW
    with pytest.raises(NotFoundError):
        await world.store.get(TENANT, refused.run.execution_id)


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
async def test_what_a_stop_holds_gets_no_order_waits_with_that_reason_and_goes_on_after_it(world, scope):
    (waiting,) = await submit(world, world.build.execution())
    await world.stop(scope, "it leaks")

    held = await claim(world)
    shown = await world.store.get(TENANT, waiting.run.execution_id)
    await world.lift()
    (placed,) = (await claim(world)).placements

    assert held.placements == ()
    assert (shown.state, shown.pending_reason) == (ExecutionState.PENDING, "STOPPED")
    assert placed.execution_id == waiting.run.execution_id


@pytest.mark.parametrize("scope", ELSEWHERE.values(), ids=ELSEWHERE)
async def test_a_stop_holds_nobody_else(world, scope):
    await world.stop(scope, "it leaks")

    (waiting,) = await submit(world, world.build.execution())

    assert (await world.store.get(TENANT, waiting.run.execution_id)).pending_reason == "QUEUED"
    assert len((await claim(world)).placements) == 1


async def test_rule_8_a_repeat_finds_its_execution_while_a_stop_holds(world):
    first, again = world.build.execution(), world.build.execution()
    again = replace(again, idempotency=first.idempotency, run=replace(again.run, input=first.run.input))
    await submit(world, first)
    await world.stop(SCOPES["tenant"], "it leaks")

    (answer,) = await world.store.accept([again], [None])

    assert (answer.outcome, answer.execution_id) == (AcceptOutcome.DUPLICATE, first.run.execution_id)


async def test_a_retired_template_is_neither_accepted_nor_claimed(world):
    await submit(world, world.build.execution())
    await world.retire_template()

    (answer,) = await world.store.accept([world.build.execution()], [None])

    assert answer.outcome is AcceptOutcome.STALE_AGENT
    assert (await claim(world)).placements == ()


async def test_rule_7_revoking_a_template_stops_what_waits_and_what_runs(world):
    placement = await run_at_once(world, world.build.execution())
    (waiting,) = await submit(world, world.build.execution())

    ended, requests = await halt(world, EndReason.TEMPLATE_REVOKED)
    again = await halt(world, EndReason.TEMPLATE_REVOKED)

    assert (list(ended), [one.attempt for one in requests]) == (
        [waiting.run.execution_id],
        [placement.attempt],
    )
    assert [list(part) for part in again] == [[], []]
    assert (await world.store.get(TENANT, waiting.run.execution_id)).reason == "TEMPLATE_REVOKED"


async def test_retiring_a_template_ends_what_waits_and_lets_run_what_runs(world):
    await run_at_once(world, world.build.execution())
    (waiting,) = await submit(world, world.build.execution())

    ended, requests = await halt(world, EndReason.TEMPLATE_RETIRED)

    assert (list(ended), list(requests)) == ([waiting.run.execution_id], [])
    found = await world.store.get(TENANT, waiting.run.execution_id)
    assert (found.state, found.reason) == (ExecutionState.CANCELLED, "TEMPLATE_RETIRED")


async def test_a_stop_ends_what_runs_and_lets_wait_what_waits(world):
    placement = await run_at_once(world, world.build.execution())
    (waiting,) = await submit(world, world.build.execution())

    ended, requests = await halt(world, EndReason.STOPPED)
    (finished,) = await world.leases.finish([world.build.result(placement, Outcome.CANCELLED)])

    assert (list(ended), [one.attempt for one in requests]) == ([], [placement.attempt])
    assert (finished.execution.state, finished.execution.reason) == (ExecutionState.CANCELLED, "STOPPED")
    assert (await world.store.get(TENANT, waiting.run.execution_id)).state is ExecutionState.PENDING


async def test_rule_7_losing_the_node_of_what_a_stop_ends_leads_to_no_new_attempt(world):
    placement = await run_at_once(world, world.build.execution())
    await halt(world, EndReason.STOPPED)

    (lost,) = await lose(world)

    assert lost.state is ExecutionState.CANCELLED
    assert (await world.store.get(TENANT, placement.execution_id)).reason == "STOPPED"


@pytest.mark.parametrize(
    "reason", [EndReason.STOPPED, EndReason.TEMPLATE_RETIRED, EndReason.TEMPLATE_REVOKED]
)
async def test_a_halt_concerns_nobody_else(world, reason):
    await run_at_once(world, world.build.execution())
    await submit(world, world.build.execution())

    for scope in (
        HaltScope(tenant_id="other"),
        HaltScope(tenant_id=TENANT, template_digest="sha256:" + "f" * 64),
    ):
        assert [list(part) for part in await world.store.halt(scope, reason, actor="ann", limit=10)] == [
            [],
            [],
        ]


async def test_what_must_run_alone_can_be_passed_over(world):
    alone = await run_at_once(world, world.build.execution())
    await lose(world)
    await world.pass_time(LONG_BACKOFF)
    (behind,) = await submit(world, world.build.execution())

    at = session()
    claimed = await world.leases.claim(
        at, limit=1, place=lambda works: [world.build.placement(work, at) for work in works], alone=False
    )
    (left,) = (await claim(world)).executions

    assert [one.execution_id for one in claimed.placements] == [behind.run.execution_id]
    assert (left.run.execution_id, left.runs_alone) == (alone.execution_id, True)


async def test_a_run_deadline_ends_what_waits_and_stops_what_runs(world):
    placement = await run_at_once(world, world.build.execution(run_deadline=timedelta(minutes=1)))
    (waiting,) = await submit(world, world.build.execution(run_deadline=timedelta(minutes=1)))
    assert list(await world.leases.expire_deadlines(limit=10)) == []
    await world.pass_time(timedelta(minutes=2))

    assert not (await claim(world)).placements
    ended = await world.leases.expire_deadlines(limit=10)
    (finished,) = await world.leases.finish([world.build.result(placement, Outcome.CANCELLED)])

    assert [(one.tenant_id, one.execution_id) for one in ended] == [
        (waiting.run.tenant_id, waiting.run.execution_id)
    ]
    assert (finished.execution.state, finished.execution.reason) == (ExecutionState.EXPIRED, "RUN_DEADLINE")


# --- reads


async def test_tenants_do_not_see_each_other(world):
    (item,) = await submit(world, world.build.execution())
    other = TenantId("other")

    with pytest.raises(NotFoundError):
        await world.store.get(other, item.run.execution_id)
    with pytest.raises(NotFoundError):
        await world.store.get_body(other, item.run.input.body_id)
    page = await world.store.list(other, agent_name="", states=[], page_size=10, page_token="")
    assert page.items == ()


async def test_lists_are_paged_newest_first_and_filtered(world):
    for _ in range(5):
        await submit(world, world.build.execution())
        await world.pass_time(timedelta(milliseconds=2))
    placement = await run_at_once(world, world.build.execution())
    await world.leases.finish([world.build.result(placement)])

    async def page(token="", **filters):
        asked = {"agent_name": "", "states": [], **filters}
        return await world.store.list(TENANT, **asked, page_size=4, page_token=token)

    first = await page()
    second = await page(first.next_page_token)
    ids = [one.execution_id for one in (*first.items, *second.items)]

    assert (len(first.items), len(second.items), second.next_page_token) == (4, 2, "")
    assert ids == sorted(ids, reverse=True)
    assert len((await page(states=[ExecutionState.SUCCEEDED])).items) == 1
    assert (await page(agent_name="nobody")).items == ()


async def test_unused_uploads_are_removed_after_a_day_and_used_ones_stay(world):
    used, unused = world.build.body(b"a" * 70_000), world.build.body(b"b" * 70_000)
    for body in (used, unused):
        await world.store.add_body(TENANT, body, quota=QUOTA)
    long = timedelta(days=2)
    await submit(world, world.build.execution(body=replace(used, content=None), run_deadline=long))
    await world.pass_time(timedelta(hours=25))

    assert await world.store.remove_unused_bodies(limit=10) == 1

    (work,) = (await claim(world)).executions
    assert work.run.input.content is None
    with pytest.raises(NotFoundError):
        await world.store.get_body(TENANT, unused.body_id)


async def test_unused_uploads_of_one_owner_are_bounded_until_they_are_used(world):
    quota = UploadQuota(owner="spiffe://local/caller/eve", max_bodies=3, max_bytes=150_000)
    first, second, third = (world.build.body(letter * 70_000) for letter in (b"a", b"b", b"c"))
    for body in (first, second, second):
        await world.store.add_body(TENANT, body, quota=quota)  # a repeat counts once
    with pytest.raises(ResourceExhaustedError):
        await world.store.add_body(TENANT, third, quota=quota)
    await world.store.add_body(TENANT, third, quota=replace(quota, owner="spiffe://local/caller/ann"))

    small = [world.build.body(b"%d" % n) for n in range(2)]
    await world.store.add_body(TENANT, small[0], quota=quota)
    with pytest.raises(ResourceExhaustedError):
        await world.store.add_body(TENANT, small[1], quota=quota)
    await submit(world, world.build.execution(body=replace(first, content=None)))
    await world.store.add_body(TENANT, small[1], quota=quota)


async def test_every_change_leaves_its_entry_in_the_audit_log(world):
    placement = await run_at_once(world, world.build.execution())
    await world.leases.start([placement.attempt])
    await lose(world)
    await world.pass_time(LONG_BACKOFF)
    (second,) = (await claim(world, session("two"))).placements
    await cancel(world, placement.execution_id)
    await world.leases.finish([world.build.result(second, Outcome.CANCELLED)])
    await world.leases.finish([world.build.result(placement)])

    assert await world.actions(placement.execution_id) == [
        "execution.submitted",
        "execution.started",
        "attempt.lost",
        "attempt.leased",
        "execution.cancel_requested",
        "execution.cancelled",
        "receipt.late",
    ]

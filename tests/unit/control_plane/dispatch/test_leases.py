"""Started, renewed, run out."""

from dataclasses import replace
from datetime import timedelta

import pytest
from agentfactory.v1 import nodes_pb2

from control_plane.dispatch.leases import Grace, LeaseDesk, Sweeper, message_of
from control_plane.dispatch.ports import SilentObserver
from control_plane.executions.domain import AttemptRef, CancelRequest, EndedExecution, ExecutionState
from shared.ids import TenantId
from tests.fixtures import dispatch as build
from tests.fixtures.scripted_leases import lost
from tests.unit.control_plane.dispatch.conftest import Parts, newcomer

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=4)


def desk_of(parts: Parts) -> LeaseDesk:
    return LeaseDesk(
        dispatcher=parts.dispatcher,
        leases=parts.leases,
        options=build.options(),
        clock=parts.clock,
        background=parts.background,
    )


def sweeper_of(parts: Parts) -> Sweeper:
    return Sweeper(
        fleet=parts.fleet,
        dispatcher=parts.dispatcher,
        leases=parts.leases,
        options=build.options(),
        clock=parts.clock,
        observer=SilentObserver(),
    )


async def sweep_for(sweeper: Sweeper, parts: Parts, seconds: int) -> None:
    for _ in range(seconds):
        await sweeper.sweep_once()
        parts.clock.advance(SECOND)


# --- started


async def test_only_attempts_that_still_run_are_noted_as_started(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    short, long = parts.take(newcomer(), newcomer())
    desk = desk_of(parts)
    desk.started(
        session,
        nodes_pb2.AttemptStarted(attempts=[message_of(short.attempt), message_of(long.attempt)]),
    )
    parts.dispatcher.release([short])
    await desk.start_once()
    assert parts.leases.started == [long.attempt]


async def test_an_attempt_of_somebody_else_is_not_started(parts: Parts):
    session = parts.join()
    stranger = AttemptRef(execution_id=build.execution_id(), attempt_number=1, fencing_token=1)
    desk = desk_of(parts)
    desk.started(session, nodes_pb2.AttemptStarted(attempts=[message_of(stranger)]))
    await desk.start_once()
    assert parts.leases.started == []


async def test_a_start_that_cannot_be_noted_stops_nothing(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    parts.leases.away = True
    desk = desk_of(parts)
    desk.started(session, nodes_pb2.AttemptStarted(attempts=[message_of(placement.attempt)]))
    await desk.start_once()
    assert session.held_count == 1


# --- renewed


async def test_a_renewal_is_answered_with_what_is_still_held(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    held, ended = parts.take(newcomer(), newcomer())
    del parts.leases.live[ended.execution_id, ended.fencing_token]
    attempts = [message_of(held.attempt), message_of(ended.attempt)]
    desk_of(parts).renew(session, nodes_pb2.LeaseRenewal(number=7, attempts=attempts))
    await parts.settle()
    [outgoing] = session.outbox.take_unread()
    assert outgoing.message.lease_granted == nodes_pb2.LeaseGranted(number=7, attempts=attempts[:1])
    assert [attempt.execution_id for attempt in session.held()] == [held.execution_id]


async def test_of_renewals_that_wait_only_the_newest_is_asked(parts: Parts):
    session = parts.join()
    desk = desk_of(parts)
    for number in (1, 2, 3):
        desk.renew(session, nodes_pb2.LeaseRenewal(number=number))
    await parts.settle()
    answers = [outgoing.message.lease_granted.number for outgoing in session.outbox.take_unread()]
    assert answers == [3]


async def test_attempts_of_an_earlier_session_are_taken_over_with_their_slot(parts: Parts):
    session = parts.join(slots=2)
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    parts.dispatcher.release([placement])  # as a session on another replica would see it: not held here
    desk_of(parts).renew(session, nodes_pb2.LeaseRenewal(number=1, attempts=[message_of(placement.attempt)]))
    await parts.settle()
    assert session.free_slots(parts.clock.monotonic()) == 1


async def test_an_attempt_that_ends_while_its_renewal_is_under_way_takes_no_slot(parts: Parts):
    session = parts.join(slots=2)
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    desk_of(parts).renew(session, nodes_pb2.LeaseRenewal(number=1, attempts=[message_of(placement.attempt)]))
    parts.dispatcher.release([placement])  # its receipt comes before the answer of the database
    await parts.settle()
    assert session.held_count == 0


async def test_a_renewal_while_the_database_is_away_is_not_answered(parts: Parts):
    session = parts.join()
    parts.leases.away = True
    desk_of(parts).renew(session, nodes_pb2.LeaseRenewal(number=1))
    await parts.settle()
    assert session.outbox.take_unread() == []
    assert not session.outbox.is_closed


# --- run out (rule 9)


@pytest.mark.parametrize(("seconds", "over"), [(3, False), (4, True), (5, True)])
def test_rule_9_nothing_expires_until_one_full_lease_after_the_start(seconds: int, *, over: bool):
    grace = Grace(lease=LEASE, max_gap=2 * SECOND)
    answers = [grace.is_over(float(second)) for second in range(seconds + 1)]
    assert answers[-1] is over
    assert not any(answers[:4])


def test_rule_9_an_outage_starts_the_grace_anew():
    grace = Grace(lease=LEASE, max_gap=2 * SECOND)
    assert [grace.is_over(float(second)) for second in range(5)][-1]
    grace.interrupted()
    assert [grace.is_over(float(second)) for second in range(5, 10)] == [False] * 4 + [True]


@pytest.mark.parametrize(("gap", "over"), [(2.0, True), (2.1, False)])
def test_rule_9_a_replica_that_stood_still_counts_as_an_outage(gap: float, *, over: bool):
    grace = Grace(lease=LEASE, max_gap=2 * SECOND)
    for second in range(5):
        grace.is_over(float(second))
    assert grace.is_over(4.0 + gap) is over


async def test_rule_9_leases_expire_only_after_the_database_has_answered_for_a_full_lease(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    parts.leases.expired = [lost(placement)]
    sweeper = sweeper_of(parts)
    await sweep_for(sweeper, parts, 4)
    assert (parts.leases.sweeps, session.held_count) == (0, 1)
    await sweep_for(sweeper, parts, 1)
    assert (parts.leases.sweeps, session.held_count) == (1, 0)

    parts.leases.away = True
    await sweep_for(sweeper, parts, 1)
    parts.leases.away = False
    await sweep_for(sweeper, parts, 4)
    assert parts.leases.sweeps == 1
    await sweep_for(sweeper, parts, 1)
    assert parts.leases.sweeps == 2


async def test_a_lost_attempt_wakes_the_queue(parts: Parts):
    parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    parts.leases.expired = [lost(placement)]
    await sweep_for(sweeper_of(parts), parts, 5)
    assert not parts.dispatcher.queue_is_empty


async def test_slots_of_attempts_that_ended_without_word_are_freed_within_two_leases(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    gone, held = parts.take(newcomer(), newcomer())
    del parts.leases.live[gone.execution_id, gone.fencing_token]
    await sweep_for(sweeper_of(parts), parts, 9)
    assert [attempt.execution_id for attempt in session.held()] == [held.execution_id]


async def test_rule_7_the_poll_passes_cancels_on(parts: Parts):
    session = parts.join()
    await parts.find_queue_empty()
    [placement] = parts.take(newcomer())
    parts.leases.cancels = [
        CancelRequest(attempt=placement.attempt, node_id=session.node_id, reason="TEMPLATE_REVOKED")
    ]
    await sweeper_of(parts).pass_cancels()
    [outgoing] = session.outbox.take_unread()
    assert outgoing.message.cancel.reason == "TEMPLATE_REVOKED"


# --- counted


class Ends(SilentObserver):
    def __init__(self) -> None:
        self.counted: list[tuple[str, str, int]] = []

    def swept(self, outcome: str, tenant_id: TenantId, count: int) -> None:
        self.counted.append((str(outcome), tenant_id, count))


async def test_what_a_sweep_ends_is_counted_by_its_outcome(parts: Parts):
    parts.join()
    await parts.find_queue_empty()
    [one, other] = parts.take(newcomer(), newcomer())
    ends = Ends()
    sweeper = Sweeper(
        fleet=parts.fleet,
        dispatcher=parts.dispatcher,
        leases=parts.leases,
        options=build.options(),
        clock=parts.clock,
        observer=ends,
    )
    await sweep_for(sweeper, parts, 4)
    parts.leases.expired = [replace(lost(one), state=ExecutionState.LOST), lost(other)]
    red, blue = TenantId("red"), TenantId("blue")
    parts.leases.past_deadline = [
        EndedExecution(tenant_id=tenant, execution_id=build.execution_id()) for tenant in (red, blue, red)
    ]
    await sweeper.sweep_once()
    assert ends.counted == [
        ("expired", red, 2),
        ("expired", blue, 1),
        ("lost", TenantId("default"), 1),
    ]

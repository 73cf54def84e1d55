"""Sessions of a real node: reconnecting, resending, draining, and what ends an identity."""

import asyncio
import errno
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from agentfactory.v1 import nodes_pb2

from control_plane.keys.ca import new_private_key
from data_plane.enrollment import make_csr
from data_plane.receipts.issuer import _HEAD_DOMAIN
from data_plane.session.service import FIRST_BACKOFF
from shared.clock import SystemClock
from shared.errors import (
    NodeEvictedError,
    NodeQuarantinedError,
    RejectionReason,
    SpoolLockedError,
)
from shared.keyset import KeyPurpose, KeysetEntry
from shared.limits import Limits, RequestedLimits
from shared.outcomes import LimitName, Outcome
from tests.fakes.control_plane import publish
from tests.fixtures.keys import rsa_key
from tests.integration.node.conftest import ACTOR

LONG = Limits(wall_ms=60_000)


async def test_hello_says_who_the_node_is(control_plane, start_node):
    running = await start_node(slots=3, zone="a")
    session = await control_plane.session()

    hello = session.hello
    assert hello.node_id == running.node.identity.node_id
    assert (hello.slots, hello.zone, list(hello.accepts)) == (
        3,
        "a",
        [
            "agentfactory.order.v3",
            "agentfactory.order.v2",
            "agentfactory.order.v1",
            "agentfactory.freshness.v1",
        ],
    )
    assert hello.engine.config_digest.startswith("sha256:")


async def test_heartbeats_count_on_and_carry_the_signed_head(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job)
    await control_plane.receipt_of(job)
    beat = await control_plane.wait_for(
        lambda: next((one for one in session.heartbeats if one.spool_head.sequence == 1), None)
    )

    head = beat.spool_head
    signed = b"".join(
        (
            _HEAD_DOMAIN,
            session.hello.node_id.encode(),
            session.hello.boot_id.encode(),
            head.sequence.to_bytes(8, "big"),
            head.hash,
        )
    )
    control_plane.receipt_keys[session.hello.node_id].verify(head.signature, signed)
    numbers = [one.number for one in session.heartbeats]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_control_plane_that_dies_gets_the_receipts_when_it_is_back(control_plane, start_node, actor):
    control_plane.acknowledges = False
    await start_node()
    session = await control_plane.session()
    jobs = [control_plane.job(session, actor, b"output 100000"), control_plane.job(session, actor, b"exit 1")]
    await control_plane.send(session, *jobs)
    for job in jobs:
        await control_plane.receipt_of(job)

    await control_plane.stop()
    first = dict(control_plane.receipts)
    control_plane.receipts.clear()
    control_plane.acknowledges = True
    await control_plane.start()
    await control_plane.session(2)

    await control_plane.wait_for(lambda: len(control_plane.receipts) == 2)
    # In any order: a receipt waits for the upload of its output, the others do not.
    again = {key: one.envelope for key, one in control_plane.receipts.items()}
    assert again == {key: one.envelope for key, one in first.items()}


async def test_run_goes_on_while_the_control_plane_is_away(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 1500")
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: session.started)

    await control_plane.stop()
    await control_plane.start()

    assert (await control_plane.receipt_of(job)).predicate.outcome is Outcome.SUCCEEDED


async def test_lease_that_runs_out_while_the_control_plane_is_away_stops_the_guest(
    control_plane, start_node, actor
):
    control_plane.lease = timedelta(seconds=1)
    running = await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 60000", limits=LONG)
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: session.started)

    await control_plane.stop()
    async with asyncio.timeout(10):
        await running.node.runner.finished()
    await control_plane.start()
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.rejection.reason is RejectionReason.STALE


async def test_receipts_of_a_node_that_was_killed_are_sent_after_its_restart(
    control_plane, start_node, actor
):
    control_plane.acknowledges = False
    first = await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job)
    receipt = await control_plane.receipt_of(job)
    await first.stop()
    control_plane.receipts.clear()
    control_plane.acknowledges = True

    await start_node()
    await control_plane.session(2)
    again = await control_plane.receipt_of(job)

    assert again.envelope == receipt.envelope


async def test_stopping_node_takes_no_more_and_finishes_what_runs(control_plane, start_node, actor):
    running = await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 1200")
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: session.started)

    running.node.stop()
    await control_plane.wait_for(lambda: session.heartbeats[-1].draining)
    late = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, late)
    refused = await control_plane.receipt_of(late)
    await running.task

    assert refused.predicate.rejection.reason is RejectionReason.DRAINING
    assert session.heartbeats[-1].free_slots == 0
    assert (await control_plane.receipt_of(job)).predicate.outcome is Outcome.SUCCEEDED
    await asyncio.wait_for(session.closed.wait(), 10)


async def test_guest_that_outlasts_the_drain_is_stopped_for_another_node(control_plane, start_node, actor):
    running = await start_node(drain_timeout_s=0.3)
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 60000", limits=LONG)
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: session.started)

    await running.stop()
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.rejection.reason is RejectionReason.DRAINING


async def test_drained_node_keeps_its_session(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()

    control_plane.say(session, nodes_pb2.SessionResponse(drain=nodes_pb2.Drain()))
    await control_plane.wait_for(lambda: session.heartbeats[-1].draining)
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job)

    assert (await control_plane.receipt_of(job)).predicate.rejection.reason is RejectionReason.DRAINING


async def test_evicted_node_ends(control_plane, start_node):
    running = await start_node()
    session = await control_plane.session()

    control_plane.say(session, nodes_pb2.SessionResponse(drain=nodes_pb2.Drain(evicted=True)))

    with pytest.raises(NodeEvictedError):
        await asyncio.wait_for(running.task, 10)


async def test_node_whose_spool_was_lost_enrolls_anew(control_plane, start_node):
    running = await start_node()
    node_id = (await control_plane.session()).hello.node_id
    control_plane.accepted[node_id] = nodes_pb2.SpoolHead(sequence=3, hash=b"x" * 32)
    control_plane.say(control_plane.sessions[0], None)

    with pytest.raises(NodeEvictedError, match="check 1"):
        await asyncio.wait_for(running.task, 10)


async def test_node_with_another_receipt_of_one_number_stops(control_plane, start_node, actor):
    running = await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job)
    await control_plane.receipt_of(job)
    control_plane.accepted[session.hello.node_id] = nodes_pb2.SpoolHead(sequence=1, hash=b"x" * 32)
    control_plane.say(session, None)

    with pytest.raises(NodeQuarantinedError):
        await asyncio.wait_for(running.task, 10)


async def test_keyset_rollback_ends_the_session_before_any_order(control_plane, start_node, actor):
    running = await start_node()
    session = await control_plane.session()
    control_plane.keyset_version = 2
    await control_plane.issue_keyset()
    newest = control_plane.keyset_envelope
    control_plane.say(session, nodes_pb2.SessionResponse(keyset_update=nodes_pb2.KeysetUpdate(keyset=newest)))
    await control_plane.wait_for(lambda: session.heartbeats[-1].keyset_version == 2)

    control_plane.keyset_version = 1
    await control_plane.issue_keyset()
    control_plane.say(session, None)
    await control_plane.wait_for(lambda: len(control_plane.sessions) >= 3)
    assert not any(one.heartbeats for one in control_plane.sessions[1:])

    control_plane.keyset_envelope = newest
    await control_plane.wait_for(lambda: control_plane.sessions[-1].heartbeats)
    assert running.node.sessions.is_connected


async def test_keyset_by_another_root_is_refused(control_plane, start_node):
    await control_plane.issue_keyset(root=rsa_key("stranger"))
    running = await start_node()

    await control_plane.wait_for(lambda: len(control_plane.sessions) >= 2)

    assert not any(one.heartbeats for one in control_plane.sessions)
    assert running.node.runner._keyset.version == 0


async def test_order_key_that_was_revoked_signs_nothing_more(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    now = control_plane.clock.now()
    entry = KeysetEntry(
        purpose=KeyPurpose.ORDER,
        key=control_plane.order_key.public,
        not_before=now - timedelta(days=1),
        not_after=now + timedelta(days=1),
    )
    control_plane.keyset_version = 2
    await control_plane.issue_keyset(replace(entry, revoked_at=now))
    control_plane.say(
        session,
        nodes_pb2.SessionResponse(keyset_update=nodes_pb2.KeysetUpdate(keyset=control_plane.keyset_envelope)),
    )
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job)

    assert (await control_plane.receipt_of(job)).predicate.rejection.check == 1


async def test_refused_session_is_tried_again(control_plane, start_node):
    control_plane.refusal = (grpc.StatusCode.UNAVAILABLE, "not yet")
    running = await start_node()
    async with asyncio.timeout(10):
        while running.node.sessions._backoff._ceiling < timedelta(milliseconds=400):
            await asyncio.sleep(0.01)
    control_plane.refusal = None

    assert await control_plane.session()


async def test_control_plane_that_says_welcome_and_goes_is_asked_ever_less_often(control_plane, start_node):
    running = await start_node()
    for count in range(1, 5):
        control_plane.say(await control_plane.session(count), None)

    async with asyncio.timeout(20):
        while running.node.sessions._backoff._ceiling < FIRST_BACKOFF * 16:
            await asyncio.sleep(0.01)


async def test_clock_that_is_set_while_a_session_is_open_is_shown_to_the_control_plane(
    control_plane, start_node, monkeypatch
):
    ahead = [timedelta(0)]

    class SetClock(SystemClock):
        def now(self):
            return super().now() + ahead[0]

    monkeypatch.setattr("data_plane.main.SystemClock", SetClock)
    await start_node()
    await control_plane.session()
    ahead[0] = timedelta(minutes=5)

    said = (await control_plane.session(2)).hello.now.ToDatetime(tzinfo=UTC)
    assert said - datetime.now(UTC) > timedelta(minutes=4)


async def test_second_control_plane_takes_over(control_plane, start_node, actor):
    await start_node(control_planes=("localhost:1", f"localhost:{control_plane.port}"))

    assert await control_plane.session()


async def test_second_process_on_the_same_folder_is_kept_out(control_plane, start_node):
    await start_node()

    with pytest.raises(SpoolLockedError):
        await start_node()


async def test_certificate_is_renewed_without_a_restart(control_plane, start_node, actor, tmp_path):
    # It begins 30 s before it was made: two thirds of its life are over.
    control_plane.leaf_ttl = timedelta(seconds=10)
    running = await start_node()
    before = running.node.identity.certificate
    first = await control_plane.session()
    job = control_plane.job(first, actor, b"sleep 500")
    await control_plane.send(first, job)

    session = await control_plane.session(2)

    assert session.hello.boot_id == first.hello.boot_id
    renewed = running.settings.paths.certificate.read_bytes()
    assert renewed != before.chain_pem
    assert (await control_plane.receipt_of(job)).predicate.outcome is Outcome.SUCCEEDED


def absurd(field, seconds):
    def spoil(welcome):
        getattr(welcome, field).seconds = seconds

    return spoil


@pytest.mark.parametrize(
    "spoil", [absurd("lease", 10**15), absurd("heartbeat_every", 10**15), absurd("lease", -(2**63))]
)
async def test_welcome_with_a_duration_that_is_none_costs_a_session_and_not_the_node(
    control_plane, start_node, actor, spoil
):
    control_plane.spoil_welcome = spoil
    running = await start_node()
    await control_plane.wait_for(lambda: control_plane.sessions)
    control_plane.spoil_welcome = lambda _welcome: None

    await works(control_plane, actor)
    assert not running.task.done()


async def test_full_disk_when_a_newer_keyset_comes_costs_a_session_and_not_the_node(
    control_plane, start_node, actor, monkeypatch
):
    def full(*_args):
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("data_plane.orders.keyset.replace_file", full)
        running = await start_node()
        await control_plane.wait_for(lambda: len(control_plane.sessions) >= 2)
        assert running.node.sessions.is_connected is False

    await works(control_plane, actor)
    assert not running.task.done()


async def test_bug_met_by_one_message_costs_a_session_and_not_the_node(
    control_plane, start_node, actor, monkeypatch
):
    def bug(_self, _granted):
        raise ZeroDivisionError("a bug")

    running = await start_node()
    session = await control_plane.session()
    with monkeypatch.context() as broken:
        broken.setattr("data_plane.session.stream.Session._take_drain", bug)
        control_plane.say(session, nodes_pb2.SessionResponse(drain=nodes_pb2.Drain()))
        await control_plane.session(2)

    await works(control_plane, actor)
    assert not running.task.done()


@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)])
async def test_order_of_the_first_or_last_year_is_refused_and_the_node_lives(
    control_plane, start_node, actor, at
):
    running = await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0", not_before=at, expires_at=at + timedelta(seconds=30))
    await control_plane.send(session, job)

    assert (await control_plane.receipt_of(job)).predicate.rejection.check == 8
    assert not running.task.done()


async def test_template_that_asks_for_less_than_was_ordered_is_held_to_it(control_plane, start_node):
    modest = await publish(ACTOR.read_bytes(), limits=RequestedLimits(output_bytes=1000))
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, modest, b"output 100000")
    await control_plane.send(session, job)

    said = (await control_plane.receipt_of(job)).predicate
    assert (said.outcome, said.limit) == (Outcome.KILLED, LimitName.OUTPUT_BYTES)


@pytest.mark.parametrize(
    "forgery", [{"forged_name": "somebody"}, {"forged_csr": make_csr(new_private_key())}], ids=["name", "key"]
)
async def test_renewed_certificate_of_another_node_or_key_is_never_written(
    control_plane, start_node, forgery
):
    control_plane.leaf_ttl = timedelta(seconds=2)
    for name, value in forgery.items():
        setattr(control_plane, name, value)
    running = await start_node()
    before = running.settings.paths.certificate.read_bytes()
    await control_plane.wait_for(lambda: control_plane.renewals)
    await running.stop()

    assert running.settings.paths.certificate.read_bytes() == before


async def works(control_plane, actor) -> None:
    """The node has a session again and runs an order over it."""

    def newest():
        return control_plane.sessions[-1] if control_plane.sessions[-1].heartbeats else None

    session = await control_plane.wait_for(newest)
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job)
    assert (await control_plane.receipt_of(job)).predicate.outcome is Outcome.SUCCEEDED

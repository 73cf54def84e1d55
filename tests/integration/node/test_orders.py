"""Orders on a real node: what runs, what is stopped, what is refused, and the receipt of each."""

import asyncio
import errno
import os
from dataclasses import replace
from datetime import timedelta

import pytest
from agentfactory.v1 import nodes_pb2

from data_plane.artifacts import cache as cache_module
from shared.digests import sha256_digest
from shared.errors import RejectionReason
from shared.limits import Limits, RequestedLimits
from shared.manifest import Profile
from shared.order_codec import PROFILE_NUMBERS
from shared.orders import EngineConstraint
from shared.outcomes import LimitName, Outcome
from shared.receipts import OLDER_PREDICATE_TYPE, PREDICATE_TYPE
from tests.fakes.control_plane import publish
from tests.fixtures.keys import rsa_key
from tests.guests.adversaries import ATTACKS

V1 = "agentfactory.order.v1"


async def run(control_plane, session, template, text: bytes, **changes):
    """Send one order and wait for its receipt."""
    job = control_plane.job(session, template, text, **changes)
    await control_plane.send(session, job)
    return await control_plane.receipt_of(job)


def limits(**changes) -> Limits:
    return replace(Limits(), **changes)


async def test_many_orders_under_one_signature(control_plane, start_node, actor):
    await start_node(slots=8)
    session = await control_plane.session()
    jobs = [control_plane.job(session, actor, f"output {number}".encode()) for number in range(8)]

    await control_plane.send(session, *jobs)

    for number, job in enumerate(jobs):
        receipt = await control_plane.receipt_of(job)
        assert receipt.predicate.outcome is Outcome.SUCCEEDED
        assert len(control_plane.output_of(receipt)) == number


@pytest.mark.parametrize(
    ("text", "granted", "outcome", "detail"),
    [
        (b"exit 7", {}, Outcome.FAILED, 7),
        (b"trap", {}, Outcome.TRAPPED, None),
        (b"loop", {"wall_ms": 200}, Outcome.KILLED, LimitName.WALL_MS),
        (b"loop", {"cpu_ms": 200}, Outcome.KILLED, LimitName.CPU_MS),
        (b"flood", {"output_bytes": 10_000}, Outcome.KILLED, LimitName.OUTPUT_BYTES),
        (b"memory 4096", {}, Outcome.KILLED, LimitName.MEMORY_BYTES),
    ],
)
async def test_guest_fault_is_a_named_outcome(
    control_plane, start_node, actor, text, granted, outcome, detail
):
    await start_node()
    session = await control_plane.session()

    receipt = await run(control_plane, session, actor, text, limits=limits(**granted))

    said = receipt.predicate
    assert said.outcome is outcome, said
    if outcome is Outcome.TRAPPED:
        assert said.trap
    else:
        assert detail in {said.exit_code, said.limit}


ATTACK_OF = {attack.limit: attack for attack in reversed(ATTACKS) if attack.outcome is Outcome.KILLED}
"""The first guest of each limit."""
USED = {LimitName.MEMORY_BYTES: "peak_memory_bytes", LimitName.OPEN_FILES: "peak_open_files"}
TIMES = {LimitName.WALL_MS: "wall", LimitName.CPU_MS: "cpu", LimitName.HOST_CALL_MS: "host_call_time"}


@pytest.mark.parametrize("attack", ATTACK_OF.values(), ids=lambda attack: attack.limit)
async def test_limit_that_an_order_names_is_the_one_that_fires_and_is_named_with_what_was_used(
    control_plane, start_node, attack
):
    await start_node()
    session = await control_plane.session()
    asked = RequestedLimits(**attack.granted)
    template = await publish(attack.module, limits=asked, profile=attack.profile)

    ordered = {"limits": limits(**attack.granted), "profile": attack.profile}
    receipt = await run(control_plane, session, template, b"", **ordered)

    said = receipt.predicate
    assert (said.outcome, said.limit) == (Outcome.KILLED, attack.limit)
    if attack.limit in TIMES:
        least = timedelta(milliseconds=attack.granted[attack.limit])
        assert getattr(said.resources, TIMES[attack.limit]) >= least * 0.9
    elif attack.limit is not LimitName.STACK_BYTES:
        used = getattr(said.resources, USED.get(attack.limit, attack.limit))
        assert used <= attack.granted.get(attack.limit, getattr(Limits(), attack.limit))


@pytest.mark.parametrize(
    ("limit", "ceiling"), [("scratch_inodes", 5), ("log_lines", 7), ("random_bytes", 11), ("open_files", 6)]
)
async def test_ceiling_of_the_node_holds_for_every_kind_of_limit(control_plane, start_node, limit, ceiling):
    attack = ATTACK_OF[LimitName(limit)]
    await start_node(**{f"max_{limit}": ceiling})
    session = await control_plane.session()

    template = await publish(attack.module)
    receipt = await run(control_plane, session, template, b"", limits=limits(**attack.granted))

    said = receipt.predicate
    assert (said.outcome, said.limit) == (Outcome.KILLED, attack.limit)
    assert getattr(said.resources, USED.get(attack.limit, limit)) <= ceiling


async def test_run_that_is_granted_no_scratch_has_no_folder(control_plane, start_node):
    attack = ATTACK_OF[LimitName.SCRATCH_INODES]
    node = await start_node()
    session = await control_plane.session()
    template = await publish(attack.module)

    receipt = await run(control_plane, session, template, b"", limits=limits(scratch_bytes=1 << 20))

    assert receipt.predicate.outcome is Outcome.TRAPPED  # there is no directory to write to
    assert receipt.predicate.resources.scratch_inodes == 0
    assert list(node.settings.paths.scratch.iterdir()) == []


async def test_scratch_of_a_run_is_gone_when_its_receipt_is_there(control_plane, start_node):
    attack = ATTACK_OF[LimitName.SCRATCH_INODES]
    node = await start_node()
    session = await control_plane.session()
    template = await publish(attack.module)

    granted = limits(**attack.granted)
    receipt = await run(control_plane, session, template, b"", limits=granted)

    assert receipt.predicate.resources.scratch_inodes == attack.granted["scratch_inodes"]
    await control_plane.wait_for(lambda: list(node.settings.paths.scratch.iterdir()) == [])


async def test_rule_11_order_of_version_1_runs_and_is_answered_in_version_1(control_plane, start_node, actor):
    control_plane.spoil_welcome = lambda welcome: setattr(welcome, "order_type", V1)
    await start_node()
    session = await control_plane.session()
    assert set(session.hello.accepts) == {
        V1,
        "agentfactory.order.v2",
        "agentfactory.order.v3",
        "agentfactory.freshness.v1",
    }

    receipt = await run(control_plane, session, actor, b"exit 0", format=V1)
    again = await run(control_plane, session, actor, b"exit 0")

    assert (receipt.predicate.outcome, receipt.predicate.type) == (Outcome.SUCCEEDED, OLDER_PREDICATE_TYPE)
    assert receipt.predicate.resources.peak_memory_bytes
    assert not receipt.predicate.resources.log_lines
    assert again.predicate.type == PREDICATE_TYPE
    assert again.predicate.resources.log_lines == 1


async def test_rule_11_order_of_version_1_is_held_to_the_defaults_of_later_limits(control_plane, start_node):
    attack = ATTACK_OF[LimitName.TABLE_ELEMENTS]
    await start_node()
    session = await control_plane.session()
    template = await publish(attack.module)

    receipt = await run(control_plane, session, template, b"", format=V1)

    said = receipt.predicate
    assert (said.outcome, said.limit, said.type) == (
        Outcome.KILLED,
        LimitName.TABLE_ELEMENTS,
        OLDER_PREDICATE_TYPE,
    )


async def test_ceiling_of_the_node_holds_whatever_is_ordered(control_plane, start_node, actor):
    await start_node(max_wall_ms=150)
    session = await control_plane.session()

    receipt = await run(control_plane, session, actor, b"loop", limits=limits(wall_ms=60_000))

    assert receipt.predicate.limit is LimitName.WALL_MS


async def test_log_travels_with_the_receipt(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()

    receipt = await run(control_plane, session, actor, b"exit 0")

    delivery = control_plane.deliveries[receipt.hash]
    assert delivery.log.inline == b"asked for exit 0\n"


async def test_large_input_is_fetched_and_large_output_uploaded_before_its_receipt(
    control_plane, start_node, actor
):
    await start_node()
    session = await control_plane.session()
    text = b"output 300000" + b" " * 200_000

    receipt = await run(control_plane, session, actor, text, limits=limits(output_bytes=1_000_000))

    output = control_plane.output_of(receipt)
    assert len(output) == 300_000
    assert control_plane.outputs


async def test_input_that_was_not_committed_to_never_reaches_a_guest(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0" + b" " * 100_000)
    altered = replace(job, input=b"exit 1" + b" " * 100_000)

    await control_plane.send(session, altered)
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.rejection.reason is RejectionReason.DIGEST


async def test_module_is_compiled_once_and_kept_over_a_restart(control_plane, start_node, actor):
    first = await start_node()
    session = await control_plane.session()
    await run(control_plane, session, actor, b"exit 0")
    await run(control_plane, session, actor, b"exit 0")
    await first.stop()

    await start_node()
    session = await control_plane.session(2)

    assert list(session.hello.cached_digests) == [actor.module_digest]
    assert (await run(control_plane, session, actor, b"exit 0")).predicate.outcome is Outcome.SUCCEEDED
    assert control_plane.fetches == 1


async def test_new_module_is_told_in_a_heartbeat(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    await run(control_plane, session, actor, b"exit 0")

    await control_plane.wait_for(
        lambda: any(actor.module_digest in beat.cached_digests for beat in session.heartbeats)
    )


async def test_corrupted_artifact_is_never_loaded(control_plane, start_node, actor):
    first = await start_node()
    session = await control_plane.session()
    await run(control_plane, session, actor, b"exit 0")
    await first.stop()
    (path,) = first.settings.paths.artifacts.glob("*.artifact")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    await start_node()
    session = await control_plane.session(2)
    receipt = await run(control_plane, session, actor, b"exit 0")

    assert receipt.predicate.outcome is Outcome.SUCCEEDED
    assert control_plane.fetches == 2


async def test_full_disk_of_the_cache_rejects_the_order_and_the_node_stays_up(
    control_plane, start_node, actor, monkeypatch
):
    await start_node()
    session = await control_plane.session()
    real = cache_module.tempfile.mkstemp

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module.tempfile, "mkstemp", full)
    refused = await run(control_plane, session, actor, b"exit 0")
    monkeypatch.setattr(cache_module.tempfile, "mkstemp", real)

    assert refused.predicate.rejection.reason is RejectionReason.BUSY
    assert "DISK_FULL" in refused.predicate.rejection.message
    assert (await run(control_plane, session, actor, b"exit 0")).predicate.outcome is Outcome.SUCCEEDED


async def test_template_of_an_unknown_publisher(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    evil = await publish(actor.module, publisher=rsa_key("stranger"))

    receipt = await run(control_plane, session, evil, b"exit 0")

    assert receipt.predicate.rejection.reason is RejectionReason.TEMPLATE


async def test_module_that_is_no_program(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    broken = await publish(actor.module[:1000])

    receipt = await run(control_plane, session, broken, b"exit 0")

    assert receipt.predicate.rejection.reason is RejectionReason.ARTIFACT


async def test_order_signed_by_an_unknown_key_is_refused_without_being_read(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0")

    await control_plane.send(session, job, key=rsa_key("stranger"))
    receipt = await control_plane.receipt_of(job)

    assert (receipt.predicate.rejection.check, receipt.predicate.attempt) == (1, None)


async def test_replayed_order(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job)
    await control_plane.receipt_of(job)

    await control_plane.send(session, job)
    second = await control_plane.wait_for(lambda: control_plane.receipts.get((job.order.node_id, 2)))

    assert second.predicate.rejection.reason is RejectionReason.REPLAY


async def test_order_of_the_boot_before(control_plane, start_node, actor):
    first = await start_node()
    old = await control_plane.session()
    await first.stop()
    await start_node()
    session = await control_plane.session(2)

    receipt = await run(control_plane, session, actor, b"exit 0", boot_id=old.hello.boot_id)

    assert receipt.predicate.rejection.check == 7


async def test_order_beyond_slots_and_queue_is_refused_as_busy(control_plane, start_node, actor):
    await start_node(slots=1, queue=0)
    session = await control_plane.session()
    jobs = [control_plane.job(session, actor, b"sleep 300") for _ in range(2)]

    await control_plane.send(session, *jobs)

    refused = await control_plane.receipt_of(jobs[1])
    assert refused.predicate.rejection.reason is RejectionReason.BUSY
    assert (await control_plane.receipt_of(jobs[0])).predicate.outcome is Outcome.SUCCEEDED


async def test_cancel_stops_the_guest(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 60000", limits=limits(wall_ms=60_000))
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: session.started)

    cancel = nodes_pb2.Cancel(attempt=job.attempt, reason="test")
    control_plane.say(session, nodes_pb2.SessionResponse(cancel=cancel))
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.outcome is Outcome.CANCELLED


async def test_run_that_lasts_is_told_and_its_lease_renewed(control_plane, start_node, actor):
    control_plane.lease = timedelta(milliseconds=900)
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 2000")

    await control_plane.send(session, job)
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.outcome is Outcome.SUCCEEDED
    assert session.started == [job.attempt]
    assert any(job.attempt in renewal.attempts for renewal in session.renewals)


async def test_attempt_that_is_not_renewed_is_stopped(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    control_plane.grants = False
    job = control_plane.job(session, actor, b"sleep 60000", limits=limits(wall_ms=60_000))
    await control_plane.send(session, job)
    renewal = await control_plane.wait_for(
        lambda: next((one for one in session.renewals if job.attempt in one.attempts), None)
    )
    await control_plane.wait_for(lambda: job.attempt in session.started)

    control_plane.say(
        session,
        nodes_pb2.SessionResponse(lease_granted=nodes_pb2.LeaseGranted(number=renewal.number)),
    )
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.rejection.reason is RejectionReason.STALE
    assert receipt.predicate.started_at is not None


async def test_parameters_reach_the_guest_only_when_they_are_the_ordered_ones(
    control_plane, start_node, actor
):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, replace(job, parameters=b'{"evil":true}'))

    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.rejection.check == 15


async def test_order_for_an_engine_that_is_not_here(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    wanted = EngineConstraint(name="wasmer-cranelift", config_digest=sha256_digest(b"other"))

    receipt = await run(control_plane, session, actor, b"exit 0", engine=wanted)

    assert receipt.predicate.rejection.reason is RejectionReason.ENGINE


@pytest.mark.parametrize("profile", [Profile.DETERMINISTIC, Profile.PORTABLE])
async def test_rule_20_the_same_order_on_two_nodes_gives_the_same_bytes_and_the_same_fuel(
    control_plane, start_node, actor, profile
):
    template = await publish(actor.module, profile=profile)
    receipts = []
    for number, name in enumerate(("one", "two"), 1):
        node = await start_node(name)
        session = await control_plane.session(number)
        offered = {engine.profile: engine.config_digest for engine in session.hello.profile_engines}
        digest = offered[PROFILE_NUMBERS[profile]]
        receipt = await run(
            control_plane,
            session,
            template,
            b"output 3",
            profile=profile,
            seed=bytes(32),
            engine=EngineConstraint(config_digest=digest),
        )
        assert receipt.predicate.engine.config_digest == digest
        assert digest != session.hello.engine.config_digest
        receipts.append(receipt)
        await node.stop()

    assert [control_plane.output_of(receipt) for receipt in receipts] == [b"abc", b"abc"]
    assert receipts[0].predicate.resources.fuel == receipts[1].predicate.resources.fuel > 0


async def test_an_order_under_a_repeatable_profile_is_limited_by_fuel(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    template = await publish(actor.module, profile=Profile.DETERMINISTIC)

    ordered = {"profile": Profile.DETERMINISTIC, "limits": limits(fuel=1_000)}
    said = (await run(control_plane, session, template, b"output 3", **ordered)).predicate

    assert (said.outcome, said.limit, said.resources.fuel) == (Outcome.KILLED, LimitName.FUEL, 1_000)


async def test_a_fuel_limit_of_the_default_profile_is_not_counted(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()

    said = (await run(control_plane, session, actor, b"output 3", limits=limits(fuel=1))).predicate

    assert (said.outcome, said.resources.fuel) == (Outcome.SUCCEEDED, 0)


async def test_a_node_offers_the_profiles_that_its_operator_names(control_plane, start_node, actor):
    await start_node(profiles=(Profile.DEFAULT,))
    session = await control_plane.session()
    template = await publish(actor.module, profile=Profile.DETERMINISTIC)

    receipt = await run(control_plane, session, template, b"output 3", profile=Profile.DETERMINISTIC)

    offered = [engine.profile for engine in session.hello.profile_engines]
    assert offered == [PROFILE_NUMBERS[Profile.DEFAULT]]
    assert receipt.predicate.rejection.reason is RejectionReason.ENGINE


async def test_rule_14_module_that_crashes_its_workers_is_quarantined_for_a_while(
    control_plane, start_node, actor
):
    running = await start_node(quarantine_crashes=2, quarantine_for_s=3)
    session = await control_plane.session()
    for crash in (1, 2):
        job = control_plane.job(session, actor, b"sleep 60000", limits=limits(wall_ms=60_000))
        await control_plane.send(session, job)
        await control_plane.wait_for(lambda crash=crash: len(session.started) == crash)
        # Where no spare is ready its worker is started, and put into its group, first.
        async with asyncio.timeout(10):
            while not running.node.sandbox._busy:
                await asyncio.sleep(0.01)
        (worker,) = running.node.sandbox._busy
        os.kill(worker.process.pid, 9)
        assert (await control_plane.receipt_of(job)).predicate.outcome is Outcome.TRAPPED

    refused = await run(control_plane, session, actor, b"exit 0")
    other = await publish(ATTACK_OF[LimitName.WALL_MS].module)
    beside = await run(control_plane, session, other, b"", limits=limits(wall_ms=100))

    rejection = refused.predicate.rejection
    assert (refused.predicate.outcome, rejection.reason) == (Outcome.REJECTED, RejectionReason.QUARANTINE)
    assert not rejection.reason.concerns_node_alone  # or the next node would be next
    assert (rejection.check, "quarantined" in rejection.message) == (17, True)
    assert beside.predicate.limit is LimitName.WALL_MS
    assert running.node.metrics.quarantines._value.get() == 1

    async def runs_again() -> bool:
        receipt = await run(control_plane, session, actor, b"exit 0")
        return receipt.predicate.outcome is Outcome.SUCCEEDED

    async with asyncio.timeout(20):
        while not await runs_again():
            await asyncio.sleep(0.2)


async def test_killed_worker_ends_its_own_attempt_only(control_plane, start_node, actor):
    running = await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 60000", limits=limits(wall_ms=60_000))
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: session.started)

    (worker,) = running.node.sandbox._busy
    os.kill(worker.process.pid, 9)
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.outcome is Outcome.TRAPPED
    assert receipt.predicate.trap.startswith("worker_crashed")
    assert (await run(control_plane, session, actor, b"exit 0")).predicate.outcome is Outcome.SUCCEEDED

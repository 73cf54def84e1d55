"""An order's way through the runner, with fakes for disk, processes and network."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from data_plane import runner as runner_module
from data_plane.artifacts.memory import memory_file
from data_plane.artifacts.ports import PreparedModule
from data_plane.attempt import StopReason
from data_plane.carrier import OrderCarrier
from data_plane.metrics import NodeMetrics
from data_plane.orders.admission import Admissions
from data_plane.orders.domain import attempt_of
from data_plane.orders.freshness import Freshness
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.ledger import OrderLedger
from data_plane.orders.policy import load_node_policy
from data_plane.orders.quarantine import Quarantine
from data_plane.orders.verifier import Check
from data_plane.receipts.issuer import ReceiptIssuer
from data_plane.runner import OrderRunner
from data_plane.sandbox.domain import Trap
from data_plane.session.leases import Leases
from shared import ids
from shared.errors import (
    ArtifactInvalidError,
    DiskFullError,
    OrderRejectedError,
    RejectionReason,
    ResourceExhaustedError,
    SpoolCorruptError,
    WorkerCrashedError,
)
from shared.ids import InstallationId, new_id
from shared.keyset import KeyPurpose, sign_keyset
from shared.limits import RequestedLimits
from shared.manifest import Capabilities
from shared.orders import OLDER_ORDER_FORMAT
from shared.outcomes import LimitName, Outcome
from shared.receipt_codec import verify_receipt
from shared.receipts import OLDER_PREDICATE_TYPE, Denial, predicate_type_for
from shared.resources import NO_RESOURCES, ResourcesUsed
from shared.schemas import JsonSchema
from tests.fakes.clock import START, FakeClock, FakeRandom
from tests.fakes.host_calls import fake_parts
from tests.fakes.log import unchecked
from tests.fakes.sandbox import FakeSandbox
from tests.fakes.spool import FakeSpool
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.unit.data_plane.builders import ENGINE, INPUT, facts, order, signed
from tests.unit.shared.builders import INSTALLATION, NODE, a_keyset, a_manifest, an_entry

ROOT, RECEIPT_KEY = rsa_key("root"), ed25519_key("receipts")
BOUND = 30


class Modules:
    """Implements `ModulePreparer`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.manifest = a_manifest()
        self.gate = asyncio.Event()
        self.gate.set()
        self.forgotten = 0
        self.vouched_by = ""

    async def prepare(self, _order) -> PreparedModule:
        await self.gate.wait()
        if self.error is not None:
            raise self.error

        async def open_artifact() -> int:
            return memory_file("artifact", b"code")

        return PreparedModule(manifest=self.manifest, open_artifact=open_artifact, vouched_by=self.vouched_by)

    def forget(self, _digest, _profile, *, vouched_by) -> None:
        assert vouched_by == self.vouched_by
        self.forgotten += 1


class Announced:
    """Implements `Announcer`."""

    def __init__(self) -> None:
        self.runs = []
        self.receipts = []

    def started(self, attempt) -> None:
        self.runs.append(attempt)

    def receipt_ready(self, receipt) -> None:
        self.receipts.append(receipt)


class World:
    def __init__(self, folder, queue=0, calls=None, **changes) -> None:
        self.clock, self.spool, self.modules, self.announced = (
            FakeClock(),
            FakeSpool(),
            Modules(),
            Announced(),
        )
        self.facts = facts(**changes)
        self.leases = Leases()
        self.leases.heartbeat_sent(3, at=0.0)
        self.sandbox = FakeSandbox(ENGINE)
        self.keyset = NodeKeyset(
            root_keys={ROOT.key_id: ROOT.public},
            installation=InstallationId(INSTALLATION),
            path=folder / "keyset.dsse",
        )
        self.freshness = Freshness(
            keyset=self.keyset,
            installation=InstallationId(INSTALLATION),
            max_staleness=timedelta(seconds=60),
            max_skew=timedelta(seconds=30),
            clock=self.clock,
        )
        self.admissions = Admissions(
            slots=2, queue=queue, leases=self.leases, spool=self.spool, ceilings=self.facts.ceilings
        )
        self.runner = OrderRunner(
            facts=self.facts,
            keyset=self.keyset,
            freshness=self.freshness,
            ledger=OrderLedger(max_order_life=timedelta(seconds=60), max_skew=timedelta(seconds=30)),
            leases=self.leases,
            admissions=self.admissions,
            carrier=OrderCarrier(
                facts=self.facts,
                leases=self.leases,
                log=unchecked(self.keyset),
                modules=self.modules,
                inputs=None,
                sandbox=self.sandbox,
                host_calls=fake_parts(**(calls or {})),
                quarantine=Quarantine(crashes=3, window=timedelta(minutes=5), duration=timedelta(minutes=10)),
                policy=load_node_policy(None, None),
                announcer=self.announced,
                metrics=NodeMetrics(CollectorRegistry(), self.clock),
                clock=self.clock,
            ),
            issuer=ReceiptIssuer(spool=self.spool, key=RECEIPT_KEY, facts=self.facts, random=FakeRandom()),
            announcer=self.announced,
            metrics=NodeMetrics(CollectorRegistry(), self.clock),
            clock=self.clock,
        )

    @asynccontextmanager
    async def running(self):
        self.keyset.offer(await sign_keyset(a_keyset(ROOT), [signer(ROOT)]))
        ended = asyncio.Event()
        task = asyncio.create_task(self.runner.run(ended))
        await asyncio.sleep(0)
        try:
            yield
        finally:
            ended.set()
            async with asyncio.timeout(BOUND):
                await asyncio.wait({task})
        task.result()

    async def take(self, *orders, **changes) -> None:
        envelope, deliveries = await signed(*orders, **changes)
        self.runner.receive(envelope, deliveries)

    async def receipts(self) -> list:
        """Wait until no order is on its way, and return what was said about all of them."""
        async with asyncio.timeout(BOUND):
            await self.runner.finished()
        return [
            verify_receipt(one.envelope, node_id=NODE, node_key=RECEIPT_KEY.public).predicate
            for one in self.announced.receipts
        ]

    async def until(self, condition) -> None:
        async with asyncio.timeout(BOUND):
            while not condition():
                await asyncio.sleep(0)

    @property
    def holds_nothing(self) -> bool:
        return self.admissions.is_idle and self.spool.reserved_bytes == 0 and self.leases.next_end() is None


@pytest.fixture
async def world(tmp_path) -> World:
    return World(tmp_path)


def orders(count: int):
    return [order(nonce=number.to_bytes(16, "big")) for number in range(count)]


async def test_order_ends_in_a_receipt_with_its_output(world):
    async with world.running():
        one = order()
        await world.take(one)
        (said,) = await world.receipts()

    assert (said.outcome, said.exit_code) == (Outcome.SUCCEEDED, 0)
    assert said.attempt.order_id == one.id
    assert world.announced.receipts[0].output.inline == INPUT
    assert world.announced.runs == [attempt_of(one)]
    assert world.holds_nothing


async def test_parameters_and_limits_reach_the_guest(world):
    async with world.running():
        await world.take(order())
        await world.receipts()

    (request,) = world.sandbox.requests
    assert request.env == (("AGENTFACTORY_PARAMETERS", "{}"),)
    assert request.limits.wall == timedelta(seconds=10)
    assert (request.seed, request.clock) == (None, None)


async def test_an_input_that_breaks_the_signed_schema_runs_nothing(world):
    world.modules.manifest = a_manifest(input_schema=JsonSchema.from_object({"type": "object"}))
    async with world.running():
        await world.take(order())
        (said,) = await world.receipts()

    assert (said.outcome, said.rejection.check) == (Outcome.REJECTED, Check.INPUT_SCHEMA)
    assert said.rejection.message == "check 19: INPUT_INVALID: the input does not fit its template's schema"
    assert world.sandbox.requests == []
    assert world.holds_nothing


OUTPUT_SCHEMA = JsonSchema.from_object(
    {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
)


@pytest.mark.parametrize(
    ("output", "place"),
    [
        (b'{"total":"secret"}', b"output/total: expected integer, got string of 6 characters"),
        (b"{}", b"output/total: expected a value, got nothing"),
        (b"", b"not a JSON document"),
        (b"x" * (1024 * 1024 + 1), b"at most 1048576"),
    ],
    ids=["another kind", "nothing", "no json", "too large"],
)
async def test_an_output_that_breaks_the_signed_schema_is_a_trap_by_name_and_goes_nowhere(
    world, output, place
):
    async def guest(_request):
        put = b'{"method":"kv.put","params":{"key":"a","value_base64":""}}'
        await world.sandbox.host_calls.answer(put, NO_RESOURCES)
        return world.sandbox.result(Outcome.SUCCEEDED, exit_code=0, stdout=output, stderr=b"own line\n")

    world.modules.manifest = a_manifest(output_schema=OUTPUT_SCHEMA, capabilities=Capabilities(kv=True))
    world.sandbox.guest = guest
    async with world.running():
        await world.take(order(capabilities=Capabilities(kv=True), host_call_grants=("kv.get", "kv.put")))
        (said,) = await world.receipts()

    assert (said.outcome, said.exit_code) == (Outcome.TRAPPED, None)
    assert said.trap == "OUTPUT_INVALID: the output does not fit its template's schema"
    receipt = world.announced.receipts[0]
    assert receipt.output.inline == b""
    assert receipt.log.inline.startswith(b"own line\nagentfactory: output")
    assert place in receipt.log.inline
    assert b"secret" not in receipt.envelope + receipt.log.inline
    assert said.kv_writes_digest is None


@pytest.mark.parametrize(
    "result", [{"outcome": Outcome.FAILED, "exit_code": 3}, {"outcome": Outcome.SUCCEEDED, "exit_code": 0}]
)
async def test_only_a_success_is_judged_by_its_output(world, result):
    async def guest(_request):
        return world.sandbox.result(
            **result, stdout=b'{"total":1}' if result["exit_code"] == 0 else b"no json"
        )

    world.modules.manifest = a_manifest(output_schema=OUTPUT_SCHEMA)
    world.sandbox.guest = guest
    async with world.running():
        await world.take(order())
        (said,) = await world.receipts()
    assert (said.outcome, said.exit_code) == (result["outcome"], result["exit_code"])


async def test_orders_of_one_batch_cost_one_signature_check(world, monkeypatch):
    calls = []
    real = runner_module.verify_root
    monkeypatch.setattr(runner_module, "verify_root", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    envelope, deliveries = await signed(*orders(2))
    async with world.running():
        world.runner.receive(envelope, deliveries[:1])
        world.runner.receive(envelope, deliveries[1:])
        assert len(await world.receipts()) == 2

    assert calls == [1]


async def test_remembered_root_of_a_key_that_was_revoked_since(world):
    envelope, deliveries = await signed(*orders(2))
    async with world.running():
        world.runner.receive(envelope, deliveries[:1])
        revoked = a_keyset(ROOT, replace(an_entry(), revoked_at=START), version=4)
        world.keyset.offer(await sign_keyset(revoked, [signer(ROOT)]))
        world.runner.receive(envelope, deliveries[1:])
        said = await world.receipts()

    assert sorted(one.outcome for one in said) == [Outcome.REJECTED, Outcome.SUCCEEDED]


async def test_remembered_root_of_a_key_that_has_expired_since(world):
    envelope, deliveries = await signed(*orders(2))
    async with world.running():
        ending = a_keyset(ROOT, an_entry(not_after=START + timedelta(seconds=2)), version=4)
        world.keyset.offer(await sign_keyset(ending, [signer(ROOT)]))
        world.runner.receive(envelope, deliveries[:1])
        world.clock.advance(timedelta(seconds=2))
        world.runner.receive(envelope, deliveries[1:])
        said = await world.receipts()

    assert sorted(one.outcome for one in said) == [Outcome.REJECTED, Outcome.SUCCEEDED]


COMPILER = ed25519_key("compiler")


async def two_run(world) -> None:
    """Let an order run on a compiler key's word, and one on the node's own."""
    world.modules.vouched_by = COMPILER.public.key_id
    await world.take(order(nonce=b"1" * 16))
    await world.until(lambda: len(world.sandbox.requests) == 1)
    world.modules.vouched_by = ""
    await world.take(order(nonce=b"2" * 16))
    await world.until(lambda: len(world.sandbox.requests) == 2)


async def revoke_compiler(world, at) -> None:
    entry = an_entry(purpose=KeyPurpose.COMPILER, key=COMPILER.public, revoked_at=at)
    keyset = a_keyset(ROOT, an_entry(), entry, version=4)
    world.keyset.offer(await sign_keyset(keyset, [signer(ROOT)]))


def waits_for(world) -> asyncio.Event:
    may_end = asyncio.Event()

    async def waits(request):
        await may_end.wait()
        return await world.sandbox.echo(request)

    world.sandbox.guest = waits
    return may_end


async def test_what_runs_on_the_word_of_a_compiler_key_ends_with_it_and_nothing_else_does(world):
    may_end = waits_for(world)
    async with world.running():
        await two_run(world)
        await revoke_compiler(world, START)
        world.runner.keyset_changed()
        may_end.set()
        said = await world.receipts()

    assert [one.outcome for one in said] == [Outcome.REJECTED, Outcome.SUCCEEDED]
    assert said[0].rejection.reason is RejectionReason.STALE
    assert [vouched_by for *_, vouched_by in world.sandbox.loaded] == [""]


async def test_a_revocation_of_a_time_that_this_clock_has_not_reached_stops_runs_when_it_has(world):
    """The operator's clock may be ahead by as much as a session's may be off."""
    may_end = waits_for(world)
    async with world.running():
        await two_run(world)
        await revoke_compiler(world, START + timedelta(seconds=20))
        world.runner.keyset_changed()
        world.clock.advance(timedelta(seconds=19))
        world.runner.stop_revoked()
        await asyncio.sleep(0)
        assert len(world.sandbox.loaded) == 2
        world.clock.advance(timedelta(seconds=1))
        world.runner.stop_revoked()
        may_end.set()
        said = await world.receipts()

    assert [one.outcome for one in said] == [Outcome.REJECTED, Outcome.SUCCEEDED]
    assert [vouched_by for *_, vouched_by in world.sandbox.loaded] == [""]


async def test_receipt_goes_with_the_signature_that_its_order_came_under(world):
    async with world.running():
        envelope, deliveries = await signed(*orders(2))
        world.runner.receive(envelope, deliveries)
        world.runner.receive(envelope, deliveries[:1])
        await world.receipts()

    assert [one.order_envelope for one in world.announced.receipts] == [envelope] * 3


async def test_what_was_never_believed_is_kept_with_no_receipt(world):
    async with world.running():
        envelope, deliveries = await signed(order(), key=rsa_key("other"))
        world.runner.receive(envelope, deliveries)
        other_node, not_for_us = await signed(
            order(node_id=new_id(ids.NODE, world.clock, FakeRandom("other")))
        )
        world.runner.receive(other_node, not_for_us)
        await world.receipts()

    assert [one.order_envelope for one in world.announced.receipts] == [b"", b""]


async def test_without_a_keyset_no_order_is_taken(world):
    ended = asyncio.Event()
    task = asyncio.create_task(world.runner.run(ended))
    await asyncio.sleep(0)
    await world.take(order())
    (said,) = await world.receipts()
    ended.set()
    await task

    assert (said.rejection.check, said.attempt) == (1, None)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda world: setattr(world.admissions, "draining", True), RejectionReason.DRAINING),
        (lambda world: setattr(world.spool, "is_full", True), RejectionReason.SPOOL),
        (lambda world: world.clock.advance(timedelta(seconds=4)), RejectionReason.STALE),
    ],
    ids=["drains", "spool full", "lease over"],
)
async def test_no_room_is_a_reason_of_this_node_alone(world, prepare, reason):
    async with world.running():
        prepare(world)
        await world.take(order())
        (said,) = await world.receipts()

    assert said.rejection.reason is reason
    assert reason.concerns_node_alone
    world.admissions.draining = False
    assert world.holds_nothing


async def test_every_slot_taken(world):
    async with world.running():
        world.modules.gate.clear()
        await world.take(*orders(3))
        world.modules.gate.set()
        said = await world.receipts()

    assert [one.outcome for one in said].count(Outcome.REJECTED) == 1
    assert world.holds_nothing


async def test_lease_that_ends_while_the_module_is_fetched_starts_nothing(world):
    async with world.running():
        world.modules.gate.clear()
        await world.take(order())
        await asyncio.sleep(0)
        world.clock.advance(timedelta(seconds=4))
        world.modules.gate.set()
        (said,) = await world.receipts()

    assert said.rejection.reason is RejectionReason.STALE
    assert world.sandbox.requests == []


@pytest.mark.parametrize("begun", [True, False], ids=["while it is fetched", "before its task begins"])
async def test_cancelled_before_the_guest_started(world, begun):
    async with world.running():
        one = order()
        world.modules.gate.clear()
        await world.take(one)
        if begun:
            await asyncio.sleep(0)
        world.runner.stop(attempt_of(one), StopReason.CANCELLED)
        (said,) = await world.receipts()

    assert (said.outcome, said.started_at) == (Outcome.CANCELLED, None)
    assert world.holds_nothing


@pytest.mark.parametrize("reason", StopReason)
async def test_what_a_stopped_run_has_called_is_in_its_receipt_and_what_it_wrote_is_not(tmp_path, reason):
    world = World(tmp_path)
    asked = Capabilities(kv=True)
    world.modules.manifest = a_manifest(capabilities=asked)
    called = asyncio.Event()

    async def guest(_request):
        calls = world.sandbox.host_calls
        await calls.answer(b'{"method":"kv.put","params":{"key":"a","value_base64":""}}', NO_RESOURCES)
        await calls.answer(b'{"method":"http.fetch"}', NO_RESOURCES)
        called.set()
        await asyncio.Event().wait()

    world.sandbox.guest = guest
    async with world.running():
        one = order(capabilities=asked, host_call_grants=asked.host_call_grants)
        await world.take(one)
        await world.until(called.is_set)
        world.runner.stop(attempt_of(one), reason)
        (said,) = await world.receipts()
    assert said.recording_commitment is not None
    assert said.denials == (Denial(method="http.fetch", reason="not_granted"),)
    assert said.kv_writes_digest is None
    (spooled,) = world.spool.receipts.values()
    assert spooled.recording is not None
    assert spooled.kv_writes == b""


async def test_receipt_of_an_older_order_tells_no_denials(tmp_path):
    world = World(tmp_path)

    async def guest(request):
        await world.sandbox.host_calls.answer(b'{"method":"kv.get","params":{"key":"a"}}', NO_RESOURCES)
        return await world.sandbox.echo(request)

    world.sandbox.guest = guest
    async with world.running():
        await world.take(order(format=OLDER_ORDER_FORMAT))
        (said,) = await world.receipts()
    assert (said.type, said.outcome, said.denials) == (OLDER_PREDICATE_TYPE, Outcome.SUCCEEDED, ())


@pytest.mark.parametrize(
    ("reason", "outcome", "rejection"),
    [
        (StopReason.CANCELLED, Outcome.CANCELLED, None),
        (StopReason.LEASE_LOST, Outcome.REJECTED, RejectionReason.STALE),
        (StopReason.KEY_REVOKED, Outcome.REJECTED, RejectionReason.STALE),
        (StopReason.NODE_STOPS, Outcome.REJECTED, RejectionReason.DRAINING),
    ],
)
async def test_stopped_while_the_guest_runs(world, reason, outcome, rejection):
    async def forever(_request):
        await asyncio.Event().wait()

    world.sandbox.guest = forever
    async with world.running():
        one = order()
        await world.take(one)
        await world.until(lambda: world.sandbox.requests)
        world.runner.stop(attempt_of(one), reason)
        world.runner.stop(attempt_of(one), StopReason.CANCELLED)
        (said,) = await world.receipts()

    assert said.outcome is outcome
    assert said.started_at is not None
    assert (said.rejection.reason if said.rejection else None) is rejection
    assert world.holds_nothing


async def test_stop_that_comes_after_the_end_changes_nothing(world):
    async with world.running():
        one = order()
        await world.take(one)
        await world.receipts()
        world.runner.stop(attempt_of(one), StopReason.CANCELLED)
        (said,) = await world.receipts()

    assert said.outcome is Outcome.SUCCEEDED


async def test_refusal_of_the_module_is_the_receipts(world):
    world.modules.error = OrderRejectedError("no", check=12, rejection=RejectionReason.TEMPLATE)
    async with world.running():
        await world.take(order())
        (said,) = await world.receipts()

    assert (said.rejection.check, said.rejection.reason) == (12, RejectionReason.TEMPLATE)
    assert world.holds_nothing


async def test_bug_on_the_way_is_one_orders_trouble(world):
    world.modules.error = ZeroDivisionError("a bug")
    async with world.running():
        await world.take(order())
        (said,) = await world.receipts()
        world.modules.error = None
        await world.take(order(nonce=b"2" * 16))
        _, second = await world.receipts()

    assert said.rejection.reason is RejectionReason.BUSY
    assert "a bug" not in said.rejection.message
    assert second.outcome is Outcome.SUCCEEDED


async def test_artifact_that_does_not_load_is_compiled_once_more(world):
    async def broken(_request):
        raise ArtifactInvalidError("another engine")

    world.sandbox.guest = broken
    async with world.running():
        await world.take(order())
        (said,) = await world.receipts()

    assert said.rejection.reason is RejectionReason.ARTIFACT
    assert world.modules.forgotten == 1


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        (ResourceExhaustedError("no memory"), [RejectionReason.BUSY] * 4),
        (WorkerCrashedError("crashed"), [None, None, None, RejectionReason.QUARANTINE]),
    ],
    ids=["machine", "module"],
)
async def test_only_crashes_that_are_the_modules_own_lead_to_quarantine(world, error, reasons):
    async def ends(_request):
        raise error

    world.sandbox.guest = ends
    tenant, said = order().tenant_id, []
    async with world.running():
        for number in range(4):
            await world.take(order(nonce=bytes([number]) * 16, tenant_id=tenant))
            said = await world.receipts()

    assert [one.rejection and one.rejection.reason for one in said] == reasons


async def test_receipt_that_cannot_be_kept_is_no_receipt_and_the_node_goes_on(world):
    async with world.running():
        world.spool.error = DiskFullError("full")
        await world.take(order())
        assert await world.receipts() == []
        world.spool.error = None
        await world.take(order(nonce=b"2" * 16))
        assert len(await world.receipts()) == 1

    assert world.holds_nothing


async def test_broken_spool_ends_the_node(world):
    async def break_it() -> None:
        async with world.running():
            world.spool.error = SpoolCorruptError("the disk failed")
            await world.take(order())
            await world.until(lambda: world.runner._unfinished == 0)

    with pytest.raises(ExceptionGroup) as caught:
        await break_it()

    assert caught.value.subgroup(SpoolCorruptError) is not None


async def test_slot_is_free_while_the_receipt_is_written(world, monkeypatch):
    seen = []
    real = world.spool.append

    async def slow(draft):
        seen.append(world.admissions.is_idle)
        return await real(draft)

    monkeypatch.setattr(world.spool, "append", slow)
    async with world.running():
        await world.take(order())
        await world.receipts()

    assert seen == [True]


async def test_guest_that_traps_is_named(world):
    async def trap(_request):
        return world.sandbox.result(Outcome.TRAPPED, trap=Trap(name="unreachable", message="\ud800"))

    world.sandbox.guest = trap
    async with world.running():
        await world.take(order())
        (said,) = await world.receipts()

    assert said.trap == "unreachable: ?"


async def test_signed_template_that_asks_for_less_than_was_ordered_gets_less(world):
    world.modules.manifest = a_manifest(limits=RequestedLimits(wall_ms=7, memory_bytes=65536))
    async with world.running():
        await world.take(order())
        await world.receipts()

    (request,) = world.sandbox.requests
    assert (request.limits.wall_ms, request.limits.memory_bytes) == (7, 65536)
    assert request.limits.output_bytes == order().limits.output_bytes


async def test_wall_clock_set_back_while_an_order_waits_leaves_a_receipt_whose_times_run_forward(world):
    async with world.running():
        world.modules.gate.clear()
        await world.take(order())
        world.clock.set_wall(START - timedelta(seconds=20))
        world.modules.gate.set()
        (said,) = await world.receipts()

    assert said.outcome is Outcome.SUCCEEDED
    assert said.received_at == said.started_at == said.finished_at == START


async def test_one_order_that_breaks_the_checks_is_refused_and_the_others_run(world, monkeypatch):
    real, first = runner_module.verify_order, []

    def breaks_once(*args, **kwargs):
        if not first:
            first.append(1)
            raise OverflowError("date value out of range")
        return real(*args, **kwargs)

    monkeypatch.setattr(runner_module, "verify_order", breaks_once)
    async with world.running():
        await world.take(*orders(2))
        said = await world.receipts()

    assert sorted(one.outcome for one in said) == [Outcome.REJECTED, Outcome.SUCCEEDED]


async def test_answer_of_an_order_uses_the_room_that_was_reserved_for_it(world, monkeypatch):
    drafts = []
    real = world.spool.append

    async def seen(draft):
        drafts.append(draft.reservation)
        return await real(draft)

    monkeypatch.setattr(world.spool, "append", seen)
    async with world.running():
        await world.take(order())
        await world.receipts()
        await world.take(order())
        await world.receipts()

    ran, replayed = drafts
    assert ran is not None
    assert replayed is None


@pytest.mark.parametrize(
    ("order_format", "outcome", "limit", "trap"),
    [
        ("agentfactory.order.v2", Outcome.KILLED, LimitName.FUEL, None),
        ("agentfactory.order.v1", Outcome.TRAPPED, None, "fuel: the limit was passed"),
    ],
)
async def test_rule_11_each_version_is_told_of_a_later_limit_in_its_own_words(
    world, order_format, outcome, limit, trap
):
    used = ResourcesUsed(log_bytes=3, fuel=7)

    async def passes_a_limit(_request):
        return world.sandbox.result(Outcome.KILLED, limit=LimitName.FUEL, resources=used)

    world.sandbox.guest = passes_a_limit
    async with world.running():
        await world.take(order(format=order_format))
        (said,) = await world.receipts()

    assert (said.outcome, said.limit, said.trap) == (outcome, limit, trap)
    assert said.type == predicate_type_for(order_format)
    assert said.resources == (used if limit else ResourcesUsed(log_bytes=3))


@pytest.mark.parametrize(
    "nonsense",
    [{"exit_code": "x"}, {"exit_code": 1, "resources": ResourcesUsed(cpu=timedelta(microseconds=-5))}],
)
async def test_receipt_that_nobody_could_read_takes_no_number_and_the_node_goes_on(world, nonsense):
    async def lies(_request):
        return world.sandbox.result(Outcome.FAILED, **nonsense)

    world.sandbox.guest, honest = lies, world.sandbox.guest
    async with world.running():
        await world.take(order())
        assert await world.receipts() == []
        world.sandbox.guest = honest
        await world.take(order(nonce=b"2" * 16, fencing_token=99))
        (said,) = await world.receipts()

    assert (said.sequence, said.outcome) == (1, Outcome.SUCCEEDED)
    assert world.holds_nothing


async def blocked(world, count: int) -> list:
    """Have orders taken by a node of two slots whose guests never end."""

    async def forever(_request):
        await asyncio.Event().wait()

    world.sandbox.guest = forever
    taken = orders(count)
    await world.take(*taken)
    await world.until(lambda: len(world.sandbox.requests) == 2)
    return taken


async def test_orders_beyond_the_slots_wait_and_run_in_turn(tmp_path):
    world = World(tmp_path, queue=3)
    async with world.running():
        world.modules.gate.clear()
        await world.take(*orders(5))
        await asyncio.sleep(0)
        assert (world.sandbox.requests, world.announced.runs) == ([], [])
        world.modules.gate.set()
        said = await world.receipts()

    assert [one.outcome for one in said] == [Outcome.SUCCEEDED] * 5
    assert world.holds_nothing


async def test_order_that_waits_in_the_queue_is_cancelled_at_once(tmp_path):
    world = World(tmp_path, queue=1)
    async with world.running():
        *_, waiting = await blocked(world, 3)
        world.runner.stop(attempt_of(waiting), StopReason.CANCELLED)
        await world.until(lambda: world.announced.receipts)
        assert attempt_of(waiting) not in world.announced.runs
        world.runner.stop_all(StopReason.NODE_STOPS)
        said = await world.receipts()

    assert said[0].outcome is Outcome.CANCELLED
    assert world.holds_nothing


async def test_order_that_waits_too_long_goes_back_for_another_node(tmp_path):
    world = World(tmp_path, queue=1)
    async with world.running():
        await blocked(world, 3)
        world.clock.advance(runner_module.MAX_QUEUED - timedelta(microseconds=1))
        world.runner.return_overdue()
        assert world.announced.receipts == []
        world.clock.advance(timedelta(microseconds=1))
        world.runner.return_overdue()
        await world.until(lambda: world.announced.receipts)
        world.runner.stop_all(StopReason.NODE_STOPS)
        said = await world.receipts()

    assert said[0].rejection.reason is RejectionReason.BUSY
    assert said[0].rejection.reason.concerns_node_alone


async def test_order_whose_lease_ends_in_the_queue_starts_nothing(tmp_path):
    world = World(tmp_path, queue=1)
    async with world.running():
        first, *_ = await blocked(world, 3)
        world.clock.advance(timedelta(seconds=4))
        world.runner.stop(attempt_of(first), StopReason.CANCELLED)
        await world.until(lambda: len(world.announced.receipts) == 2)
        world.runner.stop_all(StopReason.NODE_STOPS)
        await world.receipts()

    assert len(world.sandbox.requests) == 2

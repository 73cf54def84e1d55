"""Random lives of executions: the pure transitions and the statements of Postgres give the same answers.

Time moves in steps far longer than every backoff and every test, so that both sides agree on what is due.
"""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from control_plane.audit.domain import NewAuditEntry
from control_plane.executions.domain import Disposition, Outcome, UnsafeCall
from control_plane.kv.domain import KvRead, KvWrite
from shared.errors import SessionSupersededError, WrongStateError
from shared.ids import AUDIT_ENTRY, RECEIPT, BootId, new_id
from shared.manifest import Capabilities
from tests.builders.executions import TENANT, Builder, node, session
from tests.fakes.clock import FakeClock, FakeRandom
from tests.fixtures.execution_worlds import FakeWorld, postgres_world

LEASE = timedelta(hours=1)
SHORT_STEP = timedelta(minutes=20)
LONG_STEP = timedelta(hours=2)
DEADLINE = timedelta(hours=5)
NODES = ("one", "two")
MAX_EXECUTIONS = 6
EXAMPLES = 25
STEPS = 20

TABLES = (
    "executions, attempts, orders, receipts, bodies, decisions, idempotency_keys, audit_entries, kv_entries"
)

nodes = st.sampled_from(NODES)
numbers = st.integers(min_value=0, max_value=1000)
counted_outcomes = st.sampled_from(
    [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TRAPPED, Outcome.KILLED, Outcome.CANCELLED, Outcome.REJECTED]
)


def shape(execution):
    """Everything but points in time, which differ between the two by nature."""
    return replace(
        execution,
        claimable_at=None if execution.claimable_at is None else datetime.min.replace(tzinfo=UTC),
        run_deadline_at=None,
        created_at=None,
        started_at=None if execution.started_at is None else datetime.min.replace(tzinfo=UTC),
        ended_at=None if execution.ended_at is None else datetime.min.replace(tzinfo=UTC),
        attempts=tuple(
            replace(
                one,
                leased_at=None,
                lease_expires_at=None,
                started_at=None,
                ended_at=None if one.ended_at is None else datetime.min.replace(tzinfo=UTC),
                unsafe_call_at=None if one.unsafe_call_at is None else datetime.min.replace(tzinfo=UTC),
            )
            for one in execution.attempts
        ),
    )


class Lives(RuleBasedStateMachine):
    """Does everything twice and compares."""

    runner: asyncio.Runner
    real = None

    def __init__(self):
        super().__init__()
        self.run = self.runner.run
        self.run(self._reset())
        clock = FakeClock(datetime.now(UTC))
        self.fake = FakeWorld(clock=clock)
        self.build = Builder(clock=clock, random=FakeRandom())
        self.epochs = dict.fromkeys(NODES, 1)
        self.items = []
        self.placements = []

    async def _reset(self):
        async with self.real.owner.begin() as connection:
            await connection.execute(text(f"TRUNCATE {TABLES}"))
            await connection.execute(text("UPDATE agents SET kv_keys = 0, kv_bytes = 0"))
        for name in NODES:
            await self.real.connect(name, epoch=1, boot="boot_1")

    def at(self, name):
        return session(name, epoch=self.epochs[name], boot=f"boot_{self.epochs[name]}")

    def both(self, call):
        """Call the same on both sides; returns both answers, errors as answers."""
        answers = []
        for world in (self.fake, self.real):
            try:
                answers.append(self.run(call(world)))
            except (WrongStateError, SessionSupersededError) as error:
                answers.append(type(error))
        return answers

    @initialize(placed=st.lists(nodes, min_size=2, max_size=3))
    def begin(self, placed):
        """Without this most examples would only set the scene."""
        for name in placed:
            self.accept(name=name, placed=True, safe=False)

    @precondition(lambda self: len(self.items) < MAX_EXECUTIONS)
    @rule(name=nodes, placed=st.booleans(), safe=st.booleans())
    def accept(self, name, placed, safe):
        item = self.build.execution(
            run_deadline=DEADLINE, retry_is_safe=safe, max_attempts=2, capabilities=Capabilities(kv=True)
        )
        placement = self.build.placement(item, self.at(name), lease=LEASE) if placed else None
        # Time passes on the real side by what is stored growing older: what comes new counts from true time.
        true = replace(item, run=replace(item.run, run_deadline_at=datetime.now(UTC) + DEADLINE))
        one, other = self.both(
            lambda world: world.store.accept([item if world is self.fake else true], [placement])
        )
        assert list(one) == list(other)
        self.items.append(item)
        if placement is not None:
            self.placements.append(placement)

    @rule(name=nodes)
    def claim(self, name):
        self.pass_time(SHORT_STEP)
        at, made = self.at(name), {}

        def place(works):
            for work in works:
                if work.run.execution_id not in made:
                    made[work.run.execution_id] = self.build.placement(work, at, lease=LEASE)
            return [made[work.run.execution_id] for work in works]

        one, other = self.both(lambda world: world.leases.claim(at, limit=100, place=place))
        works = [{work.run.execution_id: work for work in side.executions} for side in (one, other)]
        assert works[0].keys() == works[1].keys()
        for execution_id, work in works[0].items():
            twin = works[1][execution_id]
            run = replace(twin.run, run_deadline_at=work.run.run_deadline_at)
            assert work == replace(twin, run=run)
        assert one.queue_empty == other.queue_empty
        self.placements += made.values()

    @rule(number=numbers)
    def start(self, number):
        ref = self.placements[number % len(self.placements)].attempt
        self.both(lambda world: world.leases.start([ref]))

    @rule(number=numbers, outcome=counted_outcomes, counts=st.booleans())
    def finish(self, number, outcome, counts):
        placement = self.placements[number % len(self.placements)]
        counts = counts or outcome is not Outcome.REJECTED
        self.finish_both([self.build.result(placement, outcome, counts=counts)])

    @rule(number=numbers, other=numbers)
    def finish_in_one_group(self, number, other):
        chosen = [self.placements[one % len(self.placements)] for one in (number, other)]
        results = [
            self.build.result(placement, outcome)
            for placement, outcome in zip(chosen, (Outcome.FAILED, Outcome.SUCCEEDED), strict=True)
        ]
        self.finish_both(results)
        again = [
            replace(one, receipt_id=new_id(RECEIPT, self.build.clock, self.build.random)) for one in results
        ]
        for finished in self.finish_both(again):
            assert finished.disposition is Disposition.DUPLICATE

    def finish_both(self, results):
        one, other = self.both(lambda world: world.leases.finish(results))
        assert [x.disposition for x in one] == [x.disposition for x in other]
        return one

    @rule(number=numbers)
    def cancel(self, number):
        execution_id = self.items[number % len(self.items)].run.execution_id
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self.build.clock, self.build.random),
            tenant_id=TENANT,
            actor="test",
            action="execution.cancel_requested",
            subject=execution_id,
        )
        one, other = self.both(lambda world: world.store.request_cancel(TENANT, execution_id, entry))
        if isinstance(one, type):
            assert one is other
        else:
            assert one[1] == other[1]

    @rule(number=numbers, name=nodes)
    def renew(self, number, name):
        ref = self.placements[number % len(self.placements)].attempt
        one, other = self.both(lambda world: world.leases.renew(node(name), [ref], lease=LEASE))
        assert list(one) == list(other)

    @rule(number=numbers, name=nodes)
    def declare_unsafe(self, number, name):
        call = UnsafeCall(node_id=node(name), attempt=self.placements[number % len(self.placements)].attempt)
        one, other = self.both(lambda world: world.leases.declare_unsafe([call]))
        assert list(one) == list(other)

    @rule(number=numbers, key=st.sampled_from("ab"), size=st.sampled_from([None, 0, 499, 997, 998]))
    def finish_with_a_value(self, number, key, size):
        placement = self.placements[number % len(self.placements)]
        write = KvWrite(key=key, value=None if size is None else b"v" * size)
        self.finish_both([self.build.result(placement, kv_writes=(write,))])

    @rule(number=numbers, name=nodes, key=st.sampled_from("ab"))
    def read_a_value(self, number, name, key):
        attempt = self.placements[number % len(self.placements)].attempt
        read = KvRead(
            node_id=node(name),
            execution_id=attempt.execution_id,
            attempt_number=attempt.attempt_number,
            fencing_token=attempt.fencing_token,
            key=key,
        )
        one, other = self.both(lambda world: world.kv.read([read]))
        assert list(one) == list(other)

    @rule()
    def leases_run_out(self):
        self.pass_time(LONG_STEP)
        self.same_losses(lambda world: world.leases.expire_leases(limit=100))

    @rule(name=nodes, number=numbers)
    def another_node_takes_over_and_the_first_answers_late(self, name, number):
        self.leases_run_out()
        self.claim(name=name)
        self.finish(number=number, outcome=Outcome.SUCCEEDED, counts=True)

    @rule(number=numbers)
    def a_node_is_busy_and_answers_twice(self, number):
        self.finish(number=number, outcome=Outcome.REJECTED, counts=False)
        self.finish(number=number, outcome=Outcome.SUCCEEDED, counts=True)

    @rule(name=nodes)
    def a_node_starts_anew(self, name):
        self.epochs[name] += 1
        boot = f"boot_{self.epochs[name]}"
        self.both(lambda world: world.connect(name, epoch=self.epochs[name], boot=boot))
        self.same_losses(lambda world: world.leases.lose_attempts_of_other_boots(node(name), BootId(boot)))

    @rule(number=numbers)
    def an_order_never_left(self, number):
        placement = self.placements[number % len(self.placements)]
        self.same_losses(lambda world: world.leases.release_unsent([placement]))

    @rule()
    def deadlines_pass(self):
        one, other = self.both(lambda world: world.leases.expire_deadlines(limit=100))
        assert sorted(one) == sorted(other)

    def same_losses(self, call):
        def key(lost):
            return lost.attempt.execution_id

        one, other = self.both(call)
        assert sorted(one, key=key) == sorted(other, key=key)

    def pass_time(self, duration):
        self.both(lambda world: world.pass_time(duration))

    @invariant()
    def both_say_the_same(self):
        for item in self.items:
            one, other = self.both(lambda world: world.store.get(TENANT, item.run.execution_id))  # noqa: B023
            assert shape(one) == shape(other)
            live = [attempt for attempt in one.attempts if attempt.state.is_live]
            assert len(live) <= 1
            tokens = [attempt.fencing_token for attempt in one.attempts]
            assert tokens == sorted(set(tokens))
            assert not (one.state.is_terminal and live)


@pytest.mark.timeout(300)
def test_the_domain_and_postgres_give_the_same_answers(postgres_18):
    database = postgres_18.new_database()
    with asyncio.Runner() as runner:
        opened = postgres_world(postgres_18, database)
        Lives.runner = runner
        Lives.real = runner.run(opened.__aenter__())
        try:
            run_state_machine_as_test(
                Lives,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
            Lives.real = None
    postgres_18.drop_database(database)

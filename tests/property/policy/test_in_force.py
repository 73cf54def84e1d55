"""Whatever happens in whatever order: a decision names a policy that was in force within the bound, or a denial."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.policy.active import MAX_UNCHECKED, ActivePolicy
from control_plane.policy.answers import NOT_LOADED
from control_plane.policy.builtin import builtin_policy, builtin_record
from control_plane.policy.bundles import Activation, BundleRecord
from control_plane.policy.domain import Evaluation, Question
from control_plane.policy.service import PolicyService
from shared.digests import sha256_digest
from shared.errors import DatabaseUnavailableError, PolicyInvalidError
from shared.limits import DEFAULT_LIMITS, LIMIT_FIELDS
from tests.fakes.clock import FakeClock, FakeRandom
from tests.integration.policy.replicas import ASKED, Seen

LIMITS = {name: getattr(DEFAULT_LIMITS, name) for name in LIMIT_FIELDS}
BROKEN = 3
"""The policy of this number can be loaded by nobody."""


class World:
    """The database, the engines and the keys of one replica, and the truth of what was in force when."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.builtin = builtin_record(builtin_policy(), now=self.clock.now())
        self.away = False
        self.activations: list[Activation] = []
        self.since: list[tuple[float, str]] = [(0.0, self.builtin.digest)]

    @asynccontextmanager
    async def transaction(self):
        if self.away:
            raise DatabaseUnavailableError("away")
        await asyncio.sleep(0)
        yield self

    async def newest_activation(self, tx):
        return self.activations[-1] if self.activations else None

    async def add(self, tx, bundle):
        return True

    async def find(self, tx, digest) -> BundleRecord:
        raise AssertionError("signatures are checked elsewhere")

    async def load(self, bundle):
        await asyncio.sleep(0)
        if bundle.digest == digest_of(BROKEN):
            raise PolicyInvalidError("broken")
        return Engine(bundle.digest)

    def activate(self, number: int) -> None:
        at = len(self.activations) + 1
        self.activations.append(
            Activation(number=at, digest=digest_of(number), place=at, activated_by="test")
        )
        self.since.append((self.clock.monotonic(), digest_of(number)))

    def in_force_within(self, bound: float) -> set[str]:
        """Every digest that was in force at some moment of the last `bound` seconds."""
        since = self.clock.monotonic() - bound
        return {
            digest
            for at, (_, digest) in enumerate(self.since)
            if at + 1 == len(self.since) or self.since[at + 1][0] >= since
        }


class Engine:
    """Allows, slowly."""

    name, is_pure = "told", True

    def __init__(self, digest) -> None:
        self.digest = digest

    async def evaluate(self, rule, input_json):
        await asyncio.sleep(0)
        return Evaluation(value_json=json.dumps({"allowed": True, "reason": "ALLOWED", "limits": LIMITS}))


class Unsigned(ActivePolicy):
    """Takes bundles without their signatures, which have tests of their own."""

    async def _verified(self, newest):
        record = self._builtin
        if newest is not None:
            record = BundleRecord(
                digest=newest.digest,
                name="base",
                version=1,
                comment="",
                key_id="",
                published_by="",
                published_at=record.published_at,
                envelope=b"",
                files=record.files,
            )
        return record


def digest_of(number: int) -> str:
    return sha256_digest(str(number).encode())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("activate"), st.integers(0, BROKEN)),
        st.tuples(st.just("wait"), st.floats(0, 4 * MAX_UNCHECKED.total_seconds())),
        st.tuples(st.just("hear"), st.none()),
        st.tuples(st.just("decide"), st.none()),
        st.tuples(st.just("outage"), st.booleans()),
    ),
    max_size=40,
)


async def play(steps) -> None:
    world = World()
    active = Unsigned(
        database=world,
        store=world,
        keys=None,
        engines=world,
        builtin=world.builtin,
        observer=Seen(),
        clock=world.clock,
    )
    service = PolicyService(in_force=active, observer=Seen(), clock=world.clock, random=FakeRandom())
    running: set[asyncio.Task] = set()

    async def decide() -> None:
        try:
            decision = await service.decide(Question.EXECUTE, ASKED)
        except DatabaseUnavailableError:
            return
        assert decision.policy_digest in world.in_force_within(MAX_UNCHECKED.total_seconds())
        broken = decision.policy_digest == digest_of(BROKEN)
        assert (decision.allowed, decision.reason == NOT_LOADED) == (not broken, broken)

    async def hear() -> None:
        try:
            heard = await active.confirmed()
        except DatabaseUnavailableError:
            return
        assert heard.digest in world.in_force_within(0.0)

    for step, value in steps:
        if step == "activate":
            world.activate(value)
        elif step == "wait":
            await asyncio.gather(*running)  # nothing takes that long
            world.clock.advance(timedelta(seconds=value))
        elif step == "outage":
            world.away = value
        else:
            running.add(asyncio.create_task(decide() if step == "decide" else hear()))
            await asyncio.sleep(0)
    await asyncio.gather(*running)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_no_decision_names_a_policy_that_was_not_in_force_within_the_bound(steps):
    asyncio.run(play(steps))

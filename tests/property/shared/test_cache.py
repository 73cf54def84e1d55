"""Many tasks and many changes: nobody is served a value that is older than the bound, in any interleaving."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.cache import Cache, CacheBounds
from tests.fakes.clock import FakeClock

KEYS = ("a", "b")
LIFE = timedelta(seconds=2)
SLOWEST = 6
"""Turns of the loop that a read takes at most."""

_key = st.sampled_from(KEYS)
_turns = st.integers(0, SLOWEST)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), _key, _turns, _turns),
        st.tuples(st.just("ask"), st.just("a"), st.just(0), _turns),
        st.tuples(st.just("change in silence"), _key),
        st.tuples(st.just("change and tell"), _key, st.booleans()),
        st.tuples(st.just("wait"), st.integers(1, 3)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
    ),
    min_size=10,
    max_size=40,
)


@dataclass
class World:
    """The truth, its history, and everybody who asked."""

    clock: FakeClock = field(default_factory=FakeClock)
    truth: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    told: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    """The newest value of each key that a `forget` has announced."""
    since: dict[tuple[str, int], float] = field(default_factory=dict)
    """When each value was replaced."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        bounds = CacheBounds(entries=1, life=LIFE)
        self.kept = Cache[str, int](bounds=bounds, clock=self.clock)

    def change(self, key: str) -> None:
        self.since[(key, self.truth[key])] = self.clock.monotonic()
        self.truth[key] += 1

    def tell(self, key: str, *, everything: bool) -> None:
        if everything:
            self.kept.forget_all()
            self.told = dict(self.truth)
        else:
            self.kept.forget(key)
            self.told[key] = self.truth[key]

    async def ask(self, key: str, before: int, behind: int) -> None:
        told, asked_at = self.told[key], self.clock.monotonic()

        async def load() -> int:
            for _ in range(before):
                await asyncio.sleep(0)
            value = self.truth[key]
            for _ in range(behind):
                await asyncio.sleep(0)
            return value

        served = await self.kept.get_or_load(key, load)
        assert served >= told, "served what was announced as changed before it was asked for"
        replaced_at = self.since.get((key, served))
        # Without a word it is known for its life at most, from the begin of its read; a read that others
        # share may have begun that much before.
        assert replaced_at is None or asked_at - replaced_at <= LIFE.total_seconds()
        assert self.kept.stats().entries <= 1


async def step(world: World, name: str, *arguments) -> None:
    if name == "ask":
        world.tasks.append(asyncio.create_task(world.ask(*arguments)))
    elif name == "wait":
        world.clock.advance(timedelta(seconds=arguments[0]))
    elif name == "turn":
        for _ in range(arguments[0]):
            await asyncio.sleep(0)
    elif name == "cancel":
        for task in world.tasks[arguments[0] : arguments[0] + 1]:
            task.cancel()
    else:
        world.change(arguments[0])
        if name == "change and tell":
            world.tell(arguments[0], everything=arguments[1])


async def play(actions: list[tuple]) -> None:
    world = World()
    for action in actions:
        await step(world, *action)
    for outcome in await asyncio.wait_for(asyncio.gather(*world.tasks, return_exceptions=True), 10):
        if isinstance(outcome, Exception):
            raise outcome


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_no_task_is_served_a_value_older_than_the_bound(actions):
    asyncio.run(play(actions))

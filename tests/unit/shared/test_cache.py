"""What the bounded memory keeps, what leaves it, and what it never hands out."""

import asyncio
from datetime import timedelta

import pytest

from shared.cache import Cache, CacheBounds
from tests.fakes.clock import FakeClock

LIFE = timedelta(seconds=60)
TICK = timedelta(microseconds=1)


def cache(clock=None, *, entries=3, size_bytes=None, weigh=None):
    bounds = CacheBounds(entries=entries, life=LIFE, size_bytes=size_bytes)
    return Cache[str, str](bounds=bounds, clock=clock or FakeClock(), weigh=weigh)


class Source:
    """Answers with what it holds now, when it is let."""

    def __init__(self, value="old"):
        self.value, self.reads, self.let = value, 0, asyncio.Event()

    async def read(self):
        self.reads += 1
        value = self.value
        await self.let.wait()
        return value

    def now(self):
        self.let.set()
        return self


async def answer(value):
    return value


async def fill(kept, *keys):
    for key in keys:
        await kept.get_or_load(key, lambda key=key: answer(key))


@pytest.mark.parametrize(("age", "known"), [(LIFE - TICK, "a"), (LIFE, None), (LIFE + TICK, None)])
async def test_a_value_ends_with_its_life(age, known):
    clock = FakeClock()
    kept = cache(clock)
    await fill(kept, "a")
    clock.advance(age)
    assert kept.get("a") == known


async def test_the_life_of_a_value_begins_with_the_read_that_brought_it():
    clock, source = FakeClock(), Source()
    kept = cache(clock)
    reading = asyncio.create_task(kept.get_or_load("a", source.read))
    await asyncio.sleep(0)
    clock.advance(LIFE)
    source.now()
    assert await reading == "old"
    assert kept.get("a") is None


async def test_what_was_used_longest_ago_leaves_first():
    kept = cache()
    await fill(kept, "a", "b", "c")
    assert kept.get("a") == "a"
    await fill(kept, "d")
    assert [kept.get(key) for key in "abcd"] == ["a", None, "c", "d"]
    assert kept.stats().evictions == 1


async def test_heavy_values_make_room_by_their_weight_and_one_that_is_too_heavy_is_not_kept():
    kept = cache(entries=100, size_bytes=10, weigh=len)
    for key, value in (("a", "1234"), ("b", "1234"), ("c", "1234")):
        await kept.get_or_load(key, lambda value=value: answer(value))
    assert [kept.get(key) for key in "abc"] == [None, "1234", "1234"]
    assert await kept.get_or_load("d", lambda: answer("x" * 11)) == "x" * 11
    assert (kept.get("d"), kept.stats().size_bytes) == (None, 8)


async def test_many_who_ask_at_once_read_once():
    kept, source = cache(), Source()
    asking = [asyncio.create_task(kept.get_or_load("a", source.read)) for _ in range(50)]
    await asyncio.sleep(0)
    source.now()
    assert set(await asyncio.gather(*asking)) == {"old"}
    assert source.reads == 1


@pytest.mark.parametrize("forget", [lambda kept: kept.forget("a"), lambda kept: kept.forget_all()])
async def test_who_asks_after_a_change_does_not_get_what_was_read_before_it(forget):
    kept, source = cache(), Source()
    before = asyncio.create_task(kept.get_or_load("a", source.read))
    await asyncio.sleep(0)
    source.value = "new"
    forget(kept)
    after = asyncio.create_task(kept.get_or_load("a", source.read))
    await asyncio.sleep(0)
    source.now()
    assert (await before, await after, kept.get("a")) == ("old", "new", "new")


async def test_a_read_that_a_change_overtook_is_not_kept():
    kept, source = cache(), Source()
    reading = asyncio.create_task(kept.get_or_load("a", source.read))
    await asyncio.sleep(0)
    kept.forget_all()
    source.now()
    assert await reading == "old"
    assert kept.get("a") is None
    assert kept.stats().entries == 0


async def test_an_error_is_raised_and_not_kept_and_others_read_for_themselves():
    kept, tries = cache(), []

    async def read():
        tries.append(None)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise LookupError("away")
        return "there"

    answers = await asyncio.gather(*(kept.get_or_load("a", read) for _ in range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away", "there", "there"]


async def test_a_reader_that_is_cancelled_takes_nobody_along():
    kept, source = cache(), Source()
    first = asyncio.create_task(kept.get_or_load("a", source.read))
    await asyncio.sleep(0)
    second = asyncio.create_task(kept.get_or_load("a", source.read))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.now()
    assert await asyncio.wait_for(second, 5) == "old"
    assert kept.get("a") == "old"


async def test_it_tells_what_it_did():
    clock = FakeClock()
    kept = cache(clock)
    assert kept.stats().oldest == timedelta(0)
    await fill(kept, "a", "a", "b")
    clock.advance(TICK)
    stats = kept.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.oldest) == (1, 2, 2, TICK)


@pytest.mark.parametrize("bounds", [{"entries": 0}, {"life": timedelta(0)}, {"size_bytes": 0}])
def test_a_cache_without_bounds_is_none(bounds):
    with pytest.raises(ValueError, match="keeps at least"):
        CacheBounds(**({"entries": 1, "life": LIFE} | bounds))

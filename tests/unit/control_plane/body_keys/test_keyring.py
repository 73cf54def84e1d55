"""What a replica remembers of keys, for how long, and what it refuses."""

from datetime import timedelta

import pytest

from control_plane.body_keys.domain import RESULT_GRACE, BodyKeyId
from control_plane.body_keys.sealing import BodyPlace
from control_plane.body_keys.service import TRY_AGAIN_AFTER, BodyKeyring
from shared.clock import SystemRandom
from shared.errors import KeyUnavailableError, NotFoundError
from shared.ids import BodyId, TenantId
from tests.fakes.body_keys import FakeBodyKeyStore, FakeWrapping, add_key
from tests.fakes.clock import FakeClock

RED, BLUE = TenantId("red"), TenantId("blue")
FIRST = BodyKeyId("bky_01900000-0000-7000-8000-000000000001")
SECOND = BodyKeyId("bky_01900000-0000-7000-8000-000000000002")
BODY = BodyId("bod_1")
LIFE = timedelta(minutes=5)
TICK = timedelta(milliseconds=1)


class Ring:
    def __init__(self):
        self.clock, self.store, self.wrapping = FakeClock(), FakeBodyKeyStore(), FakeWrapping()
        self.ring = BodyKeyring(
            store=self.store, wrapping=self.wrapping, clock=self.clock, random=SystemRandom(), life=LIFE
        )

    def place(self, tenant=RED, content=b"input"):
        return BodyPlace(tenant_id=tenant, body_id=BODY, size_bytes=len(content))


@pytest.fixture
async def ring():
    made = Ring()
    await add_key(made.store, made.wrapping, RED, FIRST, bytes(32))
    made.store.encrypting.add(RED)
    await made.ring.look()
    return made


async def test_a_tenant_that_does_not_encrypt_costs_nothing_and_asks_nobody(ring):
    ring.wrapping.asked.clear()
    assert await ring.ring.seal(BLUE, BODY, b"input") is None
    assert await ring.ring.seal_result(BLUE, BODY, b"input") is None
    assert not ring.wrapping.asked


async def test_nothing_is_needed_while_nobody_encrypts():
    assert not Ring().ring.is_needed


async def test_what_is_sealed_opens_and_shows_nothing(ring):
    sealed = await ring.ring.seal(RED, BODY, b"input")
    assert b"input" not in sealed
    assert await ring.ring.open(ring.place(), sealed) == b"input"
    assert ring.ring.open_at_once(ring.place(), sealed) == b"input"


async def test_new_inputs_are_refused_when_the_key_was_not_confirmed_within_its_life(ring):
    ring.wrapping.away = True
    ring.clock.advance(LIFE)
    assert await ring.ring.seal(RED, BODY, b"input")
    ring.clock.advance(TICK)
    with pytest.raises(KeyUnavailableError):
        await ring.ring.seal(RED, BODY, b"input")
    assert await ring.ring.seal(BLUE, BODY, b"input") is None  # others go on


async def test_what_was_promised_ends_within_the_grace(ring):
    sealed = await ring.ring.seal(RED, BODY, b"input")
    ring.wrapping.away = True
    ring.clock.advance(LIFE + RESULT_GRACE)
    assert await ring.ring.seal_result(RED, BODY, b"output")
    assert await ring.ring.open(ring.place(), sealed) == b"input"
    ring.clock.advance(TICK)
    with pytest.raises(KeyUnavailableError):
        await ring.ring.seal_result(RED, BODY, b"output")
    with pytest.raises(KeyUnavailableError):
        await ring.ring.open(ring.place(), sealed)
    await ring.ring.look()
    assert not ring.ring._held  # and leaves memory


async def test_keys_are_confirmed_anew_before_their_life_ends(ring):
    ring.clock.advance(LIFE / 2 + TICK)
    await ring.ring.look()
    ring.wrapping.away = True
    ring.clock.advance(LIFE)
    assert await ring.ring.seal(RED, BODY, b"input")


async def test_a_custodian_that_is_back_serves_at_once_after_the_pause(ring):
    ring.wrapping.away = True
    ring.clock.advance(LIFE + TICK)
    with pytest.raises(KeyUnavailableError):
        await ring.ring.seal(RED, BODY, b"input")
    asked = ring.wrapping.asked["all"]
    with pytest.raises(KeyUnavailableError):
        await ring.ring.seal(RED, BODY, b"input")
    assert ring.wrapping.asked["all"] == asked  # it is left alone for a moment
    ring.wrapping.away = False
    ring.clock.advance(TRY_AGAIN_AFTER)
    assert await ring.ring.seal(RED, BODY, b"input")


async def test_a_rotated_key_opens_what_it_sealed_and_seals_no_more(ring):
    old = await ring.ring.seal(RED, BODY, b"input")
    await add_key(ring.store, ring.wrapping, RED, SECOND, b"2" * 32)
    await ring.ring.look()
    new = await ring.ring.seal(RED, BODY, b"input")
    assert (FIRST.encode() in old, SECOND.encode() in new) == (True, True)
    ring.clock.advance(LIFE + RESULT_GRACE + TICK)
    await ring.ring.look()
    assert ring.ring.open_at_once(ring.place(), old) is None  # not in memory: fetched for the next time
    await ring.ring.look()
    assert ring.ring.open_at_once(ring.place(), old) == b"input"


async def test_destroyed_keys_leave_memory_and_open_nothing(ring):
    sealed = await ring.ring.seal(RED, BODY, b"input")
    await ring.store.destroy(None, RED)
    await ring.ring.read()
    assert ring.ring.open_at_once(ring.place(), sealed) is None
    with pytest.raises(NotFoundError, match="erased"):
        await ring.ring.open(ring.place(), sealed)
    with pytest.raises(KeyUnavailableError, match="erased"):
        await ring.ring.seal(RED, BODY, b"input")


async def test_a_key_of_another_tenant_opens_nothing(ring):
    sealed = await ring.ring.seal(RED, BODY, b"input")
    assert ring.ring.open_at_once(ring.place(BLUE), sealed) is None
    with pytest.raises(NotFoundError):
        await ring.ring.open(ring.place(BLUE), sealed)

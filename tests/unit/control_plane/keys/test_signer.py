"""Which key signs orders: never one that a session does not know, never one whose time is over."""

from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.keys.domain import CustodyKey
from control_plane.keys.signer import OrderSigner
from shared.errors import DatabaseUnavailableError, KeyUnavailableError
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.keyset_changes import add_key, end_others, following, revoke_key
from shared.signatures import Signature
from tests.fakes.clock import START, FakeClock
from tests.fixtures.keys import ed25519_key, rsa_key

FIRST, SECOND = rsa_key("order"), rsa_key("second")
LIFE = timedelta(days=1)
TICK = timedelta(milliseconds=1)


class Custody:
    """A custodian with the keys that it is given."""

    def __init__(self, *held):
        self.held = list(held)
        self.away = False

    async def keys(self, purpose):
        if self.away:
            raise KeyUnavailableError("away")
        return [
            CustodyKey(purpose=purpose, name="order", version=number, public=key.public)
            for number, key in enumerate(self.held, 1)
        ]

    async def sign(self, key, data):
        held = self.held[key.version - 1]
        return Signature(key_id=key.key_id, key_version=key.version, value=held.sign(data))


class World:
    def __init__(self):
        self.clock, self.custody = FakeClock(), Custody(FIRST)
        self.keyset = Keyset(
            version=1,
            installation="local",
            epoch=1,
            root_key_id=ed25519_key("root").key_id,
            issued_at=START,
            entries=(
                KeysetEntry(
                    purpose=KeyPurpose.ORDER, key=FIRST.public, not_before=START, not_after=START + LIFE
                ),
            ),
        )
        self.known, self.problem, self.taken = None, None, []
        self.signer = OrderSigner(custody=self.custody, keysets=self, observer=self, clock=self.clock)
        self.signer.listen_to(self)

    async def current(self):
        if self.problem is not None:
            raise self.problem
        return self.keyset

    def acknowledged(self):
        return self.known

    def signs_with(self, key, since):
        self.taken.append(key.key_id)

    def keyset_is(self, version): ...

    def change(self, *changes):
        self.keyset = following(self.keyset, *changes, now=self.clock.now())

    def rotate(self, *, overlap=timedelta(hours=1)):
        self.custody.held.append(SECOND)
        at = self.clock.now() + overlap
        self.change(
            add_key(KeyPurpose.ORDER, SECOND.public, now=self.clock.now(), life=LIFE),
            end_others(KeyPurpose.ORDER, SECOND.key_id, at=at),
        )

    async def signs(self):
        signature = await self.signer.sign(b"order")
        return signature.key_id


@pytest.fixture
async def world():
    world = World()
    await world.signer.refresh()
    return world


async def test_signs_with_the_key_that_the_keyset_lists(world):
    assert await world.signs() == FIRST.key_id


async def test_before_anything_is_chosen_nothing_is_signed():
    with pytest.raises(KeyUnavailableError, match="no key has been chosen"):
        await World().signs()


async def test_a_new_key_signs_only_after_every_session_has_its_keyset(world):
    world.known = 1
    world.rotate()
    await world.signer.refresh()
    assert await world.signs() == FIRST.key_id
    world.known = 2
    await world.signer.refresh()
    assert await world.signs() == SECOND.key_id
    assert world.taken == [FIRST.key_id, SECOND.key_id]


async def test_without_sessions_a_new_key_signs_at_once(world):
    world.rotate()
    await world.signer.refresh()
    assert await world.signs() == SECOND.key_id


async def test_a_key_in_custody_that_no_keyset_lists_signs_nothing(world):
    world.custody.held.append(SECOND)
    await world.signer.refresh()
    assert await world.signs() == FIRST.key_id


async def test_the_old_key_stops_at_its_end_even_before_the_next_choice(world):
    world.known = 1
    world.rotate(overlap=timedelta(minutes=1))
    await world.signer.refresh()
    world.clock.advance(timedelta(minutes=1) - TICK)
    assert await world.signs() == FIRST.key_id
    world.clock.advance(TICK)
    with pytest.raises(KeyUnavailableError, match="is over"):
        await world.signs()


async def test_a_revoked_key_signs_nothing_more_and_its_successor_waits_for_the_sessions(world):
    world.known = 1
    world.custody.held.append(SECOND)
    world.change(
        add_key(KeyPurpose.ORDER, SECOND.public, now=START, life=LIFE), revoke_key(FIRST.key_id, at=START)
    )
    await world.signer.refresh()
    with pytest.raises(KeyUnavailableError, match="not every session"):
        await world.signs()
    world.known = 2
    await world.signer.refresh()
    assert await world.signs() == SECOND.key_id


async def test_a_custody_without_a_listed_key_is_told(world):
    world.custody.held = [rsa_key("foreign")]
    other = World()
    other.custody.held = [rsa_key("foreign")]
    await other.signer.refresh()
    with pytest.raises(KeyUnavailableError, match="holds no order key that keyset 1 lists"):
        await other.signs()


async def test_a_database_or_custodian_that_is_away_changes_nothing(world):
    world.problem = DatabaseUnavailableError("away")
    await world.signer.refresh()
    assert await world.signs() == FIRST.key_id
    world.problem, world.custody.away = None, True
    world.rotate()
    await world.signer.refresh()
    assert await world.signs() == FIRST.key_id
    world.custody.away = False
    await world.signer.refresh()
    assert await world.signs() == SECOND.key_id


async def test_a_key_that_is_away_at_the_start_is_found_later():
    world = World()
    world.custody.away = True
    await world.signer.refresh()
    with pytest.raises(KeyUnavailableError, match="away"):
        await world.signs()
    world.custody.away = False
    await world.signer.refresh()
    assert await world.signs() == FIRST.key_id


async def test_a_key_for_another_purpose_signs_no_order(world):
    log = KeysetEntry(
        purpose=KeyPurpose.PUBLISHER, key=SECOND.public, not_before=START, not_after=START + LIFE
    )
    world.keyset = replace(world.keyset, version=2, entries=(*world.keyset.entries, log))
    world.custody.held.append(SECOND)
    await world.signer.refresh()
    assert await world.signs() == FIRST.key_id

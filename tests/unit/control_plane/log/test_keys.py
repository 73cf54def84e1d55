"""Which key signs checkpoints: the newest, and none that a session anywhere does not know (design rule 12)."""

from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.keys.domain import CustodyKey
from control_plane.log.keys import SETTLED, CustodyLogKeys
from shared.errors import KeyUnavailableError
from shared.keyset import KeyPurpose, Keyset
from shared.keyset_changes import add_key, end_others, following, revoke_key
from shared.signatures import Signature
from tests.fakes.clock import START, FakeClock
from tests.fixtures.keys import ed25519_key

OLD, NEW = ed25519_key("log"), ed25519_key("log 2")
LIFE = timedelta(days=1)
TICK = timedelta(milliseconds=1)


class World:
    """Custody, keyset and sessions around one log key."""

    def __init__(self):
        self.clock, self.held, self.known, self.asked = FakeClock(), [OLD], None, 0
        empty = Keyset(
            version=1,
            installation="local",
            epoch=1,
            root_key_id=ed25519_key("root").key_id,
            issued_at=START,
            entries=(),
        )
        self.keyset = replace(
            following(empty, add_key(KeyPurpose.LOG, OLD.public, now=START, life=LIFE), now=START), version=1
        )
        self.log_keys = self.started()

    def started(self):
        return CustodyLogKeys(custody=self, keysets=self, sessions=self, clock=self.clock)

    async def current(self):
        return self.keyset

    async def keys(self, purpose):
        self.asked += 1
        return [
            CustodyKey(purpose=purpose, name="log", version=number, public=key.public)
            for number, key in enumerate(self.held, 1)
        ]

    async def sign(self, key, data):
        held = self.held[key.version - 1]
        return Signature(key_id=key.key_id, key_version=key.version, value=held.sign(data))

    def acknowledged(self):
        return self.known

    async def signs(self):
        public = await self.log_keys.public()
        if public is None:
            with pytest.raises(KeyUnavailableError):
                await self.log_keys.sign(b"checkpoint")
            return None
        public.verify((await self.log_keys.sign(b"checkpoint")).value, b"checkpoint")
        return public.key_id

    def change(self, *changes):
        self.keyset = following(self.keyset, *changes, now=self.clock.now())

    def rotate(self, *, overlap):
        self.held.append(NEW)
        now = self.clock.now()
        self.change(
            add_key(KeyPurpose.LOG, NEW.public, now=now, life=LIFE),
            end_others(KeyPurpose.LOG, NEW.key_id, at=now + overlap),
        )


@pytest.fixture
def world():
    return World()


async def test_at_the_start_the_listed_key_signs_at_once(world):
    assert await world.signs() == OLD.key_id


async def test_the_new_key_signs_once_every_session_has_its_keyset_long_before_the_old_one_ends(world):
    assert await world.signs() == OLD.key_id
    world.known = 1
    world.rotate(overlap=timedelta(hours=1))
    assert await world.signs() == OLD.key_id
    world.clock.advance(SETTLED)
    assert await world.signs() == OLD.key_id  # a session of this replica is behind
    world.known = 2
    assert await world.signs() == NEW.key_id
    world.known = 1  # a session that is new, and behind: it is given the keyset with its welcome
    assert await world.signs() == NEW.key_id


async def test_sessions_of_other_replicas_are_given_their_time(world):
    await world.signs()
    world.rotate(overlap=timedelta(hours=1))
    await world.signs()
    world.clock.advance(SETTLED - TICK)
    assert await world.signs() == OLD.key_id
    world.clock.advance(TICK)
    assert await world.signs() == NEW.key_id


async def test_nothing_is_signed_while_the_old_key_is_revoked_and_a_session_does_not_know_the_new_one(world):
    await world.signs()
    world.known = 1
    world.rotate(overlap=timedelta(hours=1))
    world.change(revoke_key(OLD.key_id, at=world.clock.now()))
    assert await world.signs() is None
    world.known = world.keyset.version
    world.clock.advance(SETTLED)
    assert await world.signs() == NEW.key_id


async def test_a_replica_that_starts_later_signs_with_the_new_key(world):
    world.rotate(overlap=timedelta(hours=1))
    world.log_keys = world.started()
    assert await world.signs() == NEW.key_id


async def test_custody_is_asked_once_for_a_keyset(world):
    for _ in range(5):
        await world.signs()
    assert world.asked == 1
    world.rotate(overlap=timedelta(hours=1))
    for _ in range(5):
        await world.signs()
    assert world.asked == 2


async def test_without_a_key_in_custody_nothing_is_signed(world):
    world.held = [NEW]
    assert await world.signs() is None

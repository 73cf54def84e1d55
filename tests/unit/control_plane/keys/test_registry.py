"""The keyset that the control plane goes by: verified, remembered for a second, never an older one."""

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.installation.keysets import first_keyset, with_publisher
from control_plane.installation.ports import StoredKeyset
from control_plane.keys.registry import KEYSET_LIFE, KeysetRegistry
from shared.errors import RollbackError, UnavailableError, UnknownKeyError, VerificationError
from shared.ids import InstallationId
from shared.keyset import sign_keyset
from tests.fakes.clock import FakeClock
from tests.fixtures.keys import ed25519_key, rsa_key, signer

ROOT = ed25519_key("root")
LOCAL = InstallationId("local")
TICK = timedelta(milliseconds=1)


class Shelf:
    """The newest keyset of a database."""

    stored = None
    asked = 0

    @asynccontextmanager
    async def transaction(self):
        yield self

    async def newest_keyset(self, tx):
        self.asked += 1
        return self.stored

    async def newest_statement(self, tx):
        return None

    async def put(self, keyset, root=ROOT):
        self.stored = StoredKeyset(
            version=keyset.version,
            envelope=await sign_keyset(replace(keyset, root_key_id=root.key_id), [signer(root)]),
        )


class Desk:
    def __init__(self):
        self.clock, self.shelf = FakeClock(), Shelf()
        self.registry = KeysetRegistry(
            database=self.shelf, store=self.shelf, root=ROOT.public, installation=LOCAL, clock=self.clock
        )
        self.first = first_keyset(
            installation=LOCAL,
            root=ROOT.public,
            order=rsa_key("order").public,
            policy=ed25519_key("policy").public,
            log=ed25519_key("log").public,
            now=self.clock.now(),
        )
        self.second = with_publisher(self.first, rsa_key("publisher").public, self.clock.now())


@pytest.fixture
async def desk():
    desk = Desk()
    await desk.shelf.put(desk.first)
    return desk


async def test_a_new_publisher_counts_after_one_second_at_the_latest(desk):
    assert await desk.registry.publishers(desk.clock.now()) == {}
    await desk.shelf.put(desk.second)
    desk.clock.advance(KEYSET_LIFE - TICK)
    assert await desk.registry.publishers(desk.clock.now()) == {}
    desk.clock.advance(TICK)
    assert set(await desk.registry.publishers(desk.clock.now())) == {rsa_key("publisher").key_id}


async def test_within_the_second_nothing_is_read(desk):
    for _ in range(5):
        assert await desk.registry.newest() == (1, desk.shelf.stored.envelope)
    assert desk.shelf.asked == 1


async def test_a_keyset_of_another_root_is_refused(desk):
    await desk.shelf.put(desk.second, root=ed25519_key("intruder"))
    with pytest.raises(UnknownKeyError):
        await desk.registry.current()


async def test_a_keyset_of_another_installation_is_refused(desk):
    await desk.shelf.put(replace(desk.second, installation="other"))
    with pytest.raises(VerificationError):
        await desk.registry.current()


async def test_rollback(desk):
    await desk.shelf.put(desk.second)
    await desk.registry.current()
    await desk.shelf.put(desk.first)
    desk.clock.advance(KEYSET_LIFE)
    with pytest.raises(RollbackError):
        await desk.registry.current()


async def test_a_database_without_a_keyset_is_not_trusted_blindly(desk):
    desk.shelf.stored = None
    with pytest.raises(UnavailableError):
        await desk.registry.newest()

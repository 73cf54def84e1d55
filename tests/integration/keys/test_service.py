"""The service of keys on a real Postgres as the service's role: keysets in order, and every attack on them."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from control_plane.audit.store import PostgresAuditStore
from control_plane.database.engine import create_engine
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.installation.keysets import first_keyset
from control_plane.installation.ports import StoredKeyset
from control_plane.keys.domain import KeyState
from control_plane.keys.files import FileCustody
from control_plane.keys.registry import KeysetRegistry
from control_plane.keys.service import KeyService
from control_plane.keys.signer import OrderSigner
from control_plane.keys.store import PostgresKeyStore
from shared.clock import SystemClock, SystemRandom
from shared.dsse import ORDERS_TYPE, sign_envelope
from shared.errors import (
    ConflictError,
    InvalidInputError,
    KeyUnavailableError,
    PayloadTypeError,
    UnknownKeyError,
    VerificationError,
)
from shared.freshness import FreshnessStatement, sign_statement
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, encode_keyset, sign_keyset
from shared.keyset_changes import add_key, end_others, following, revoke_key
from tests.builders.roots import handover, with_chain
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.fixtures.postgres import OWNER, SERVICE

ROOT, NEXT_ROOT, FRESH = ed25519_key("root"), ed25519_key("root 2"), ed25519_key("freshness")
LOCAL = InstallationId("local")
ADMIN = "spiffe://local/caller/admin"
DAY = timedelta(days=1)


class Silent:
    def custody(self, operation, seconds, problem): ...
    def signs_with(self, key, since): ...
    def keyset_is(self, version): ...
    def statement(self, issued_at): ...


class Sessions:
    known = None

    def acknowledged(self):
        return self.known


class Told(list):
    def notify(self, channel, payloads=()):
        self.append(str(channel))

    notify_others = notify


@dataclass
class Desk:
    service: KeyService
    signer: OrderSigner
    registry: KeysetRegistry
    custody: FileCustody
    sessions: Sessions
    told: Told
    engine: object
    keyset: object

    async def rows(self, query):
        async with self.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]

    async def signed(self, *changes, root=ROOT, **fields):
        keyset = following(self.keyset, *changes, now=datetime.now(UTC))
        keyset = replace(keyset, version=self.keyset.version + 1, root_key_id=root.key_id)
        keyset = replace(keyset, **fields)
        return keyset, await sign_keyset(keyset, [signer(root)])

    async def publish(self, *changes, **fields):
        self.keyset, envelope = await self.signed(*changes, **fields)
        version = await self.service.publish(ADMIN, envelope)
        self.registry.changed()
        return version


@pytest.fixture
def name(postgres_18):
    made = postgres_18.new_database()
    yield made
    postgres_18.drop_database(made)


@pytest.fixture
async def desk(postgres_18, name, tmp_path):
    owner = create_engine(postgres_18.url(name, user=OWNER), application="test")
    async with owner.begin() as connection:
        await connection.execute(text("INSERT INTO tenants (tenant_id) VALUES ('default')"))
    engine = create_engine(postgres_18.url(name, user=SERVICE), application="test")
    told = Told()
    database, clock, store = PostgresDatabase(engine, notifier=told), SystemClock(), PostgresKeyStore()
    custody, sessions = FileCustody(tmp_path / "keys"), Sessions()
    order = await custody.create(KeyPurpose.ORDER)
    keyset = first_keyset(
        installation=LOCAL,
        root=ROOT.public,
        order=order.public,
        policy=ed25519_key("policy").public,
        log=ed25519_key("log").public,
        now=clock.now(),
    )
    async with database.transaction() as tx:
        envelope = await sign_keyset(keyset, [signer(ROOT)])
        await store.add_keyset(tx, StoredKeyset(version=1, envelope=envelope))
    told.clear()
    registry = KeysetRegistry(
        database=database, store=store, root=ROOT.public, installation=LOCAL, clock=clock
    )
    order_signer = OrderSigner(custody=custody, keysets=registry, observer=Silent(), clock=clock)
    order_signer.listen_to(sessions)
    await order_signer.refresh()
    service = KeyService(
        database=database,
        store=store,
        custody=custody,
        signing=order_signer,
        sessions=sessions,
        audit=PostgresAuditStore(database),
        root=ROOT.public,
        installation=LOCAL,
        observer=Silent(),
        clock=clock,
        random=SystemRandom(),
    )
    yield Desk(service, order_signer, registry, custody, sessions, told, owner, keyset)
    await database.close()
    await owner.dispose()


async def states(desk):
    return {report.key_id: report.state for report in (await desk.service.list_keys()).keys}


async def test_a_rotation_from_the_new_key_to_the_end_of_the_old_one(desk):
    old = desk.signer.key.key_id
    made = await desk.service.create(ADMIN, KeyPurpose.ORDER)
    assert (made.state, (await states(desk))[made.key_id]) == (KeyState.PENDING, KeyState.PENDING)
    assert (await desk.service.create(ADMIN, KeyPurpose.ORDER)).key_id == made.key_id
    desk.sessions.known = 1
    now = datetime.now(UTC)
    assert (
        await desk.publish(
            add_key(KeyPurpose.ORDER, made.public, now=now, life=DAY),
            end_others(KeyPurpose.ORDER, made.key_id, at=now + DAY),
        )
        == 2
    )
    assert "af_keysets" in desk.told
    await desk.signer.refresh()
    found = await states(desk)
    assert (found[old], found[made.key_id]) == (KeyState.SIGNING, KeyState.LISTED)
    desk.sessions.known = 2
    await desk.signer.refresh()
    found = await states(desk)
    assert (found[old], found[made.key_id]) == (KeyState.LISTED, KeyState.SIGNING)
    assert await desk.rows("SELECT actor, action, subject FROM audit_entries ORDER BY recorded_at") == [
        (ADMIN, "key.created", made.key_id),
        (ADMIN, "keyset.published", "2"),
    ]


async def test_a_log_key_can_be_made_and_listed(desk):
    made = await desk.service.create(ADMIN, KeyPurpose.LOG)
    await desk.publish(add_key(KeyPurpose.LOG, made.public, now=datetime.now(UTC), life=DAY))
    assert (await states(desk))[made.key_id] is KeyState.LISTED


async def test_publishing_again_changes_nothing(desk):
    _, envelope = await desk.signed(revoke_key(desk.signer.key.key_id, at=datetime.now(UTC)))
    assert await desk.service.publish(ADMIN, envelope) == 2
    assert await desk.service.publish(ADMIN, envelope) == 2
    assert await desk.rows("SELECT count(*) FROM keysets") == [(2,)]


async def test_a_revoked_key_signs_nothing_after_the_next_choice(desk):
    old = desk.signer.key.key_id
    await desk.publish(revoke_key(old, at=datetime.now(UTC)))
    await desk.signer.refresh()
    assert (await states(desk))[old] is KeyState.REVOKED
    with pytest.raises(KeyUnavailableError):
        await desk.signer.sign(b"order")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 1}, ConflictError),  # another one of the version in force
        ({"version": 3}, ConflictError),  # one is left out
        ({"epoch": 2}, ConflictError),
        ({"installation": "another"}, VerificationError),
    ],
)
async def test_keysets_that_do_not_follow_are_refused_and_change_nothing(desk, fields, error):
    _, envelope = await desk.signed(revoke_key(desk.signer.key.key_id, at=datetime.now(UTC)), **fields)
    with pytest.raises(error):
        await desk.service.publish(ADMIN, envelope)
    assert await desk.rows("SELECT max(version), count(*) FROM keysets") == [(1, 1)]
    assert await desk.rows("SELECT count(*) FROM audit_entries") == [(0,)]


async def test_rollback_to_a_keyset_before_a_revocation(desk):
    first = (await desk.service.newest()).envelope
    await desk.publish(revoke_key(desk.signer.key.key_id, at=datetime.now(UTC)))
    with pytest.raises(ConflictError):
        await desk.service.publish(ADMIN, first)


async def test_a_revocation_that_is_taken_back_is_refused_even_from_the_root(desk):
    before = desk.keyset
    await desk.publish(revoke_key(desk.signer.key.key_id, at=datetime.now(UTC)))
    _, envelope = await desk.signed(entries=before.entries)
    with pytest.raises(InvalidInputError, match="not taken back"):
        await desk.service.publish(ADMIN, envelope)


async def test_a_keyset_by_another_root_or_by_a_key_of_the_keyset_is_refused(desk):
    for key in (ed25519_key("another root"), rsa_key("order")):
        _, envelope = await desk.signed(revoke_key(desk.signer.key.key_id, at=datetime.now(UTC)), root=key)
        with pytest.raises(UnknownKeyError):
            await desk.service.publish(ADMIN, envelope)


async def test_a_payload_that_the_root_signed_as_something_else_is_no_keyset(desk):
    keyset, _ = await desk.signed(revoke_key(desk.signer.key.key_id, at=datetime.now(UTC)))
    with pytest.raises(PayloadTypeError):
        await desk.service.publish(
            ADMIN, await sign_envelope(ORDERS_TYPE, encode_keyset(keyset), [signer(ROOT)])
        )


@pytest.mark.parametrize("purpose", [KeyPurpose.FRESHNESS, KeyPurpose.PUBLISHER, KeyPurpose.COMPILER])
async def test_keys_that_belong_elsewhere_are_not_made_here(desk, purpose):
    with pytest.raises(InvalidInputError):
        await desk.service.create(ADMIN, purpose)
    assert await desk.rows("SELECT count(*) FROM audit_entries") == [(0,)]


async def fresh(*, version=1, ago=timedelta(0), installation=LOCAL, key=FRESH):
    made = FreshnessStatement(
        installation=InstallationId(installation), keyset_version=version, issued_at=datetime.now(UTC) - ago
    )
    return await sign_statement(made, signer(key))


async def test_statements_of_freshness_are_relayed_newest_only(desk):
    await desk.publish(add_key(KeyPurpose.FRESHNESS, FRESH.public, now=datetime.now(UTC), life=DAY))
    older, newer = await fresh(version=2, ago=timedelta(seconds=5)), await fresh(version=2)
    desk.told.clear()
    assert await desk.service.put_freshness(newer)
    assert "af_keysets" in desk.told
    assert not await desk.service.put_freshness(newer)
    assert not await desk.service.put_freshness(older)
    assert (await desk.service.newest()).freshness == newer
    desk.registry.changed()
    assert await desk.registry.freshness() == newer


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"key": ed25519_key("stranger")}, UnknownKeyError),
        ({"key": rsa_key("order")}, UnknownKeyError),
        ({"installation": "another"}, VerificationError),
        ({"version": 9}, InvalidInputError),
        ({"ago": -timedelta(seconds=60)}, InvalidInputError),
    ],
    ids=["stranger", "order key", "installation", "keyset that is none", "future"],
)
async def test_statements_that_say_too_much_are_refused(desk, changes, error):
    await desk.publish(add_key(KeyPurpose.FRESHNESS, FRESH.public, now=datetime.now(UTC), life=DAY))
    with pytest.raises(error):
        await desk.service.put_freshness(await fresh(**changes))
    assert (await desk.service.newest()).freshness == b""


async def test_a_custodian_that_is_away_is_told_and_the_keyset_is_shown(desk, tmp_path):
    (tmp_path / "keys" / "order.key").chmod(0o644)
    found = await desk.service.list_keys()
    assert "0644" in found.custody_problem
    assert len(found.keys) == 3


# --- root N hands over to root N+1


async def test_the_next_root_takes_over_and_what_it_signs_is_relayed_with_the_chain(desk):
    pinned = desk.keyset.root_key_id
    chain = await handover(ROOT, NEXT_ROOT)
    desk.keyset, envelope = await desk.signed(root=NEXT_ROOT)
    with pytest.raises(UnknownKeyError):
        await desk.service.publish(ADMIN, envelope)
    offered = with_chain(envelope, chain)
    assert await desk.service.publish(ADMIN, offered) == 2
    assert await desk.service.publish(ADMIN, offered) == 2
    assert (await desk.service.newest()).envelope == offered

    # From here on nobody has to know the chain: it is put in front of what the new root signs.
    desk.keyset, envelope = await desk.signed(root=NEXT_ROOT)
    assert await desk.service.publish(ADMIN, envelope) == 3
    assert (await desk.service.newest()).envelope == with_chain(envelope, chain)
    desk.registry.changed()
    assert (await desk.registry.current()).root_key_id == NEXT_ROOT.key_id
    assert await desk.registry.newest() == (3, with_chain(envelope, chain))
    first = "SELECT details->>'change_1' FROM audit_entries ORDER BY recorded_at LIMIT 1"
    assert await desk.rows(first) == [(f"root {pinned} hands over to {NEXT_ROOT.key_id}",)]


async def test_root_rollback_forged_chains_and_skipped_links_are_refused_and_change_nothing(desk):
    chain, thief = await handover(ROOT, NEXT_ROOT), ed25519_key("thief")
    desk.keyset, envelope = await desk.signed(root=NEXT_ROOT)
    await desk.service.publish(ADMIN, with_chain(envelope, chain))
    _, by_the_old = await desk.signed(root=ROOT)
    _, by_a_thief = await desk.signed(root=thief)
    for attack in (
        by_the_old,
        with_chain(by_the_old, chain),
        with_chain(by_the_old, chain, await handover(NEXT_ROOT, ROOT, by=(ROOT, NEXT_ROOT))),
        with_chain(by_the_old, await handover(NEXT_ROOT, ROOT)),
        with_chain(by_a_thief, await handover(ROOT, thief)),
        with_chain(by_a_thief, chain, await handover(NEXT_ROOT, thief, by=(thief, thief))),
        with_chain(by_a_thief, chain, await handover(ed25519_key("root 3"), thief)),
    ):
        with pytest.raises(VerificationError):
            await desk.service.publish(ADMIN, attack)
    assert await desk.rows("SELECT max(version), count(*) FROM keysets") == [(2, 2)]


async def test_a_replica_that_knows_the_new_root_does_not_go_back_with_the_database(desk):
    """Whoever can write to the database and has the old root key makes no replica believe it again."""
    desk.keyset, envelope = await desk.signed(root=NEXT_ROOT)
    await desk.service.publish(ADMIN, with_chain(envelope, await handover(ROOT, NEXT_ROOT)))
    desk.registry.changed()
    await desk.registry.current()
    _, by_the_old = await desk.signed(root=ROOT)
    async with desk.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO keysets (version, envelope) VALUES (3, :envelope)"), {"envelope": by_the_old}
        )
    desk.registry.changed()
    with pytest.raises(UnknownKeyError):
        await desk.registry.current()

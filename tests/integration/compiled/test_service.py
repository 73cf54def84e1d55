"""What compiling nodes hand in, on a real Postgres with the rights of dispatch: bounds, attacks, revocations."""

import asyncio
import os
from dataclasses import replace

import pytest
from sqlalchemy import text

from control_plane.audit.store import PostgresAuditStore
from control_plane.compiled import service
from control_plane.compiled.service import CompiledService
from control_plane.compiled.store import PostgresCompiledStore
from control_plane.database.engine import create_engine
from control_plane.database.unit_of_work import DISPATCH_ROLE, PostgresDatabase
from shared.clock import SystemRandom
from shared.compiled import PIECE_BYTES, CompiledStatement, Target, pack_piece, sign_compiled, unpack_piece
from shared.digests import sha256_digest
from shared.errors import (
    InvalidInputError,
    MalformedError,
    NotFoundError,
    PermissionDeniedError,
    PolicyDeniedError,
    ResourceExhaustedError,
    UnknownKeyError,
    VerificationError,
)
from shared.ids import TEMPLATE_VERSION, InstallationId, NodeId, new_id
from shared.keyset import KeyPurpose
from shared.manifest import Profile
from tests.builders.executions import MODULE, OTHER_TENANT, TEMPLATE, TENANT
from tests.fakes.answers import OpenGate
from tests.fakes.clock import FakeClock
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.fixtures.postgres import OWNER, SERVICE
from tests.fixtures.world import furnish
from tests.unit.shared.builders import INSTALLATION, a_keyset, an_entry

ROOT, COMPILER, SECOND = rsa_key("root"), ed25519_key("compiler"), ed25519_key("compiler-2")
NODE = NodeId("nod_compiler")
CODE = os.urandom(PIECE_BYTES) + b"the rest"
HERE = Target(
    profile=Profile.DEFAULT,
    engine_name="wasmer",
    engine_version="7",
    config_digest=sha256_digest(b"config"),
    cpu_features="avx,sse2",
)
BOUND = 4 * PIECE_BYTES
BOUND_S = 30.0


class Keysets:
    def __init__(self) -> None:
        self.keyset = a_keyset(ROOT, compiler_entry(COMPILER))

    async def current(self):
        return self.keyset

    async def newest(self):
        return 1, b"keyset"


class ShutGate:
    async def pull(self, **_):
        raise PolicyDeniedError("this node may not have it")


class Modules:
    async def module(self, module_digest, *, offset_bytes, max_bytes):
        return b"\0asm"[offset_bytes : offset_bytes + max_bytes]


class Silent:
    def notify(self, channel, payloads=()): ...

    notify_others = notify


def compiler_entry(key, **changes):
    return an_entry(purpose=KeyPurpose.COMPILER, key=key.public, **changes)


class Desk:
    def __init__(self, engine, owner) -> None:
        self.owner, self.clock, self.keysets = owner, FakeClock(), Keysets()
        self.database = PostgresDatabase(engine, notifier=Silent())
        self.store = PostgresCompiledStore(self.database, PostgresAuditStore(self.database))
        self.service = self.with_gate(OpenGate())

    def with_gate(self, gate, *, bound_bytes=BOUND) -> CompiledService:
        return CompiledService(
            store=self.store,
            modules=Modules(),
            keysets=self.keysets,
            gate=gate,
            installation=InstallationId(INSTALLATION),
            bound_bytes=bound_bytes,
            clock=self.clock,
            random=SystemRandom(),
        )

    async def hand_in(self, *, node=NODE, code=CODE, key=COMPILER, pieces=None, **changes) -> bool:
        statement = CompiledStatement(
            installation=InstallationId(INSTALLATION),
            module_digest=MODULE,
            target=HERE,
            artifact_digest=sha256_digest(code),
            artifact_bytes=len(code),
            piece_digests=tuple(map(sha256_digest, pieces_of(code))),
            compiled_at=self.clock.now(),
        )
        envelope = await sign_compiled(replace(statement, **changes), signer(key))
        return await self.service.keep(node, TENANT, envelope, sending(pieces or pieces_of(code)))

    async def wanted(self, *targets) -> list:
        page, _ = await self.service.wanted(targets or [HERE], page_size=10, page_token="")
        return [one.module_digest for one in page.items]

    async def rows(self, query: str) -> list:
        async with self.owner.begin() as connection:
            result = await connection.execute(text(query))
            return [tuple(row) for row in result] if result.returns_rows else []


def pieces_of(code: bytes) -> list[bytes]:
    return [pack_piece(code[at : at + PIECE_BYTES]) for at in range(0, len(code), PIECE_BYTES)]


async def sending(pieces):
    for piece in pieces:
        yield piece


@pytest.fixture
def name(postgres_18):
    made = postgres_18.new_database()
    yield made
    postgres_18.drop_database(made)


@pytest.fixture
async def desk(postgres_18, name):
    owner = create_engine(postgres_18.url(name, user=OWNER), application="test")
    await furnish(owner, nodes=())
    engine = create_engine(postgres_18.url(name, user=SERVICE), application="test", role=DISPATCH_ROLE)
    yield Desk(engine, owner)
    await engine.dispose()
    await owner.dispose()


async def left_behind(desk) -> tuple:
    (counts,) = await desk.rows(
        "SELECT (SELECT count(*) FROM compiled_artifacts), (SELECT count(*) FROM compiled_pieces)"
    )
    return counts


async def test_what_is_handed_in_is_found_for_its_engine_and_wanted_no_more(desk):
    assert await desk.wanted() == [MODULE, MODULE]  # of two tenants

    assert await desk.hand_in() is True

    found = await desk.service.find(MODULE, HERE)
    code = b"".join([unpack_piece(piece) async for piece in desk.service.pieces(found)])
    assert code == CODE
    assert await desk.wanted() == []
    other = replace(HERE, cpu_features="avx999")
    assert await desk.service.find(MODULE, other) is None
    assert await desk.wanted(other) == [MODULE, MODULE]
    ((actor, subject),) = await desk.rows(
        "SELECT actor, subject FROM audit_entries WHERE action = 'artifact.compiled'"
    )
    assert (actor, subject) == (f"node:{NODE}", MODULE)


@pytest.mark.parametrize("held", [[], [0], [1], [0, 1]])
async def test_what_a_node_holds_is_not_read(desk, held):
    await desk.hand_in()
    found = await desk.service.find(MODULE, HERE)
    packed = pieces_of(CODE)
    named = {sha256_digest(packed[number]) for number in held} | {sha256_digest(b"of something else")}

    left_out = await desk.service.held(found, named)
    sent = [piece async for piece in desk.service.pieces(found, without=left_out)]

    assert list(left_out) == held
    assert sent == [piece for number, piece in enumerate(packed) if number not in held]


async def test_more_pieces_than_are_read_at_once_come_in_order(desk, monkeypatch):
    monkeypatch.setattr(service, "READ_PIECES", 2)
    code = os.urandom(3 * PIECE_BYTES) + b"end"
    desk.service = desk.with_gate(OpenGate(), bound_bytes=8 * PIECE_BYTES)
    await desk.hand_in(code=code)
    found = await desk.service.find(MODULE, HERE)

    for without in ([], [0], [1, 3], [0, 1, 2]):
        sent = [piece async for piece in desk.service.pieces(found, without=without)]
        assert sent == [piece for number, piece in enumerate(pieces_of(code)) if number not in without]


async def test_what_was_dropped_meanwhile_ends_the_pieces(desk):
    await desk.hand_in()
    found = await desk.service.find(MODULE, HERE)
    await desk.rows("DELETE FROM compiled_artifacts")

    with pytest.raises(NotFoundError):
        await anext(desk.service.pieces(found, without=[0]))


async def test_nothing_is_left_out_on_a_statement_of_a_key_that_counts_no_more(desk):
    await desk.hand_in()
    found = await desk.service.find(MODULE, HERE)
    desk.keysets.keyset = a_keyset(ROOT, compiler_entry(SECOND), version=2)

    with pytest.raises(VerificationError):
        await desk.service.held(found, {sha256_digest(pieces_of(CODE)[0])})


async def test_a_repeat_changes_nothing(desk):
    await desk.hand_in()
    assert await desk.hand_in(code=b"other code") is False
    assert await left_behind(desk) == (1, 2)


async def test_what_a_revoked_key_vouched_for_is_found_no_more_and_gives_way_to_anothers(desk):
    await desk.hand_in()
    desk.keysets.keyset = a_keyset(
        ROOT, compiler_entry(COMPILER, revoked_at=desk.clock.now()), compiler_entry(SECOND), version=2
    )

    assert await desk.service.find(MODULE, HERE) is None
    assert await desk.wanted() == [MODULE, MODULE]
    with pytest.raises(UnknownKeyError):
        await desk.hand_in()

    assert await desk.hand_in(key=SECOND) is True
    assert await left_behind(desk) == (1, 2)


@pytest.mark.parametrize("key", [rsa_key("order"), ed25519_key("stranger"), ROOT])
async def test_another_key_than_a_compilers_hands_in_nothing(desk, key):
    with pytest.raises(VerificationError):
        await desk.hand_in(key=key)
    assert await left_behind(desk) == (0, 0)


LIES = {
    "altered": (InvalidInputError, {}, [pieces_of(CODE)[0], pack_piece(b"the Rest")]),
    "cut": (InvalidInputError, {}, pieces_of(CODE)[:1]),
    "longer": (InvalidInputError, {}, [*pieces_of(CODE), pack_piece(b"more")]),
    "in other pieces": (InvalidInputError, {}, [pack_piece(CODE[:8]), *pieces_of(CODE[8:])]),
    "of another size": (MalformedError, {"artifact_bytes": 1}, None),
    "an unknown module": (NotFoundError, {"module_digest": sha256_digest(b"unknown")}, None),
    "of another installation": (VerificationError, {"installation": InstallationId("other")}, None),
    "too much": (
        ResourceExhaustedError,
        {"artifact_bytes": BOUND + 1, "piece_digests": (sha256_digest(b""),) * 5},
        None,
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_is_not_as_it_says_leaves_nothing_behind(desk, lie):
    error, changes, pieces = LIES[lie]
    with pytest.raises(error):
        await desk.hand_in(pieces=pieces, **changes)
    assert await left_behind(desk) == (0, 0)


async def test_a_sender_that_breaks_off_leaves_nothing_behind(desk):
    async def breaking():
        yield pieces_of(CODE)[0]
        raise PermissionDeniedError("gone")

    statement = CompiledStatement(
        installation=InstallationId(INSTALLATION),
        module_digest=MODULE,
        target=HERE,
        artifact_digest=sha256_digest(CODE),
        artifact_bytes=len(CODE),
        piece_digests=tuple(map(sha256_digest, pieces_of(CODE))),
        compiled_at=desk.clock.now(),
    )
    envelope = await sign_compiled(statement, signer(COMPILER))
    with pytest.raises(PermissionDeniedError):
        await desk.service.keep(NODE, TENANT, envelope, breaking())
    assert await left_behind(desk) == (0, 0)


async def test_all_artifacts_together_have_a_bound(desk):
    for features in ("a", "b"):
        await desk.hand_in(target=replace(HERE, cpu_features=features))
    with pytest.raises(ResourceExhaustedError) as refused:
        await desk.hand_in(target=replace(HERE, cpu_features="c"), code=os.urandom(3 * PIECE_BYTES))
    assert "AF_CONTROL_MAX_COMPILED_BYTES" in str(refused.value.hint)
    assert await left_behind(desk) == (2, 4)


async def test_bytes_that_are_not_counted_are_not_kept(desk):
    """A statement of one byte must not bring a whole piece along, nor many of them nothing."""
    packed = os.urandom(PIECE_BYTES)
    with pytest.raises(InvalidInputError, match="larger"):
        await desk.hand_in(pieces=[packed], artifact_bytes=1, piece_digests=(sha256_digest(packed),))
    assert await left_behind(desk) == (0, 0)

    desk.service = desk.with_gate(OpenGate(), bound_bytes=20_000)
    assert await desk.hand_in(code=b"x") is True
    with pytest.raises(ResourceExhaustedError):
        await desk.hand_in(code=b"x", target=replace(HERE, engine_version="8"))


async def test_what_a_revoked_key_vouched_for_takes_no_room_from_anothers(desk):
    """Else nobody could hand in anything after a revocation, when more than half of the room was taken."""
    for features in ("a", "b"):
        await desk.hand_in(target=replace(HERE, cpu_features=features))
    desk.keysets.keyset = a_keyset(
        ROOT, compiler_entry(COMPILER, revoked_at=desk.clock.now()), compiler_entry(SECOND), version=2
    )

    assert await desk.hand_in(key=SECOND, code=os.urandom(3 * PIECE_BYTES)) is True

    assert await left_behind(desk) == (1, 3)


async def test_a_node_that_hands_in_slowly_keeps_no_other_from_it(desk, monkeypatch):
    started, never = [], asyncio.Event()

    async def stalls(pieces):
        started.append(pieces)
        await never.wait()
        yield b""

    monkeypatch.setattr(service, "paced", stalls)
    slow = [
        asyncio.create_task(desk.hand_in(target=replace(HERE, engine_version=str(number))))
        for number in range(service.MAX_UPLOADS)
    ]
    async with asyncio.timeout(BOUND_S):
        while not started:
            await asyncio.sleep(0)
        monkeypatch.undo()
        assert await desk.hand_in(node=NodeId("nod_other")) is True

    for one in slow:
        one.cancel()
    await asyncio.wait(slow)
    assert await left_behind(desk) == (1, 2)


async def test_what_no_active_version_needs_goes_with_the_next_upload(desk):
    await desk.hand_in()
    await desk.rows("UPDATE template_versions SET state = 'retired'")
    assert await desk.wanted() == []

    with pytest.raises(NotFoundError):
        await desk.hand_in(target=replace(HERE, cpu_features="a"))
    # Refused before anything was dropped; another module's upload drops it.
    await desk.rows(
        "INSERT INTO artifacts (module_digest, module, size_bytes) VALUES ('sha256:" + "e" * 64 + "', '', 1)"
    )
    await desk.rows(
        "UPDATE template_versions SET state = 'active', module_digest = 'sha256:"
        + "e" * 64
        + f"' WHERE tenant_id = '{TENANT}'"
    )
    assert await desk.hand_in(module_digest="sha256:" + "e" * 64) is True
    assert await left_behind(desk) == (1, 2)


async def test_uploads_that_never_ended_go_after_an_hour(desk):
    await desk.hand_in()
    await desk.rows(
        "UPDATE compiled_artifacts SET completed_at = NULL, began_at = now() - interval '61 minutes'"
    )

    await desk.hand_in(target=replace(HERE, cpu_features="a"))

    assert await left_behind(desk) == (1, 2)


async def test_a_module_is_fetched_only_while_its_version_is_active_and_policy_agrees(desk):
    parts = [part async for part in desk.service.module(NODE, TEMPLATE)]
    assert parts == [b"template envelope", b"\0asm"]

    with pytest.raises(PolicyDeniedError):
        await anext(desk.with_gate(ShutGate()).module(NODE, TEMPLATE))
    await desk.rows("UPDATE template_versions SET state = 'revoked'")
    with pytest.raises(NotFoundError):
        await anext(desk.service.module(NODE, TEMPLATE))


async def test_pages_end(desk):
    for tenant in (TENANT, OTHER_TENANT):
        version = new_id(TEMPLATE_VERSION, desk.clock, SystemRandom())
        await desk.rows(
            f"UPDATE template_versions SET template_version_id = '{version}' WHERE tenant_id = '{tenant}'"
        )
    first, _ = await desk.service.wanted([HERE], page_size=1, page_token="")
    second, keyset = await desk.service.wanted([HERE], page_size=1, page_token=first.next_page_token)
    assert keyset == b"keyset"
    assert len({first.items[0].template_version_id, second.items[0].template_version_id}) == 2
    assert second.next_page_token == ""


async def test_two_targets_of_one_profile_are_refused(desk):
    with pytest.raises(InvalidInputError):
        await desk.wanted(HERE, replace(HERE, cpu_features="a"))


async def test_a_piece_of_an_upload_that_is_gone_is_refused(desk):
    """A compiler that waits longer than an hour between two pieces finds its upload gone."""
    with pytest.raises(NotFoundError):
        await desk.store.add_piece("cmp_gone", 0, b"x")

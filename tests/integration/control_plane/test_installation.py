"""An installation on a real Postgres: made once, completed when half made, never mixed with another."""

import asyncio
import stat
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from control_plane.database.engine import create_engine
from control_plane.installation.domain import InitRequest
from control_plane.setup import add_publisher, initialize, record_new_authority, replace_root
from shared.errors import (
    ConflictError,
    InvalidInputError,
    KeyFileModeError,
    NotFoundError,
    UnknownKeyError,
    WrongStateError,
)
from shared.ids import InstallationId
from shared.key_files import read_private_key, read_public_key, write_private_key
from shared.keyset import KeyPurpose, sign_keyset, verify_keyset
from shared.roots import verify_relayed
from shared.trust import read_trust
from tests.builders.roots import handover, with_chain
from tests.fixtures.keys import ed25519_key, rsa_key, signer, trusting


@pytest.fixture
def request_(tmp_path, empty_url):
    return InitRequest(data_dir=tmp_path / "data", owner_database_url=empty_url)


async def rows(url, query):
    engine = create_engine(url, application="test")
    try:
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]
    finally:
        await engine.dispose()


def keyset_of(paths):
    root = read_public_key(paths.root_public_key)
    return verify_keyset(paths.keyset.read_bytes(), root_keys={root.key_id: root}, minimum_version=1)


async def test_init_makes_everything_that_a_control_plane_needs(request_):
    made = await initialize(request_)
    url = request_.owner_database_url
    assert (made.created, made.keyset_version) == (True, 1)
    assert await rows(url, "SELECT installation, epoch FROM installation") == [("local", 1)]
    assert await rows(url, "SELECT tenant_id FROM tenants") == [("default",)]
    assert await rows(url, "SELECT identity, role FROM role_bindings ORDER BY identity") == [
        ("oidc:local/admin", "admin"),
        ("spiffe://local/caller/admin", "admin"),
    ]
    assert await rows(url, "SELECT action, subject FROM audit_entries") == [
        ("installation.initialized", "local")
    ]
    listed = {entry.purpose for entry in keyset_of(made.paths).entries}
    assert listed == {KeyPurpose.ORDER, KeyPurpose.POLICY, KeyPurpose.LOG}


async def test_private_keys_are_for_their_owner_alone(request_):
    made = await initialize(request_)
    secret = [
        made.paths.server_key,
        made.paths.client_key("admin"),
        *(made.paths.data_dir / "keys").glob("*.key"),
    ]
    assert len(secret) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


async def test_nodes_get_a_file_that_pins_root_and_authority(request_):
    made = await initialize(request_)
    roots = read_trust(made.paths.node.trust)
    assert roots == read_trust(made.paths.trust)
    assert roots.root_key.key_id == made.root_key_id
    assert roots.ca_certificate_pem == made.paths.ca_certificate.read_bytes()


async def test_a_second_init_changes_nothing(request_):
    first = await initialize(request_)
    before = {path: path.read_bytes() for path in first.paths.data_dir.rglob("*") if path.is_file()}
    second = await initialize(request_)
    after = {path: path.read_bytes() for path in first.paths.data_dir.rglob("*") if path.is_file()}
    assert (second, after) == (replace(first, created=False), before)
    assert len(await rows(request_.owner_database_url, "SELECT 1 FROM audit_entries")) == 1


async def test_an_init_that_died_half_way_is_completed(request_):
    made = await initialize(request_)
    made.paths.server_certificate.unlink()
    made.paths.keyset.unlink()
    again = await initialize(request_)
    assert again.order_key_id == made.order_key_id
    assert made.paths.server_certificate.exists()
    assert keyset_of(made.paths).version == 1


async def test_a_database_of_another_installation_is_refused(request_):
    await initialize(request_)
    other = replace(request_, installation=InstallationId("other"), data_dir=request_.data_dir / "other")
    with pytest.raises(ConflictError, match="local"):
        await initialize(other)
    assert not other.paths.root_key.exists()


async def test_a_lost_data_folder_is_not_silently_replaced_by_new_keys(request_):
    await initialize(request_)
    with pytest.raises(ConflictError, match=r"root\.key"):
        await initialize(replace(request_, data_dir=request_.data_dir / "elsewhere"))


async def test_a_key_that_others_may_read_stops_init(request_):
    made = await initialize(request_)
    made.paths.order_key.chmod(0o640)
    with pytest.raises(KeyFileModeError, match="0640"):
        await initialize(request_)


async def test_a_publisher_is_trusted_by_the_next_keyset(request_):
    made = await initialize(request_)
    publisher = rsa_key("publisher").public
    version = await trust(request_, publisher)
    keyset = keyset_of(made.paths)
    assert (version, keyset.version) == (2, 2)
    assert [entry.key_id for entry in keyset.entries if entry.purpose is KeyPurpose.PUBLISHER] == [
        publisher.key_id
    ]


async def test_trusting_a_publisher_again_makes_no_new_keyset(request_):
    await initialize(request_)
    publisher = rsa_key("publisher").public
    assert [await trust(request_, publisher) for _ in range(2)] == [2, 2]


async def test_two_publishers_at_once_do_not_lose_one(request_):
    made = await initialize(request_)
    answers = await asyncio.gather(
        trust(request_, rsa_key("one").public), trust(request_, rsa_key("two").public), return_exceptions=True
    )
    lost = [answer for answer in answers if isinstance(answer, ConflictError)]
    assert len(lost) <= 1
    for name in ("one", "two") if lost else ():
        await trust(request_, rsa_key(name).public)
    stored = await rows(request_.owner_database_url, "SELECT envelope FROM keysets ORDER BY version")
    root = read_public_key(made.paths.root_public_key)
    newest = verify_keyset(stored[-1][0], root_keys={root.key_id: root}, minimum_version=3)
    publishers = {entry.key_id for entry in newest.entries if entry.purpose is KeyPurpose.PUBLISHER}
    assert publishers == {rsa_key("one").key_id, rsa_key("two").key_id}


async def test_a_publisher_signs_with_rsa(request_):
    await initialize(request_)
    with pytest.raises(InvalidInputError, match="publisher"):
        await trust(request_, ed25519_key().public)


async def test_without_an_installation_nobody_is_trusted(request_):
    with pytest.raises(NotFoundError):
        await trust(request_, rsa_key("publisher").public)


async def trust(request, publisher):
    return await add_publisher(
        paths=request.paths, owner_database_url=request.owner_database_url, publisher=publisher
    )


async def test_the_password_of_the_service_reaches_postgres_as_a_verifier(request_):
    """That it opens the door is shown on the platform, where doors are closed; here all servers trust."""
    await initialize(replace(request_, service_password="correct-horse"))
    with pytest.raises(InvalidInputError):
        await initialize(replace(request_, service_password="b\u00e4d"))


async def test_init_leaves_the_pinned_root_alone_after_a_handover(request_):
    made = await initialize(request_)
    old, new = read_private_key(made.paths.root_key), ed25519_key("root 2")
    offered = await next_keyset(made.paths, old, new)
    await store_keyset(request_.owner_database_url, 2, offered)
    again = await initialize(request_)
    assert (again.keyset_version, again.root_key_id) == (2, old.key_id)
    # The root key here is not the one in force: it signs nothing, and says why.
    with pytest.raises(WrongStateError, match="in force"):
        await add_publisher(
            paths=made.paths, owner_database_url=request_.owner_database_url, publisher=rsa_key("pub").public
        )
    made.paths.root_key.unlink()
    write_private_key(made.paths.root_key, new)
    again = await initialize(request_)
    assert read_trust(again.paths.trust).root_key.key_id == old.key_id
    version = await add_publisher(
        paths=made.paths, owner_database_url=request_.owner_database_url, publisher=rsa_key("pub").public
    )
    found = verify_relayed(made.paths.keyset.read_bytes(), root_keys=trusting(old), minimum_version=version)
    assert (version, found.root.key_id) == (3, new.key_id)


async def test_a_lost_root_is_replaced_without_its_word(request_):
    made = await initialize(request_)
    old, new = read_private_key(made.paths.root_key), ed25519_key("root 2")
    made.paths.node.keyset.write_bytes(made.paths.keyset.read_bytes())
    url = request_.owner_database_url
    for _ in range(2):
        assert await replace_root(paths=made.paths, owner_database_url=url, root=new) == 2
    assert read_trust(made.paths.node.trust).root_key.key_id == new.key_id
    assert read_public_key(made.paths.root_public_key).key_id == new.key_id
    assert not made.paths.node.keyset.exists()
    keyset = made.paths.keyset.read_bytes()
    assert verify_relayed(keyset, root_keys=trusting(new), minimum_version=2).keyset.version == 2
    with pytest.raises(UnknownKeyError):
        verify_relayed(keyset, root_keys=trusting(old), minimum_version=1)
    replaced = "SELECT subject, details->>'instead_of' FROM audit_entries WHERE action = 'root.replaced'"
    assert await rows(url, replaced) == [("2", old.key_id)]


async def test_a_new_authority_is_on_record(request_):
    await initialize(request_)
    until = datetime(2027, 1, 1, tzinfo=UTC)
    await record_new_authority(request_.owner_database_url, fingerprint="ab" * 32, old_until=until)
    query = "SELECT details->>'certificate_sha256' FROM audit_entries WHERE action = 'authority.rotated'"
    assert await rows(request_.owner_database_url, query) == [("ab" * 32,)]


async def next_keyset(paths, old, new):
    held = verify_relayed(paths.keyset.read_bytes(), root_keys=trusting(old), minimum_version=1).keyset
    keyset = replace(held, version=held.version + 1, root_key_id=new.key_id)
    link = await handover(old, new, installation=held.installation)
    return with_chain(await sign_keyset(keyset, [signer(new)]), link)


async def store_keyset(url, version, envelope):
    engine = create_engine(url, application="test")
    try:
        async with engine.begin() as connection:
            row = text("INSERT INTO keysets (version, envelope) VALUES (:version, :envelope)")
            await connection.execute(row, {"version": version, "envelope": envelope})
    finally:
        await engine.dispose()

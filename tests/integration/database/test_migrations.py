"""The schema: no drift from the tables, there and back, and who may do what with it."""

import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from control_plane.database import migrate
from control_plane.database.engine import create_engine
from control_plane.database.migrate import downgrade, require_current_schema, upgrade
from control_plane.database.tables import metadata
from shared.errors import DatabaseUnavailableError, SettingsError

APPEND_ONLY = ["audit_entries", "receipts", "decisions", "order_batches", "keysets", "policies_used"]


async def _differences(url: str) -> list[object]:
    def compare(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, metadata))

    engine = create_engine(url, application="test")
    async with engine.connect() as connection:
        found = await connection.run_sync(compare)
    await engine.dispose()
    return found


async def test_migrations_and_tables_describe_the_same_schema(owner_url):
    assert await _differences(owner_url) == []


async def test_a_database_goes_down_to_nothing_and_up_again(owner_url):
    await downgrade(owner_url, "base")
    engine = create_engine(owner_url, application="test")
    async with engine.connect() as connection:
        tables = await connection.execute(
            text(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            )
        )
        assert tables.scalars().all() == []
    await engine.dispose()

    await upgrade(owner_url)

    assert await _differences(owner_url) == []


async def test_upgrading_twice_changes_nothing(owner_url):
    await upgrade(owner_url)
    assert await _differences(owner_url) == []


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("statement", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}"])
async def test_rule_19_the_service_cannot_change_or_remove_evidence(database_url, table, statement):
    column = metadata.tables[table].columns.keys()[0]
    engine = create_engine(database_url, application="test")
    try:
        async with engine.connect() as connection:
            with pytest.raises(ProgrammingError) as refused:
                await connection.execute(text(statement.format(table, column, column)))
        assert isinstance(refused.value.orig.__cause__, asyncpg.InsufficientPrivilegeError)
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE mine (i int)", "ALTER TABLE audit_entries ADD COLUMN i int", "DROP TABLE orders"],
)
async def test_rule_19_the_service_owns_nothing(database_url, statement):
    engine = create_engine(database_url, application="test")
    try:
        async with engine.connect() as connection:
            with pytest.raises(ProgrammingError):
                await connection.execute(text(statement))
    finally:
        await engine.dispose()


async def test_a_signed_order_cannot_be_rewritten_by_the_service(database_url):
    engine = create_engine(database_url, application="test")
    try:
        async with engine.connect() as connection:
            for column in ("content", "batch_id", "leaf_index", "proof"):
                with pytest.raises(ProgrammingError):
                    await connection.execute(text(f"UPDATE orders SET {column} = NULL"))
                await connection.rollback()
    finally:
        await engine.dispose()


async def test_paths_of_orders_survive_the_way_to_one_value_and_back(owner_url):
    await downgrade(owner_url, "0001")
    engine = create_engine(owner_url, application="test")
    columns = "order_id, tenant_id, execution_id, fencing_token, node_id, content, digest, batch_id, leaf_index, path"
    written = [
        ("ord_01900000-0000-7000-8000-000000000001", [b"\x01" * 32, b"\x02" * 32]),
        ("ord_01900000-0000-7000-8000-000000000002", []),
        ("ord_01900000-0000-7000-8000-000000000003", None),
    ]
    async with engine.begin() as connection:
        for number, (order_id, path) in enumerate(written):
            await connection.execute(
                text(
                    f"INSERT INTO orders ({columns}) VALUES (:id, 'default', :id, :n, 'nod_1', '', 'd', 'obt_1', 0, :path)"
                ),
                {"id": order_id, "n": number, "path": path},
            )
    await upgrade(owner_url)
    async with engine.connect() as connection:
        proofs = (
            (await connection.execute(text("SELECT proof FROM orders ORDER BY order_id"))).scalars().all()
        )
    await downgrade(owner_url, "0001")
    async with engine.connect() as connection:
        paths = (await connection.execute(text("SELECT path FROM orders ORDER BY order_id"))).scalars().all()
    await engine.dispose()

    assert proofs == [b"\x01" * 32 + b"\x02" * 32, b"", None]
    assert paths == [path for _, path in written]


async def test_a_database_without_our_schema_is_refused_with_what_to_do(empty_url):
    engine = create_engine(empty_url, application="test")
    try:
        with pytest.raises(SettingsError, match="has schema none") as refused:
            await require_current_schema(engine)
        assert "agentfactory init" in (refused.value.hint or "")
    finally:
        await engine.dispose()


async def test_the_current_schema_is_accepted_for_the_service_role(database_url):
    engine = create_engine(database_url, application="test")
    try:
        await require_current_schema(engine)
    finally:
        await engine.dispose()


async def test_postgres_away_is_one_clear_line_without_the_password(tmp_path):
    engine = create_engine(f"postgresql://u:geheim@/d?host={tmp_path}", application="test")
    with pytest.raises(DatabaseUnavailableError) as refused:
        await require_current_schema(engine)
    assert "\n" not in str(refused.value)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite:///x", "mysql://a@b/c"])
def test_a_url_that_is_not_postgres_is_a_settings_error(url):
    with pytest.raises(SettingsError, match="database url"):
        create_engine(url, application="test")


async def test_an_envelope_is_not_moved_out_of_its_row(owner_url):
    engine = create_engine(owner_url, application="test")
    try:
        async with engine.begin() as connection:
            await connection.execute(
                text(
                    "INSERT INTO receipts (receipt_id, tenant_id, node_id, sequence, hash, order_id, execution_id,"
                    " fencing_token, envelope, accepted)"
                    " VALUES ('rcp_1', 'default', 'nod_1', 1, '', 'ord_1', 'exe_1', 1, :envelope, true)"
                ),
                {"envelope": b"e" * 4000},
            )
            moved = await connection.execute(
                text(
                    "SELECT pg_column_compression(envelope) IS NOT NULL OR pg_relation_size(c.reltoastrelid) > 0"
                    " FROM receipts r JOIN pg_class c ON c.oid = r.tableoid"
                )
            )
            assert moved.scalar_one() is False
    finally:
        await engine.dispose()


def test_the_newest_revision_is_the_one_head_of_the_migrations():
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert [migrate.newest_revision()] == list(scripts.get_heads())


async def test_an_older_schema_is_refused_with_both_versions(owner_url):
    await downgrade(owner_url, "0001")
    engine = create_engine(owner_url, application="test")
    try:
        with pytest.raises(
            SettingsError, match=rf"has schema 0001, this build needs {migrate.newest_revision()}"
        ):
            await require_current_schema(engine)
    finally:
        await engine.dispose()


def test_the_service_does_not_load_the_tool_that_migrates():
    program = "import sys, control_plane.main; sys.exit('alembic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(("oldest", "serves"), [("0023", True), (None, False), ("9999", False)])
async def test_a_newer_schema_is_accepted_as_long_as_it_serves_this_build(
    owner_url, database_url, oldest, serves
):
    """The colour of the version before starts anew while the next one is tried beside it."""
    owner, service = (create_engine(url, application="test") for url in (owner_url, database_url))
    try:
        async with owner.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            if oldest is None:
                await connection.execute(text("DROP TABLE schema_support"))
            else:
                await connection.execute(
                    text("UPDATE schema_support SET oldest_revision = :oldest"), {"oldest": oldest}
                )
        if serves:
            await require_current_schema(service)
        else:
            with pytest.raises(SettingsError, match="has schema 9999"):
                await require_current_schema(service)
    finally:
        await owner.dispose()
        await service.dispose()

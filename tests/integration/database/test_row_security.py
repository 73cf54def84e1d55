"""Rule 19, the second wall: row security on tenant. Walks the catalogue, so a table to come is asked too."""

import asyncio
import contextlib
from contextvars import ContextVar

import asyncpg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import ProgrammingError

from control_plane.database.engine import create_engine
from control_plane.database.tables import audit_entries, backups, executions, log_pending
from control_plane.database.unit_of_work import DISPATCH_ROLE, TENANT_ROLE, PostgresDatabase
from tests.fixtures.postgres import OWNER, SERVICE

TENANTS = ("acme", "globex")
TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'tenant_id'
ORDER BY c.relname"""
# A value of each type, the same for both tenants but where it has to be unique.
VALUES = {
    "text": "'{tenant}-{column}'",
    "text[]": "ARRAY['x']",
    "bytea": "'\\x00'::bytea",
    "bytea[]": "ARRAY['\\x00'::bytea]",
    "bigint": "{n}",
    "integer": "{n}",
    "smallint": "{n}",
    "boolean": "true",
    "jsonb": "'{{}}'::jsonb",
    "date": "current_date",
    "timestamp with time zone": "now()",
}
COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type FROM pg_attribute a
WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = ''"""


class Told:
    def notify(self, channel, payloads=()): ...

    def notify_others(self, channel, payloads=()): ...


class Walls:
    """One database in which every table of tenants has a row of each of two tenants."""

    def __init__(self, server, name):
        self.server = server
        self.name = name

    @contextlib.asynccontextmanager
    async def connected(self, user):
        connection = await asyncpg.connect(
            host=str(self.server.folder), user=user, database=self.name, timeout=10
        )
        try:
            yield connection
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def acting(self, role, tenant=None):
        """Log in as the service does, and take a role; whatever is done is taken back."""
        async with self.connected(SERVICE) as connection:
            transaction = connection.transaction()
            await transaction.start()
            if role:
                await connection.execute(f"SET LOCAL ROLE {role}")
            if tenant is not None:
                await connection.execute("SELECT set_config('af.tenant', $1, true)", tenant)
            yield connection
            await transaction.rollback()

    async def fill(self):
        """Without triggers, keys to elsewhere and checks: what is asked here is who sees a row."""
        async with self.connected("postgres") as connection:
            await connection.execute("SET session_replication_role = replica")
            tables = [row["relname"] for row in await connection.fetch(TABLES)]
            for table in tables:
                for name in await connection.fetch(
                    "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = $1::text::regclass",
                    table,
                ):
                    await connection.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name["conname"]}"')
                for n, tenant in enumerate(TENANTS):
                    await connection.execute(await self.insert(connection, table, tenant, n))
            return tables

    async def insert(self, connection, table, tenant, n):
        columns = await connection.fetch(COLUMNS, table)
        values = [
            f"'{tenant}'"
            if one["attname"] == "tenant_id"
            else VALUES[one["type"]].format(tenant=tenant, column=one["attname"], n=n)
            for one in columns
        ]
        names = ", ".join(one["attname"] for one in columns)
        return f"INSERT INTO {table} ({names}) VALUES ({', '.join(values)})"


@pytest.fixture
async def walls(postgres_server, database_name):
    built = Walls(postgres_server, database_name)
    built.tables = await built.fill()
    return built


async def _rights(connection, table):
    rows = await connection.fetch(
        "SELECT p FROM unnest(ARRAY['SELECT','INSERT','UPDATE','DELETE']) p"
        " WHERE has_table_privilege($1, p) OR (p = 'UPDATE' AND has_any_column_privilege($1, p))",
        table,
    )
    return {row["p"] for row in rows}


async def _updatable(connection, table):
    return await connection.fetchval(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0"
        " AND has_column_privilege($1::text, attname::text, 'UPDATE') LIMIT 1",
        table,
    )


@pytest.mark.parametrize("tenant", [None, "", "initech"], ids=["none", "empty", "another"])
async def test_rule_19_whoever_forgets_the_tenant_finds_and_changes_nothing(walls, tenant):
    async with walls.acting(TENANT_ROLE, tenant) as connection:
        for table in walls.tables:
            rights = await _rights(connection, table)
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table
            if "UPDATE" in rights:
                column = await _updatable(connection, table)
                assert await connection.execute(f"UPDATE {table} SET {column} = {column}") == "UPDATE 0", (
                    table
                )
            if "DELETE" in rights:
                assert await connection.execute(f"DELETE FROM {table}") == "DELETE 0", table


async def test_rule_19_a_row_of_another_tenant_cannot_be_written(walls):
    async with walls.acting(TENANT_ROLE, "acme") as connection:
        for table in walls.tables:
            if "INSERT" not in await _rights(connection, table):
                continue
            statement = await walls.insert(connection, table, "globex", 7)
            with pytest.raises(asyncpg.InsufficientPrivilegeError) as refused:
                async with connection.transaction():
                    await connection.execute(statement)
            assert "row-level security" in str(refused.value), table


async def test_rule_19_a_row_cannot_be_given_to_another_tenant(walls):
    async with walls.acting(TENANT_ROLE, "acme") as connection:
        for table in walls.tables:
            if not await connection.fetchval(
                f"SELECT has_column_privilege('{table}', 'tenant_id', 'UPDATE')"
            ):
                continue
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute(f"UPDATE {table} SET tenant_id = 'globex'")


async def test_the_tenants_own_rows_are_there(walls):
    async with walls.acting(TENANT_ROLE, "acme") as connection:
        for table in walls.tables:
            found = await connection.fetch(f"SELECT tenant_id FROM {table}")
            assert [row["tenant_id"] for row in found] == ["acme"], table


@pytest.mark.parametrize("role", ["", DISPATCH_ROLE], ids=["the build before", "dispatch"])
async def test_the_build_before_and_dispatch_see_and_write_every_row(walls, role):
    async with walls.acting(role) as connection:
        for table in walls.tables:
            rights = await _rights(connection, table)
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") >= len(TENANTS), table
            if "UPDATE" in rights:
                column = await _updatable(connection, table)
                changed = await connection.execute(f"UPDATE {table} SET {column} = {column}")
                assert int(changed.partition(" ")[2]) >= len(TENANTS), table


async def test_every_table_of_tenants_has_exactly_these_policies(walls):
    expected = {("own_rows", TENANT_ROLE), ("every_row", DISPATCH_ROLE), ("build_before", SERVICE)}
    async with walls.connected("postgres") as connection:
        for table in walls.tables:
            assert await connection.fetchval(
                "SELECT relrowsecurity FROM pg_class WHERE oid = $1::text::regclass", table
            ), f"{table} has a tenant and no row security: see revision 0022"
            policies = await connection.fetch(
                "SELECT policyname, roles::text[] FROM pg_policies WHERE tablename = $1", table
            )
            assert {(one["policyname"], *one["roles"]) for one in policies} == expected, table


RIGHTS_OF = """
SELECT c.relname, a.privilege_type, '' AS column FROM pg_class c, aclexplode(c.relacl) a
WHERE c.relnamespace = 'public'::regnamespace AND a.grantee = $1::text::regrole
UNION SELECT c.relname, a.privilege_type, t.attname FROM pg_class c
    JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
WHERE c.relnamespace = 'public'::regnamespace AND a.grantee = $1::text::regrole"""


async def test_both_roles_have_the_rights_of_the_service_and_no_more(walls):
    async with walls.connected("postgres") as connection:
        service, dispatch, tenant = [
            {tuple(row) for row in await connection.fetch(RIGHTS_OF, role)}
            for role in (SERVICE, DISPATCH_ROLE, TENANT_ROLE)
        ]
    assert service == dispatch, "a migration grants to the service's login alone: grant to af_dispatch too"
    left_out = {right for right in service if right[0] in {log_pending.name, backups.name}}
    assert service - left_out == tenant, "grant to af_tenant what af_service has"


async def test_neither_role_logs_in_or_walks_past_policies(walls):
    async with walls.connected("postgres") as connection:
        for role in (TENANT_ROLE, DISPATCH_ROLE):
            row = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = $1", role)
            assert not any(row[flag] for flag in ("rolcanlogin", "rolbypassrls", "rolsuper", "rolcreaterole"))


# -- what the service does with them


@contextlib.asynccontextmanager
async def _database(walls, tenant, role=DISPATCH_ROLE):
    engine = create_engine(walls.server.url(walls.name, user=SERVICE), application="test", role=role)
    try:
        yield PostgresDatabase(
            engine, notifier=Told(), confined_to=tenant if callable(tenant) else lambda: tenant
        )
    finally:
        await engine.dispose()


async def test_what_a_call_opens_is_confined_and_the_next_user_of_the_connection_is_not(walls):
    async with _database(walls, "acme") as database:
        for _ in range(2):
            async with database.reading() as connection:
                seen = set(await connection.scalars(select(executions.c.tenant_id)))
            assert seen == {"acme"}
            async with database.transaction() as tx:
                assert set(await tx.connection.scalars(select(audit_entries.c.tenant_id))) == {"acme"}
            async with database.driver() as raw:
                rows = await raw.fetch("SELECT tenant_id FROM executions")
                role = await raw.fetchval(
                    "SELECT current_user || coalesce(current_setting('af.tenant', true), '')"
                )
            assert {row["tenant_id"] for row in rows} == set(TENANTS)
            assert role == DISPATCH_ROLE


async def test_a_transaction_that_fails_leaves_no_role_behind(walls):
    async with _database(walls, "acme") as database:
        with pytest.raises(ProgrammingError):
            async with database.transaction() as tx:
                await tx.connection.execute(text("SELECT * FROM log_pending"))
        async with database.driver() as raw:
            assert await raw.fetchval("SELECT current_user") == DISPATCH_ROLE


async def test_many_tenants_on_few_connections_each_see_their_own(walls):
    current = ContextVar("current", default=None)

    async def look(database, tenant):
        current.set(tenant)
        for _ in range(20):
            async with database.reading() as connection:
                assert set(await connection.scalars(select(executions.c.tenant_id))) == {tenant}

    async with _database(walls, current.get) as database, asyncio.TaskGroup() as group:
        for tenant in TENANTS * 10:
            group.create_task(look(database, tenant))


async def test_outside_calls_every_tenant_is_seen(walls):
    async with _database(walls, None) as database, database.reading() as connection:
        assert set(await connection.scalars(select(executions.c.tenant_id))) == set(TENANTS)


async def test_the_owner_is_not_held_back(walls):
    async with walls.connected(OWNER) as connection:
        for table in walls.tables:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") >= len(TENANTS), table

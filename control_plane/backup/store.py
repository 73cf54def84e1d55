"""Postgres behind `BackupStore`, as the schema's owner; and the age of the newest backup, as the service."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import bindparam, delete, func, insert, select, text

from control_plane.backup.domain import BackupHeader
from control_plane.backup.ports import DatabaseFacts
from control_plane.database.ports import Transaction
from control_plane.database.tables import backups, installation
from control_plane.database.unit_of_work import PostgresDatabase, connection_of
from shared.errors import ConflictError, NotFoundError, SettingsError
from shared.ids import InstallationId

SERVICE_ROLES: Final = ("af_service", "af_tenant", "af_dispatch")
"""As the migrations make them; a test compares."""
_LOGIN: Final = SERVICE_ROLES[0]

_FACTS: Final = text(
    """SELECT i.installation, i.epoch, (SELECT string_agg(version_num, ',') FROM alembic_version) AS schema,
        current_setting('server_version_num')::int / 10000 AS postgres, now() AS at
    FROM installation i"""
)
_SERVER: Final = text("SELECT current_setting('server_version_num')::int / 10000")
_ANYTHING: Final = text(
    """SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    UNION ALL
    SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    LIMIT 1"""
)
_MAKE_ROLE: Final = """DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role} {login}; END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$"""
_MAKE_MEMBER: Final = """DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_auth_members
        WHERE roleid = '{role}'::regrole AND member = '{service}'::regrole) THEN
        IF current_setting('server_version_num')::int >= 160000 THEN
            EXECUTE 'GRANT {role} TO {service} WITH INHERIT FALSE, SET TRUE';
        ELSE
            EXECUTE 'GRANT {role} TO {service}';
        END IF;
    END IF;
EXCEPTION WHEN unique_violation THEN NULL;
END $$"""
_DOOR: Final = """DO $$ BEGIN EXECUTE format('{what}', current_database()); END $$"""
_MAY_CONNECT: Final = text(
    "SELECT has_database_privilege(CAST(:role AS text), current_database(), 'CONNECT')"
)
_PUT_ASIDE: Final = (
    """INSERT INTO log_past_checkpoints (epoch, tree_size, note, signed_at)
    SELECT i.epoch, c.tree_size, c.note, c.signed_at FROM log_checkpoints c, installation i
    ON CONFLICT DO NOTHING""",
    "DELETE FROM log_checkpoints",
    # Transactions are counted anew in another cluster; who watches reads by their numbers.
    """UPDATE audit_entries SET recorded_in = 0 WHERE recorded_in >= (pg_current_xact_id()::text)::bigint""",
)
_MOVE: Final = text("UPDATE installation SET epoch = :epoch WHERE epoch < :epoch")


class PostgresBackupStore:
    """Implements `BackupStore`."""

    async def facts(self, tx: Transaction) -> DatabaseFacts:
        """See `BackupStore.facts`."""
        connection = connection_of(tx)
        if await connection.scalar(text("SELECT to_regclass('public.installation') IS NULL")):
            raise NotFoundError("the database holds no installation", hint="name the right database")
        row = (await connection.execute(_FACTS)).first()
        if row is None:
            raise NotFoundError("the database holds no installation", hint="name the right database")
        return DatabaseFacts(
            installation=InstallationId(row.installation),
            epoch=row.epoch,
            schema=row.schema,
            postgres=row.postgres,
            now=row.at,
        )

    async def server(self, tx: Transaction) -> int:
        """See `BackupStore.server`."""
        return int((await connection_of(tx).execute(_SERVER)).scalar_one())

    async def require_empty(self, tx: Transaction) -> None:
        """See `BackupStore.require_empty`."""
        found = (await connection_of(tx).execute(_ANYTHING)).scalar()
        if found is not None:
            raise ConflictError(
                f"the database is not empty: it holds {found}",
                hint="name a new, empty database: a restore never overwrites",
            )

    async def close_doors(self, tx: Transaction) -> None:
        """See `BackupStore.close_doors`."""
        connection = connection_of(tx)
        for role in SERVICE_ROLES:
            login = "LOGIN" if role == _LOGIN else "NOLOGIN"
            await connection.execute(text(_MAKE_ROLE.format(role=role, login=login)))
        for role in SERVICE_ROLES[1:]:
            await connection.execute(text(_MAKE_MEMBER.format(role=role, service=_LOGIN)))
        for role in ("PUBLIC", _LOGIN):
            await connection.execute(text(_DOOR.format(what=f"REVOKE CONNECT ON DATABASE %I FROM {role}")))
        if (await connection.execute(_MAY_CONNECT, {"role": _LOGIN})).scalar_one():
            raise SettingsError(
                f"{_LOGIN} cannot be kept out while the database is loaded",
                hint="restore as the role that owns the database",
            )

    async def begin_epoch(self, tx: Transaction, epoch: int) -> None:
        """See `BackupStore.begin_epoch`."""
        connection = connection_of(tx)
        for statement in _PUT_ASIDE:
            await connection.execute(text(statement))
        await connection.execute(_MOVE, {"epoch": epoch})
        await connection.execute(text(_DOOR.format(what=f"GRANT CONNECT ON DATABASE %I TO {_LOGIN}")))

    async def record(self, tx: Transaction, header: BackupHeader, *, place: str, size_bytes: int) -> None:
        """See `BackupStore.record`."""
        await connection_of(tx).execute(
            insert(backups).values(
                backup_id=header.backup_id,
                name=header.name,
                place=place,
                size_bytes=size_bytes,
                snapshot_at=header.snapshot_at,
            )
        )

    async def forget(self, tx: Transaction, names: Sequence[str], *, place: str) -> None:
        """See `BackupStore.forget`."""
        wanted = backups.c.name.in_(bindparam("names", expanding=True))
        await connection_of(tx).execute(
            delete(backups).where(wanted, backups.c.place == place), {"names": list(names)}
        )


class BackupAge:
    """Asked by the running control plane."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def age(self) -> timedelta:
        """Return how old the newest backup's snapshot is; without any, how old the installation.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """
        newest = select(func.max(backups.c.snapshot_at)).scalar_subquery()
        made = select(installation.c.created_at).scalar_subquery()
        seconds = func.extract("epoch", func.now() - func.coalesce(newest, made))
        async with self._database.reading() as connection:
            return timedelta(seconds=float(await connection.scalar(select(seconds)) or 0))

"""Wrapped data keys in Postgres. What the keyring reads concerns all tenants: it is outside of their wall."""

from collections.abc import Collection, Mapping

from sqlalchemy import exists, func, select, update
from sqlalchemy.dialects.postgresql import insert

from control_plane.body_keys.domain import BodyKey, BodyKeyId, Erasure
from control_plane.database.ports import Transaction
from control_plane.database.tables import body_keys, executions, tenants
from control_plane.database.unit_of_work import PostgresDatabase, connection_of
from shared.errors import ConflictError, NotFoundError
from shared.ids import TenantId

_k, _t = body_keys.c, tenants.c
_LIVE = ("pending", "running")

ACTIVE = """
SELECT t.tenant_id, k.body_key_id FROM tenants t
LEFT JOIN body_keys k ON k.tenant_id = t.tenant_id AND k.retired_at IS NULL
WHERE t.encrypt_bodies
"""
DESTROYED = """
SELECT body_key_id FROM body_keys WHERE body_key_id = ANY($1::text[]) AND destroyed_at IS NOT NULL
"""
FIND = """
SELECT body_key_id, tenant_id, generation, wrapped, created_at, destroyed_at FROM body_keys
WHERE body_key_id = $1
"""
NEWEST = "SELECT FROM body_keys WHERE tenant_id = $1 AND retired_at IS NULL"
GENERATION = "SELECT body_key_generation FROM tenants WHERE tenant_id = $1"


class PostgresBodyKeyStore:
    """Implements `BodyKeyStore`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def active(self) -> Mapping[TenantId, BodyKeyId | None]:
        """See `BodyKeyStore.active`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(ACTIVE)
        return {TenantId(row["tenant_id"]): row["body_key_id"] for row in rows}

    async def destroyed(self, key_ids: Collection[BodyKeyId]) -> frozenset[BodyKeyId]:
        """See `BodyKeyStore.destroyed`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(DESTROYED, list(key_ids))
        return frozenset(BodyKeyId(row["body_key_id"]) for row in rows)

    async def find(self, key_id: BodyKeyId) -> BodyKey | None:
        """See `BodyKeyStore.find`."""
        async with self._database.driver() as connection:
            row = await connection.fetchrow(FIND, key_id)
        if row is None:
            return None
        return BodyKey(
            body_key_id=BodyKeyId(row["body_key_id"]),
            tenant_id=TenantId(row["tenant_id"]),
            generation=row["generation"],
            wrapped=bytes(row["wrapped"]),
            created_at=row["created_at"],
            destroyed_at=row["destroyed_at"],
        )

    async def has_newest(self, tenant_id: TenantId) -> bool:
        """See `BodyKeyStore.has_newest`."""
        async with self._database.driver() as connection:
            return await connection.fetchrow(NEWEST, tenant_id) is not None

    async def generation(self, tenant_id: TenantId) -> int:
        """See `BodyKeyStore.generation`."""
        async with self._database.driver() as connection:
            row = await connection.fetchrow(GENERATION, tenant_id)
        if row is None:
            raise NotFoundError(f"there is no tenant {tenant_id!r}")
        return int(row["body_key_generation"])

    async def add(self, tx: Transaction, key: BodyKey) -> None:
        """See `BodyKeyStore.add`."""
        if await self._locked(tx, key.tenant_id) != key.generation:
            raise ConflictError(f"the keys of tenant {key.tenant_id} were erased meanwhile")
        connection = connection_of(tx)
        await connection.execute(
            update(body_keys)
            .where(_k.tenant_id == key.tenant_id, _k.retired_at.is_(None))
            .values(retired_at=func.now())
        )
        await connection.execute(
            insert(body_keys).values(
                body_key_id=key.body_key_id,
                tenant_id=key.tenant_id,
                generation=key.generation,
                wrapped=key.wrapped,
            )
        )

    async def has_live_executions(self, tx: Transaction, tenant_id: TenantId) -> bool:
        """See `BodyKeyStore.has_live_executions`."""
        e = executions.c
        live = select(exists().where(e.tenant_id == tenant_id, e.state.in_(_LIVE)))
        return bool(await connection_of(tx).scalar(live))

    async def destroy(self, tx: Transaction, tenant_id: TenantId) -> Erasure:
        """See `BodyKeyStore.destroy`."""
        generation = await self._locked(tx, tenant_id)
        connection = connection_of(tx)
        gone = await connection.execute(
            update(body_keys)
            .where(_k.tenant_id == tenant_id, _k.destroyed_at.is_(None))
            .values(wrapped=b"", destroyed_at=func.now(), retired_at=func.coalesce(_k.retired_at, func.now()))
            .returning(_k.body_key_id)
        )
        keys = tuple(sorted(BodyKeyId(one) for one in gone.scalars()))
        if keys:
            generation += 1
            await connection.execute(
                update(tenants).where(_t.tenant_id == tenant_id).values(body_key_generation=generation)
            )
        return Erasure(keys=keys, generation=generation)

    async def _locked(self, tx: Transaction, tenant_id: TenantId) -> int:
        query = select(_t.body_key_generation).where(_t.tenant_id == tenant_id).with_for_update()
        found = await connection_of(tx).scalar(query)
        if found is None:
            raise NotFoundError(f"there is no tenant {tenant_id!r}")
        return int(found)

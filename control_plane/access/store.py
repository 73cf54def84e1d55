"""Postgres behind the ports of access: role bindings, tenants, bootstrap secrets, enrollment of nodes."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Row, func, select, tuple_, update
from sqlalchemy import delete as remove
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from control_plane.access.domain import Bound, Grant, Role, RoleBinding, Tenant
from control_plane.database.ports import Transaction
from control_plane.database.tables import bootstrap_secrets, home_tenants, nodes, role_bindings, tenants
from control_plane.database.unit_of_work import PostgresDatabase, connection_of
from shared.errors import NotFoundError
from shared.ids import TenantId

_b, _t, _s = role_bindings.c, tenants.c, bootstrap_secrets.c
_ROLE_OF_DUTY: Final = {"run": frozenset({Role.NODE}), "compile": frozenset({Role.COMPILER})}
_BINDING = (_b.tenant_id, _b.identity, _b.role, _b.created_at, _b.created_by)
_TENANT = (
    _t.tenant_id,
    _t.display_name,
    _t.max_pending,
    _t.executions_per_minute,
    _t.created_at,
    _t.encrypt_bodies,
    _t.llm_tokens_per_day,
    _t.llm_cost_micros_per_day,
)


class PostgresGrantStore:
    """Implements `GrantStore`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def node(self, node_id: str) -> Grant | None:
        """See `GrantStore.node`."""
        query = select(nodes.c.tenant_id, nodes.c.state, nodes.c.duty).where(nodes.c.node_id == node_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        # A duty that is not known here gets nothing.
        roles = _ROLE_OF_DUTY.get(row.duty, frozenset())
        return Grant(tenant_id=TenantId(row.tenant_id), roles=roles, evicted=row.state == "evicted")

    async def bound(self, subjects: Collection[str]) -> Bound:
        """See `GrantStore.bound`."""
        query = select(role_bindings.c.tenant_id, role_bindings.c.role).where(
            role_bindings.c.identity.in_(sorted(subjects))
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        held: dict[TenantId, frozenset[Role]] = {}
        for row in rows:
            tenant_id = TenantId(row.tenant_id)
            held[tenant_id] = held.get(tenant_id, frozenset()) | {Role(row.role)}
        return held

    async def home(self, identity: str) -> TenantId | None:
        """See `GrantStore.home`."""
        query = select(home_tenants.c.tenant_id).where(home_tenants.c.identity == identity)
        async with self._database.reading() as connection:
            home = await connection.scalar(query)
        return None if home is None else TenantId(home)

    async def settle(self, identity: str, tenant_id: TenantId) -> None:
        """See `GrantStore.settle`."""
        row = upsert(home_tenants).values(identity=identity, tenant_id=tenant_id)
        async with self._database.transaction() as tx:
            await tx.connection.execute(row.on_conflict_do_nothing())


class PostgresAccessStore:
    """Implements `BindingStore`, `TenantStore` and `BootstrapStore`."""

    # --- bindings

    async def add_binding(self, tx: Transaction, binding: RoleBinding) -> bool:
        """See `BindingStore.add_binding`."""
        row = upsert(role_bindings).values(
            tenant_id=binding.tenant_id,
            identity=binding.identity,
            role=binding.role,
            created_by=binding.created_by,
        )
        try:
            added = await connection_of(tx).execute(row.on_conflict_do_nothing().returning(_b.role))
        except IntegrityError as error:
            raise NotFoundError(f"there is no tenant {binding.tenant_id!r}") from error
        return added.first() is not None

    async def bindings(
        self, tx: Transaction, tenant_id: TenantId, subjects: Collection[str]
    ) -> Sequence[RoleBinding]:
        """See `BindingStore.bindings`."""
        query = (
            select(*_BINDING)
            .where(_b.tenant_id == tenant_id, _b.identity.in_(sorted(subjects)))
            .order_by(_b.identity, _b.role)
        )
        return [_binding(row) for row in await connection_of(tx).execute(query)]

    async def list_bindings(
        self, tx: Transaction, tenant_id: TenantId, *, identity: str, after: tuple[str, str], limit: int
    ) -> Sequence[RoleBinding]:
        """See `BindingStore.list_bindings`."""
        query = select(*_BINDING).where(_b.tenant_id == tenant_id, tuple_(_b.identity, _b.role) > after)
        if identity:
            query = query.where(_b.identity == identity)
        query = query.order_by(_b.identity, _b.role).limit(limit)
        return [_binding(row) for row in await connection_of(tx).execute(query)]

    async def remove_binding(self, tx: Transaction, binding: RoleBinding) -> bool:
        """See `BindingStore.remove_binding`."""
        change = remove(role_bindings).where(
            _b.tenant_id == binding.tenant_id, _b.identity == binding.identity, _b.role == binding.role
        )
        removed = await connection_of(tx).execute(change.returning(_b.role))
        return removed.first() is not None

    async def lock_administrators(self, tx: Transaction, tenant_id: TenantId) -> Collection[str]:
        """See `BindingStore.lock_administrators`. The tenant's row is the lock: rows to come have none."""
        connection = connection_of(tx)
        await connection.execute(select(_t.tenant_id).where(_t.tenant_id == tenant_id).with_for_update())
        query = select(_b.identity).where(
            _b.tenant_id == tenant_id, _b.role == Role.ADMIN, _b.identity.not_like("group:%")
        )
        return set(await connection.scalars(query))

    # --- tenants

    async def add_tenant(self, tx: Transaction, tenant: Tenant) -> bool:
        """See `TenantStore.add_tenant`."""
        row = upsert(tenants).values(
            tenant_id=tenant.tenant_id,
            display_name=tenant.display_name,
            max_pending=tenant.max_pending,
            executions_per_minute=tenant.executions_per_minute,
            llm_tokens_per_day=tenant.llm_tokens_per_day,
            llm_cost_micros_per_day=tenant.llm_cost_micros_per_day,
        )
        added = await connection_of(tx).execute(row.on_conflict_do_nothing().returning(_t.tenant_id))
        return added.first() is not None

    async def find_tenant(self, tx: Transaction, tenant_id: TenantId) -> Tenant | None:
        """See `TenantStore.find_tenant`."""
        query = select(*_TENANT).where(_t.tenant_id == tenant_id).with_for_update()
        row = (await connection_of(tx).execute(query)).first()
        return None if row is None else _tenant(row)

    async def list_tenants(self, tx: Transaction, *, after: str, limit: int) -> Sequence[Tenant]:
        """See `TenantStore.list_tenants`."""
        query = select(*_TENANT).where(_t.tenant_id > after).order_by(_t.tenant_id).limit(limit)
        return [_tenant(row) for row in await connection_of(tx).execute(query)]

    async def save_tenant(self, tx: Transaction, tenant: Tenant) -> None:
        """See `TenantStore.save_tenant`."""
        change = update(tenants).where(_t.tenant_id == tenant.tenant_id)
        await connection_of(tx).execute(
            change.values(
                display_name=tenant.display_name,
                max_pending=tenant.max_pending,
                executions_per_minute=tenant.executions_per_minute,
                encrypt_bodies=tenant.encrypt_bodies,
                llm_tokens_per_day=tenant.llm_tokens_per_day,
                llm_cost_micros_per_day=tenant.llm_cost_micros_per_day,
            )
        )

    # --- bootstrap

    async def use_secret(self, tx: Transaction, secret_hash: str, identity: str) -> TenantId | None:
        """See `BootstrapStore.use_secret`."""
        change = (
            update(bootstrap_secrets)
            .where(_s.secret_hash == secret_hash, _s.used_at.is_(None), _s.expires_at > func.now())
            .values(used_at=func.now(), used_by=identity)
            .returning(_s.tenant_id)
        )
        tenant_id = await connection_of(tx).scalar(change)
        return None if tenant_id is None else TenantId(tenant_id)


def _binding(row: Row[Any]) -> RoleBinding:
    return RoleBinding(
        tenant_id=TenantId(row.tenant_id),
        identity=row.identity,
        role=Role(row.role),
        created_at=row.created_at,
        created_by=row.created_by,
    )


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        tenant_id=TenantId(row.tenant_id),
        display_name=row.display_name,
        max_pending=row.max_pending,
        executions_per_minute=row.executions_per_minute,
        created_at=row.created_at,
        encrypt_bodies=row.encrypt_bodies,
        llm_tokens_per_day=row.llm_tokens_per_day,
        llm_cost_micros_per_day=row.llm_cost_micros_per_day,
    )

"""Postgres behind `GrantStore`: role bindings of callers and services, enrollment of nodes."""

from sqlalchemy import select

from control_plane.access.domain import Grant, Role
from control_plane.database.tables import nodes, role_bindings
from control_plane.database.unit_of_work import PostgresDatabase
from shared.ids import TenantId
from shared.rpc.identity import SpiffeId


class PostgresGrantStore:
    """Implements `GrantStore`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def find(self, identity: SpiffeId) -> Grant | None:
        """See `GrantStore.find`."""
        return await (self._node(identity.name) if identity.kind == "node" else self._bindings(str(identity)))

    async def _node(self, node_id: str) -> Grant | None:
        query = select(nodes.c.tenant_id, nodes.c.state).where(nodes.c.node_id == node_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return Grant(
            tenant_id=TenantId(row.tenant_id), roles=frozenset({Role.NODE}), evicted=row.state == "evicted"
        )

    async def _bindings(self, identity: str) -> Grant | None:
        query = (
            select(role_bindings.c.tenant_id, role_bindings.c.role)
            .where(role_bindings.c.identity == identity)
            .order_by(role_bindings.c.tenant_id)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return None
        # One tenant per identity until tenants are more than a column: the first, and nothing of another.
        tenant = rows[0].tenant_id
        return Grant(
            tenant_id=TenantId(tenant),
            roles=frozenset(Role(row.role) for row in rows if row.tenant_id == tenant),
        )

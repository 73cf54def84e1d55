"""Postgres behind `GrantStore`: role bindings of callers and services, enrollment of nodes."""

from collections.abc import Collection

from sqlalchemy import select

from control_plane.access.domain import Bound, Grant, Role
from control_plane.database.tables import nodes, role_bindings
from control_plane.database.unit_of_work import PostgresDatabase
from shared.ids import TenantId


class PostgresGrantStore:
    """Implements `GrantStore`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def node(self, node_id: str) -> Grant | None:
        """See `GrantStore.node`."""
        query = select(nodes.c.tenant_id, nodes.c.state).where(nodes.c.node_id == node_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return Grant(
            tenant_id=TenantId(row.tenant_id), roles=frozenset({Role.NODE}), evicted=row.state == "evicted"
        )

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

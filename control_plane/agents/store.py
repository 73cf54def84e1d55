"""Postgres behind `AgentStore`."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.agents.domain import Agent
from control_plane.database.ports import Transaction
from control_plane.database.tables import agents
from control_plane.database.unit_of_work import connection_of
from shared.digests import Digest
from shared.ids import AgentId, TenantId

_a = agents.c
_COLUMNS: Final = (
    _a.agent_id,
    _a.tenant_id,
    _a.name,
    _a.template_name,
    _a.template_version,
    _a.template_digest,
    _a.parameters,
    _a.revision,
    _a.created_at,
    _a.updated_at,
)


class PostgresAgentStore:
    """Implements `AgentStore`."""

    async def add(self, tx: Transaction, agent: Agent) -> bool:
        """See `AgentStore.add`."""
        row = upsert(agents).values(
            agent_id=agent.agent_id,
            tenant_id=agent.tenant_id,
            name=agent.name,
            template_digest=agent.template_digest,
            template_name=agent.template_name,
            template_version=agent.template_version,
            parameters=agent.parameters,
            revision=agent.revision,
            created_at=agent.created_at,
            updated_at=agent.updated_at,
        )
        stored = await connection_of(tx).execute(row.on_conflict_do_nothing().returning(_a.agent_id))
        return stored.first() is not None

    async def find(self, tx: Transaction, tenant_id: TenantId, name: str) -> Agent | None:
        """See `AgentStore.find`."""
        query = select(*_COLUMNS).where(_a.tenant_id == tenant_id, _a.name == name, _a.deleted_at.is_(None))
        row = (await connection_of(tx).execute(query)).first()
        return None if row is None else _agent(row)

    async def list(self, tx: Transaction, tenant_id: TenantId, *, after: str, limit: int) -> Sequence[Agent]:
        """See `AgentStore.list`."""
        query = (
            select(*_COLUMNS)
            .where(_a.tenant_id == tenant_id, _a.deleted_at.is_(None), _a.name > after)
            .order_by(_a.name)
            .limit(limit)
        )
        return [_agent(row) for row in await connection_of(tx).execute(query)]

    async def update(self, tx: Transaction, agent: Agent, *, revision: int) -> bool:
        """See `AgentStore.update`."""
        change = (
            update(agents)
            .where(_a.agent_id == agent.agent_id, _a.revision == revision, _a.deleted_at.is_(None))
            .values(
                template_digest=agent.template_digest,
                template_name=agent.template_name,
                template_version=agent.template_version,
                parameters=agent.parameters,
                revision=agent.revision,
                updated_at=agent.updated_at,
            )
            .returning(_a.agent_id)
        )
        return (await connection_of(tx).execute(change)).first() is not None

    async def delete(self, tx: Transaction, tenant_id: TenantId, name: str) -> AgentId | None:
        """See `AgentStore.delete`."""
        change = (
            update(agents)
            .where(_a.tenant_id == tenant_id, _a.name == name, _a.deleted_at.is_(None))
            .values(deleted_at=func.now())
            .returning(_a.agent_id)
        )
        agent_id = await connection_of(tx).scalar(change)
        return None if agent_id is None else AgentId(agent_id)


def _agent(row: Row[Any]) -> Agent:
    return Agent(
        agent_id=AgentId(row.agent_id),
        tenant_id=TenantId(row.tenant_id),
        name=row.name,
        template_name=row.template_name,
        template_version=row.template_version,
        template_digest=Digest(row.template_digest),
        parameters=row.parameters,
        revision=row.revision,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )

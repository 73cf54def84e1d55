"""Postgres behind `AgentStore`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.agents.domain import Agent, Candidate, VersionOfAgent
from control_plane.database.ports import Transaction
from control_plane.database.tables import agents, executions
from control_plane.database.unit_of_work import connection_of
from shared.digests import Digest
from shared.ids import AgentId, TenantId

_a, _e = agents.c, executions.c
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
    _a.channel,
    _a.candidate_digest,
    _a.candidate_version,
    _a.candidate_parameters,
    _a.candidate_percent,
    _a.previous_digest,
    _a.previous_version,
    _a.previous_parameters,
)

_ADD: Final = upsert(agents).on_conflict_do_nothing().returning(_a.agent_id)


class PostgresAgentStore:
    """Implements `AgentStore`."""

    async def add(self, tx: Transaction, agent: Agent) -> bool:
        """See `AgentStore.add`."""
        row = {
            "agent_id": agent.agent_id,
            "tenant_id": agent.tenant_id,
            "name": agent.name,
            "template_digest": agent.template_digest,
            "template_name": agent.template_name,
            "template_version": agent.template_version,
            "parameters": agent.parameters,
            "revision": agent.revision,
            "created_at": agent.created_at,
            "updated_at": agent.updated_at,
            "channel": agent.channel,
        }
        stored = await connection_of(tx).execute(_ADD, row)
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
                channel=agent.channel,
                **_rollout_values(agent),
            )
            .returning(_a.agent_id)
        )
        return (await connection_of(tx).execute(change)).first() is not None

    async def followers(
        self, tx: Transaction, tenant_id: TenantId, template_name: str, channel: str, *, limit: int
    ) -> Sequence[Agent]:
        """See `AgentStore.followers`."""
        query = (
            select(*_COLUMNS)
            .where(*_follows(tenant_id, template_name, channel))
            .order_by(_a.name)
            .limit(limit)
            .with_for_update()
        )
        return [_agent(row) for row in await connection_of(tx).execute(query)]

    async def count_followers(
        self, tx: Transaction, tenant_id: TenantId, template_name: str, channel: str
    ) -> int:
        """See `AgentStore.count_followers`."""
        query = select(func.count()).where(*_follows(tenant_id, template_name, channel))
        return (await connection_of(tx).execute(query)).scalar_one()

    async def outcomes(
        self, tx: Transaction, agent: Agent, *, newest: int
    ) -> Mapping[Digest, Mapping[str, int]]:
        """See `AgentStore.outcomes`."""
        latest = (
            select(_e.template_digest, _e.state, _e.agent_id)
            .where(_e.tenant_id == agent.tenant_id, _e.agent_name == agent.name)
            .order_by(_e.execution_id.desc())
            .limit(newest)
            .subquery()
        )
        query = (
            select(latest.c.template_digest, latest.c.state, func.count().label("executions"))
            .where(latest.c.agent_id == agent.agent_id)  # the name may have been another agent's before
            .group_by(latest.c.template_digest, latest.c.state)
        )
        found: dict[Digest, dict[str, int]] = {}
        for row in await connection_of(tx).execute(query):
            found.setdefault(Digest(row.template_digest), {})[row.state] = row.executions
        return found

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


def _follows(tenant_id: TenantId, template_name: str, channel: str) -> tuple[ColumnElement[bool], ...]:
    return (
        _a.tenant_id == tenant_id,
        _a.template_name == template_name,
        _a.channel == channel,
        _a.channel != "",
        _a.deleted_at.is_(None),
    )


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
        channel=row.channel,
        candidate=_candidate(row),
        previous=_previous(row),
    )


def _candidate(row: Row[Any]) -> Candidate | None:
    if row.candidate_percent is None:
        return None
    to = VersionOfAgent(
        version=row.candidate_version,
        digest=Digest(row.candidate_digest),
        parameters=row.candidate_parameters,
    )
    return Candidate(to=to, percent=row.candidate_percent)


def _previous(row: Row[Any]) -> VersionOfAgent | None:
    if row.previous_digest is None:
        return None
    return VersionOfAgent(
        version=row.previous_version,
        digest=Digest(row.previous_digest),
        parameters=row.previous_parameters,
    )


def _rollout_values(agent: Agent) -> dict[str, Any]:
    candidate = agent.candidate
    return {
        **_version_values("candidate", candidate.to if candidate is not None else None),
        "candidate_percent": candidate.percent if candidate is not None else None,
        **_version_values("previous", agent.previous),
    }


def _version_values(prefix: str, of: VersionOfAgent | None) -> dict[str, Any]:
    return {
        f"{prefix}_digest": of.digest if of is not None else None,
        f"{prefix}_version": of.version if of is not None else None,
        f"{prefix}_parameters": of.parameters if of is not None else None,
    }

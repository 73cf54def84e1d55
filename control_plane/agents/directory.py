"""What an agent's name stands for, from memory. Stale for a moment at most; the accept checks again."""

from collections.abc import Sequence
from typing import Final

from control_plane.agents.domain import Agent, ResolvedAgent
from control_plane.agents.ports import AgentStore, Templates
from control_plane.database.ports import Database
from control_plane.templates.domain import TemplateRef, TemplateState, TemplateVersion
from shared.digests import sha256_digest
from shared.errors import NotFoundError, TemplateRevokedError
from shared.ids import TenantId
from shared.manifest import Retry, decode_manifest

MAX_KNOWN_AGENTS: Final = 4096
"""Agents kept in memory; the one that came first goes first."""


class CachedAgentDirectory:
    """Implements `AgentDirectory`. `changed` is for NOTIFY: any change forgets everything, which is cheap."""

    def __init__(self, *, database: Database, agents: AgentStore, templates: Templates) -> None:
        self._database = database
        self._agents = agents
        self._templates = templates
        self._known: dict[tuple[TenantId, str], ResolvedAgent] = {}
        self._changes = 0

    async def resolve(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """See `AgentDirectory.resolve`."""
        return self._known.get((tenant_id, name)) or await self.refresh(tenant_id, name)

    async def refresh(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """See `AgentDirectory.refresh`."""
        self._known.pop((tenant_id, name), None)
        before = self._changes
        async with self._database.transaction() as tx:
            agent = await self._agents.find(tx, tenant_id, name)
        if agent is None:
            raise NotFoundError(f"there is no agent {name}")
        version = await self._templates.get(tenant_id, TemplateRef(digest=agent.template_digest))
        if version.state is TemplateState.REVOKED:
            raise TemplateRevokedError(
                f"template {version.name} {version.version} of agent {name} is revoked"
            )
        resolved = resolve_agent(agent, version)
        # What was read before a change was announced is not kept.
        if self._changes == before:
            if len(self._known) >= MAX_KNOWN_AGENTS:
                self._known.pop(next(iter(self._known)))
            self._known[(tenant_id, name)] = resolved
        return resolved

    def changed(self, _payloads: Sequence[str] = ()) -> None:
        """Forget everything: an agent or a template changed, or an announcement may have been missed."""
        self._changes += 1
        self._known.clear()


def resolve_agent(agent: Agent, version: TemplateVersion) -> ResolvedAgent:
    """Return an agent with everything of its template that an execution is made from."""
    manifest = decode_manifest(version.manifest)
    return ResolvedAgent(
        agent_id=agent.agent_id,
        name=agent.name,
        revision=agent.revision,
        template_name=version.name,
        template_version=version.version,
        template_digest=version.digest,
        module_digest=version.module_digest,
        publisher_key_id=version.publisher_key_id,
        parameters=agent.parameters,
        parameters_digest=sha256_digest(agent.parameters),
        limits=manifest.limits,
        capabilities=manifest.capabilities,
        media_type=manifest.media_type,
        profile=manifest.profile,
        retry_is_safe=manifest.retry is Retry.SAFE,
        input_schema=manifest.input_schema,
    )

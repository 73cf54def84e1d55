"""What an agent's name stands for, from memory. Stale for a moment at most; the accept checks again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from control_plane.agents.domain import Agent, ResolvedAgent, VersionOfAgent
from control_plane.agents.ports import AgentStore, Templates
from control_plane.database.ports import Database
from control_plane.templates.domain import TemplateRef, TemplateState, TemplateVersion, require_open
from shared.cache import Cache, CacheStats
from shared.digests import sha256_digest
from shared.errors import NotFoundError
from shared.ids import TenantId
from shared.manifest import Retry, decode_manifest

MAX_KNOWN_AGENTS: Final = 4096
"""Agents kept in memory."""


class CachedAgentDirectory:
    """Implements `AgentDirectory`. `changed` is for NOTIFY: any change forgets everything, which is cheap."""

    def __init__(
        self,
        *,
        database: Database,
        agents: AgentStore,
        templates: Templates,
        cache: Cache[tuple[TenantId, str], ResolvedAgent],
    ) -> None:
        self._database = database
        self._agents = agents
        self._templates = templates
        self._cache = cache

    async def resolve(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """See `AgentDirectory.resolve`."""
        return await self._cache.get_or_load((tenant_id, name), lambda: self._read(tenant_id, name))

    async def refresh(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """See `AgentDirectory.refresh`."""
        self._cache.forget((tenant_id, name))
        return await self.resolve(tenant_id, name)

    def changed(self, _payloads: Sequence[str] = ()) -> None:
        """Forget everything: an agent or a template changed, or an announcement may have been missed."""
        self._cache.forget_all()

    def stats(self) -> CacheStats:
        """Return what the memory does."""
        return self._cache.stats()

    async def _read(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        async with self._database.transaction() as tx:
            agent = await self._agents.find(tx, tenant_id, name)
        if agent is None:
            raise NotFoundError(f"there is no agent {name}")
        version = await self._version(tenant_id, agent.current)
        require_open(version)
        resolved = resolve_agent(agent, version)
        if agent.candidate is None:
            return resolved
        version = await self._version(tenant_id, agent.candidate.to)
        if version.state is not TemplateState.ACTIVE:
            return resolved  # a version that is closed while it is tried takes nothing down with it
        candidate = resolve_agent(replace(agent, parameters=agent.candidate.to.parameters), version)
        return replace(resolved, candidate=candidate, candidate_percent=agent.candidate.percent)

    async def _version(self, tenant_id: TenantId, of: VersionOfAgent) -> TemplateVersion:
        # Never from the cache: who refreshes was told that something is newer than what is known.
        return await self._templates.get(tenant_id, TemplateRef(digest=of.digest))


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

"""Agents as values. No I/O."""

from dataclasses import dataclass, field
from datetime import datetime

from shared.digests import Digest
from shared.ids import AgentId, TenantId
from shared.limits import RequestedLimits
from shared.manifest import Capabilities, Profile
from shared.schemas import JsonSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A named instance of one template version."""

    agent_id: AgentId
    tenant_id: TenantId
    name: str
    template_name: str
    template_version: str
    template_digest: Digest
    parameters: bytes
    """Canonical JSON object."""
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAgent:
    """An agent with everything of its template that an execution is made from."""

    agent_id: AgentId
    name: str
    revision: int
    template_name: str
    template_version: str
    template_digest: Digest
    module_digest: Digest
    publisher_key_id: str
    parameters: bytes
    """Canonical JSON object."""
    parameters_digest: Digest
    limits: RequestedLimits
    """As the manifest asks; policy grants them or less."""
    capabilities: Capabilities
    media_type: str
    profile: Profile
    retry_is_safe: bool
    input_schema: JsonSchema | None = field(default=None, repr=False)
    """What inputs have to fit; None: they are anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPage:
    """One page of agents, by name."""

    agents: tuple[Agent, ...]
    next_page_token: str
    """Empty when this is the last one."""

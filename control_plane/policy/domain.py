"""Questions a policy answers and what an answer is. No engine, no clock, no I/O."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.digests import Digest
from shared.ids import DecisionId, TenantId
from shared.limits import Limits, RequestedLimits
from shared.manifest import Capabilities


class Question(StrEnum):
    """What is asked; the name of the entry point in the policy."""

    PUBLISH_TEMPLATE = "publish_template"
    CREATE_AGENT = "create_agent"
    EXECUTE = "execute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who asks."""

    identity: str
    tenant_id: TenantId
    roles: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInput:
    """Everything a decision depends on. Equal inputs get equal answers while the policy stays the same."""

    subject: Subject
    template_name: str
    template_version: str
    template_digest: Digest
    capabilities: Capabilities
    limits: RequestedLimits
    """As the manifest asks."""
    publisher_key_id: str = ""
    agent: str = ""
    """Name of the agent; empty when a template is published."""
    input_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One answer, recorded with the change it allowed or as the denial it is."""

    decision_id: DecisionId
    tenant_id: TenantId
    question: Question
    allowed: bool
    reason: str
    """Machine-readable, e.g. ``ALLOWED``, ``CAPABILITY_NOT_ALLOWED``."""
    input: bytes
    """Canonical JSON of the input."""
    policy_digest: Digest
    limits: Limits
    """What is granted: the smaller of asked and allowed, every value named. Meaningless when denied."""
    decided_at: datetime

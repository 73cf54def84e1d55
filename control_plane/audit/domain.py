"""One fact: who did what to what, when, with which result. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from shared.ids import AuditEntryId, TenantId

Fact = str | int | bool

SYSTEM_ACTOR = "system"


def node_actor(node_id: str) -> str:
    """Return how a node appears as an actor."""
    return f"node:{node_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAuditEntry:
    """A fact about to be recorded; Postgres gives the time."""

    audit_entry_id: AuditEntryId
    tenant_id: TenantId
    actor: str
    """A SPIFFE id, ``node:<id>`` or ``system``."""
    action: str
    """``<subject kind>.<what happened>``, e.g. ``execution.submitted``."""
    subject: str
    result: str = "ok"
    """``ok`` or the reason of the refusal."""
    details: Mapping[str, Fact] = field(default_factory=dict)
    """Named facts; never a body, never a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A recorded fact."""

    audit_entry_id: AuditEntryId
    tenant_id: TenantId
    actor: str
    action: str
    subject: str
    result: str
    details: str
    """JSON object."""
    recorded_at: datetime

"""One fact: who did what to what, when, with which result. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from shared.ids import AuditEntryId, TenantId
from shared.rpc.identity import forwarder

Fact = str | int | bool

SYSTEM_ACTOR = "system"


def node_actor(node_id: str) -> str:
    """Return how a node appears as an actor."""
    return f"node:{node_id}"


def printable(text: str) -> str:
    """Return the text with every character that is not printable as an escape."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)


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

    def __post_init__(self) -> None:
        """Name the gateway that passed the call on, and write what cannot be printed as escapes.

        So no text of a peer keeps an entry out or fakes one.

        Postgres takes no NUL, and terminals obey control characters.
        """
        for name in ("actor", "subject", "result"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        named = {"forwarded_by": forwarder()} if forwarder() else {}
        facts = {
            name: printable(fact) if isinstance(fact, str) else fact
            for name, fact in {**self.details, **named}.items()
        }
        object.__setattr__(self, "details", facts)


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

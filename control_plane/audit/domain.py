"""One fact: who did what to what, when, with which result. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared.errors import InvalidInputError
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


OK: Final = "ok"
REFUSED: Final = "refused"
"""In a filter: every result but ``ok``. No reason is in lower case."""
PREFIX_MARK: Final = "*"


class EntryOrder(StrEnum):
    """In which order entries are listed."""

    NEWEST_FIRST = "newest_first"
    OLDEST_FIRST = "oldest_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries are meant: those that meet all that is given."""

    action: str = ""
    """An action, or the beginning of some with a star at the end: ``execution.*``."""
    subject: str = ""
    actor: str = ""
    result: str = ""
    """``ok``, a reason, or ``refused`` for every reason."""
    recorded_from: datetime | None = None
    recorded_before: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse what can mean nothing.

        Raises:
            InvalidInputError: The star is not at the end, or the time ends before it begins.
        """
        if PREFIX_MARK in self.action[:-1]:
            raise InvalidInputError("a star stands at the end of an action, such as execution.*")
        times = (self.recorded_from, self.recorded_before)
        if times[0] is not None and times[1] is not None and times[0] >= times[1]:
            raise InvalidInputError("recorded_before is not later than recorded_from")

    def takes(self, entry: AuditEntry) -> bool:
        """Whether an entry meets it. The store asks Postgres for the same."""
        return (
            self._takes_action(entry.action)
            and self.subject in {"", entry.subject}
            and self.actor in {"", entry.actor}
            and self._takes_result(entry.result)
            and (self.recorded_from is None or entry.recorded_at >= self.recorded_from)
            and (self.recorded_before is None or entry.recorded_at < self.recorded_before)
        )

    def _takes_action(self, action: str) -> bool:
        if self.action.endswith(PREFIX_MARK):
            return action.startswith(self.action[:-1])
        return self.action in {"", action}

    def _takes_result(self, result: str) -> bool:
        return self.result in {"", result} or (self.result == REFUSED and result != OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedReceipt:
    """A receipt as the node signed it, and what became of it."""

    receipt_id: str
    execution_id: str
    node_id: str
    sequence: int
    received_at: datetime
    accepted: bool
    envelope: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What one leaf of the log is about."""

    log_index: int
    kind: str
    subject: str
    fact: AuditEntry | ExportedReceipt | None
    """None: it was removed by retention, or leaves of this kind have none."""

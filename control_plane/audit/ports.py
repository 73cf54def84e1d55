"""What the audit use cases, and everybody who changes state, need. Promises, no implementation."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from control_plane.audit.domain import AuditEntry, AuditFilter, EntryOrder, Exported, NewAuditEntry
from control_plane.database.ports import Transaction
from control_plane.paging import Page
from control_plane.policy.bundles import RecordedDecision
from control_plane.policy.domain import Subject
from shared.ids import AuditEntryId, DecisionId, ExecutionId, OrderId, ReceiptId, TenantId


class AuditLog(Protocol):
    """Where facts go: into the transaction of the change that they record."""

    async def append(self, tx: Transaction, entries: Sequence[NewAuditEntry]) -> None:
        """Add entries to the caller's transaction; watchers are told after its commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptEvidence:
    """A receipt with all that is needed to verify it later."""

    receipt_id: ReceiptId
    execution_id: ExecutionId
    envelope: bytes
    order_id: OrderId
    order_content: bytes
    leaf_index: int
    path: tuple[bytes, ...]
    batch_envelope: bytes
    receipt_public_key: bytes
    """SubjectPublicKeyInfo, DER."""
    after_eviction: bool
    """It came after the node's identity was ended."""
    keyset: bytes
    """The newest keyset."""
    template_envelope: bytes
    erased_at: datetime | None
    """When what the execution read and wrote was removed."""
    ancestor_envelopes: tuple[bytes, ...]
    """Of the templates that the template extends, the nearest first."""
    decision_id: DecisionId
    decision: RecordedDecision | None = None
    """What allowed the execution; None: it is not kept any more."""
    submission: AuditEntry | None
    """That the execution was accepted."""
    enrollment: AuditEntry | None
    """That the node was admitted; of the node's own tenant."""


class AuditStore(AuditLog, Protocol):
    """Reads what was recorded."""

    async def record(self, entries: Sequence[NewAuditEntry]) -> None:
        """Append in a transaction of its own: for facts without a state change, such as a refused call."""

    async def list(
        self,
        tenant_id: TenantId,
        wanted: AuditFilter,
        *,
        order: EntryOrder,
        page_size: int,
        page_token: str,
    ) -> Page[AuditEntry]:
        """Return a page of the entries that the filter takes.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """

    async def after(
        self, tenant_id: TenantId, cursor: "AuditCursor", *, limit: int
    ) -> tuple[Sequence[AuditEntry], "AuditCursor"]:
        """Return entries that became visible since `cursor`, oldest first, and the cursor behind them."""

    async def newest(self, tenant_id: TenantId) -> "AuditCursor":
        """Return a cursor behind everything that is visible now."""

    async def cursor_after(self, tenant_id: TenantId, audit_entry_id: AuditEntryId) -> "AuditCursor":
        """Return a cursor behind this entry.

        Raises:
            NotFoundError: The tenant has no such entry.
        """

    async def get_receipt(self, tenant_id: TenantId, receipt_id: ReceiptId) -> ReceiptEvidence:
        """Return a receipt with its evidence.

        Raises:
            NotFoundError: The tenant has no such receipt.
        """

    async def exported(
        self, tenant_id: TenantId, *, after: int, limit: int
    ) -> tuple[Sequence[Exported], int]:
        """Return what the tenant's next leaves behind place `after` are about, in the order of the log.

        Beside them the place up to which all was looked at; it is `after` when there is nothing more.
        """

    async def receipt_of(self, tenant_id: TenantId, execution_id: ExecutionId) -> ReceiptId:
        """Return the receipt that decided an execution.

        Raises:
            NotFoundError: The tenant has no such execution, or no receipt has decided it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCursor:
    """How far a watcher has read. Opaque: only the store that made it looks inside."""

    position: int
    """Every transaction older than this was visible when the cursor was made."""
    last_id: AuditEntryId | None = None


class Decisions(Protocol):
    """Reads decisions."""

    async def get(self, tenant_id: TenantId, decision_id: DecisionId) -> RecordedDecision:
        """Return a decision.

        Raises:
            NotFoundError: The tenant has no such decision.
        """


class AuditGate(Protocol):
    """Asks policy who may read what was recorded; every decision is recorded, too."""

    async def read(self, subject: Subject, *, method: str) -> None:
        """Let a reader pass.

        Raises:
            PolicyDeniedError: It may not read this.
        """

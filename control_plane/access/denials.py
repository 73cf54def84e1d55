"""Refused calls, and calls by a token for emergencies, as audit entries."""

from typing import Protocol

from control_plane.access.domain import DEFAULT_TENANT
from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditStore
from control_plane.audit.throttle import ANONYMOUS, RefusalLog
from shared.clock import Clock, Random
from shared.ids import AUDIT_ENTRY, TenantId, new_id
from shared.logs import get_logger
from shared.rpc.identity import Principal

logger = get_logger(__name__)


class BreakGlassCounter(Protocol):
    """Counts calls; cheap and never raises."""

    def break_glass(self) -> None:
        """One call was let in by a token for emergencies."""


class AuditedDenials:
    """Implements `DenialLog`."""

    def __init__(self, *, refusals: RefusalLog, clock: Clock, random: Random) -> None:
        self._refusals = refusals
        self._clock = clock
        self._random = random

    async def denied(self, *, actor: str, known: bool, tenant_id: TenantId, method: str, reason: str) -> None:
        """See `DenialLog.denied`."""
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=tenant_id,
            actor=actor,
            action="access.denied",
            subject=method,
            result=reason,
        )
        await self._refusals.record(entry, peer=actor if known else ANONYMOUS)


class AuditedBreakGlass:
    """Implements `BreakGlassLog`: an entry for each use, none left out; a warning; a metric to alert on."""

    def __init__(
        self, *, audit: AuditStore, counter: BreakGlassCounter, clock: Clock, random: Random
    ) -> None:
        self._audit = audit
        self._counter = counter
        self._clock = clock
        self._random = random

    async def used(self, principal: Principal, *, tenant_id: TenantId, method: str) -> None:
        """See `BreakGlassLog.used`. Those who look after the installation see it too, whatever the tenant."""
        self._counter.break_glass()
        logger.warning(
            "break-glass token used",
            caller=principal.identity,
            tenant=tenant_id,
            method=method,
            reason=principal.break_glass,
        )
        await self._audit.record(
            [
                NewAuditEntry(
                    audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
                    tenant_id=tenant,
                    actor=principal.identity,
                    action="access.break_glass",
                    subject=method,
                    details={"reason": principal.break_glass, "tenant": tenant_id},
                )
                for tenant in sorted({tenant_id, DEFAULT_TENANT})
            ]
        )

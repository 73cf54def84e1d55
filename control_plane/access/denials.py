"""Refused calls as audit entries."""

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.throttle import ANONYMOUS, RefusalLog
from shared.clock import Clock, Random
from shared.ids import AUDIT_ENTRY, TenantId, new_id


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

"""Denies engines and allows them again. Knows no gRPC and no SQL.

Dispatch looks at the denials itself, on every replica, each second and whenever it hears of a change.
"""

from collections.abc import Sequence
from typing import Final

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database
from control_plane.engines.domain import EngineDenial, EngineRule
from control_plane.engines.ports import EngineDenialStore
from control_plane.policy.domain import Subject
from shared.clock import Clock, Random
from shared.errors import ConflictError, ResourceExhaustedError
from shared.ids import AUDIT_ENTRY, new_id
from shared.logs import get_logger

MAX_DENIALS: Final = 256
"""Every replica looks at all of them each second."""

NODES_CHANNEL: Final = "af_nodes"

logger = get_logger(__name__)


class EngineService:
    """The use cases of denied engines."""

    def __init__(
        self, *, database: Database, store: EngineDenialStore, audit: AuditLog, clock: Clock, random: Random
    ) -> None:
        self._database = database
        self._store = store
        self._audit = audit
        self._clock = clock
        self._random = random

    async def deny(self, subject: Subject, rule: EngineRule, *, reason: str) -> EngineDenial:
        """Deny an engine. Repeat: the denial that is there.

        Raises:
            ResourceExhaustedError: 256 are denied already.
            ConflictError: Somebody else does the same at this moment.
        """
        denial = EngineDenial(
            rule=rule, reason=reason, denied_by=subject.identity, denied_at=self._clock.now()
        )
        async with self._database.transaction() as tx:
            found = await self._store.find(tx, rule)
            if found is not None:
                return found
            if await self._store.count(tx) >= MAX_DENIALS:
                raise ResourceExhaustedError(f"{MAX_DENIALS} engines are denied already")
            if not await self._store.add(tx, denial):
                raise ConflictError(f"{rule} is being denied by somebody else", hint="repeat it")
            await self._audit.append(tx, [self._entry(subject, "engine.denied", rule, reason)])
            tx.notify_after_commit(NODES_CHANNEL)
        logger.warning("engine denied", engine=str(rule), actor=subject.identity)
        return denial

    async def allow(self, subject: Subject, rule: EngineRule, *, reason: str) -> None:
        """Allow an engine again. Of one that is not denied: no effect."""
        async with self._database.transaction() as tx:
            if not await self._store.remove(tx, rule):
                return
            await self._audit.append(tx, [self._entry(subject, "engine.allowed", rule, reason)])
            tx.notify_after_commit(NODES_CHANNEL)
        logger.warning("engine allowed again", engine=str(rule), actor=subject.identity)

    async def list(self) -> Sequence[EngineDenial]:
        """Return what is denied, by name and version."""
        return await self._store.denials()

    def _entry(self, subject: Subject, action: str, rule: EngineRule, reason: str) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action=action,
            subject=rule.name,
            details={
                "engine_version": rule.version,
                "engine_config_digest": rule.config_digest,
                "reason": reason,
            },
        )

"""Removes what executions read and wrote, for whoever has to; what proves that they ran stays."""

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database
from control_plane.erasure.domain import MAX_AT_ONCE, Erased
from control_plane.erasure.ports import ErasureStore
from control_plane.policy.domain import Subject
from shared.clock import Clock, Random
from shared.errors import InvalidInputError, WrongStateError
from shared.ids import AUDIT_ENTRY, EXECUTION, new_id, parse_id


class ErasureService:
    """Erases; every execution leaves one audit entry, in the transaction of its removal."""

    def __init__(
        self, *, database: Database, store: ErasureStore, audit: AuditLog, clock: Clock, random: Random
    ) -> None:
        self._database = database
        self._store = store
        self._audit = audit
        self._clock = clock
        self._random = random

    async def erase(
        self, subject: Subject, *, execution_id: str, caller: str, reason: str
    ) -> tuple[int, bool]:
        """Erase one execution, or up to 100 that have ended of a caller; returns how many, and if more are.

        Raises:
            InvalidInputError: Neither or both are named, or the id is not one, or the reason is blank.
            NotFoundError: There is no such execution.
            WrongStateError: It has not ended, or its input is that of one that has not.
        """
        if bool(execution_id) == bool(caller):
            raise InvalidInputError("name either execution_id or caller")
        if not reason.strip():
            raise InvalidInputError("a reason is needed", hint="say who asked for it, and why")
        async with self._database.transaction() as tx:
            if execution_id:
                one = parse_id(EXECUTION, execution_id)
                if not await self._store.find(tx, subject.tenant_id, one):
                    raise WrongStateError(f"execution {one} has not ended", hint="cancel it first")
                wanted = [one]
            else:
                wanted = list(await self._store.of_caller(tx, subject.tenant_id, caller, limit=MAX_AT_ONCE))
            erased = await self._store.erase(tx, subject.tenant_id, wanted)
            await self._audit.append(tx, [self._entry(subject, one, reason) for one in erased])
        return len(erased), bool(caller) and len(wanted) == MAX_AT_ONCE

    def _entry(self, subject: Subject, erased: Erased, reason: str) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action="execution.erased",
            subject=erased.execution_id,
            details=erased.facts(reason),
        )

"""Makes, lists and lifts emergency stops. Knows no gRPC and no SQL.

Nothing here keeps new work away: the statements that accept and claim executions look at the stops
themselves, so a stop holds on every replica from its commit on, and whatever restarts.
"""

from dataclasses import replace
from typing import Final

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database, Transaction
from control_plane.executions.domain import EndReason, HaltScope
from control_plane.installation.domain import DEFAULT_TENANT
from control_plane.paging import BAD_TOKEN, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page, decode_token, encode_token
from control_plane.policy.domain import Subject
from control_plane.stops.domain import Stop, Stopped, StopTarget
from control_plane.stops.ports import Halting, StopObserver, StopStore
from shared.canonical import parse_canonical
from shared.clock import Clock, Random
from shared.digests import sha256_digest
from shared.errors import (
    ConflictError,
    InvalidInputError,
    MalformedError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from shared.ids import AUDIT_ENTRY, STOP, StopId, TenantId, new_id, parse_id
from shared.logs import get_logger

MAX_LIVE_STOPS: Final = 100
"""Of one tenant: every claim looks at them. More is a whole tenant."""

MAX_EVIDENCE_BYTES: Final = 256 * 1024
"""A receipt, and what running it again came to."""

QUEUE_CHANNEL: Final = "af_queue"

logger = get_logger(__name__)


class StopService:
    """The use cases of emergency stops."""

    def __init__(
        self,
        *,
        database: Database,
        store: StopStore,
        halting: Halting,
        audit: AuditLog,
        clock: Clock,
        random: Random,
        observer: StopObserver,
    ) -> None:
        self._observer = observer
        self._database = database
        self._store = store
        self._halting = halting
        self._audit = audit
        self._clock = clock
        self._random = random

    async def create(
        self, subject: Subject, target: StopTarget, *, reason: str, evidence: bytes = b""
    ) -> Stopped:
        """Stop a tenant or a template of it, and what runs of it. Repeat: stops again what still runs.

        With evidence it is a quarantine of one version.

        Raises:
            InvalidInputError: Evidence for something else than one version, or it is no canonical JSON.
            PermissionDeniedError: Another tenant than the caller's own, and that is not the installation's.
            NotFoundError: There is no such tenant or template.
            ResourceExhaustedError: So many stops of the tenant hold already.
            ConflictError: Somebody else makes the same at this moment.
        """
        _require_reach(subject, target.tenant_id)
        _check_evidence(target, evidence)
        stop = Stop(
            stop_id=new_id(STOP, self._clock, self._random),
            target=target,
            reason=reason,
            created_by=subject.identity,
            created_at=self._clock.now(),
            evidence=evidence,
            is_quarantine=bool(evidence),
        )
        async with self._database.transaction() as tx:
            if not await self._store.has_target(tx, target):
                raise NotFoundError(f"there is no {target}")
            stop = await self._store.find_live(tx, target) or await self._add(tx, subject, stop)
        scope = HaltScope(
            tenant_id=target.tenant_id,
            template_name=target.template_name,
            template_digest=target.template_digest,
        )
        logger.warning("emergency stop", stop_id=stop.stop_id, target=str(target), actor=subject.identity)
        told = await self._halting.halt(scope, EndReason.STOPPED, actor=subject.identity)
        return Stopped(stop=stop, executions_stopped=told)

    async def _add(self, tx: Transaction, subject: Subject, stop: Stop) -> Stop:
        target = stop.target
        if await self._store.count_live(tx, target.tenant_id) >= MAX_LIVE_STOPS:
            raise ResourceExhaustedError(
                f"{MAX_LIVE_STOPS} stops of tenant {target.tenant_id} hold already",
                hint="stop the whole tenant, or lift some",
            )
        if not await self._store.add(tx, stop):
            raise ConflictError(f"{target} is being stopped by somebody else", hint="repeat it")
        action = "template.quarantined" if stop.evidence else "stop.created"
        await self._audit.append(tx, [self._entry(subject, action, stop, stop.reason)])
        if stop.evidence:
            self._observer.template_quarantined()
            logger.error("template quarantined", stop_id=stop.stop_id, target=str(stop.target))
        return stop

    async def get(self, subject: Subject, stop_id: str) -> Stop:
        """Return a stop with its evidence.

        Raises:
            NotFoundError: There is no such stop that the caller may reach.
        """
        async with self._database.transaction() as tx:
            stop = await self._store.get(tx, parse_id(STOP, stop_id))
            if stop is None or not _reaches(subject, stop.target.tenant_id):
                raise NotFoundError(f"there is no stop {stop_id}")
            return replace(stop, evidence=await self._store.evidence(tx, stop.stop_id))

    async def lift(self, subject: Subject, stop_id: str, *, reason: str) -> Stop:
        """Let what waits go on. What was ended stays so. Of a lifted one: no effect.

        Raises:
            NotFoundError: There is no such stop that the caller may reach.
        """
        async with self._database.transaction() as tx:
            stop = await self._store.get(tx, parse_id(STOP, stop_id))
            if stop is None or not _reaches(subject, stop.target.tenant_id):
                raise NotFoundError(f"there is no stop {stop_id}")
            if not stop.holds:
                return stop
            lifted = replace(
                stop, lifted_by=subject.identity, lift_reason=reason, lifted_at=self._clock.now()
            )
            await self._store.lift(tx, lifted)
            await self._audit.append(tx, [self._entry(subject, "stop.lifted", lifted, reason)])
            tx.notify_after_commit(QUEUE_CHANNEL)
        logger.warning("emergency stop lifted", stop_id=stop.stop_id, target=str(stop.target))
        return lifted

    async def list(self, subject: Subject, *, lifted: bool, page_size: int, page_token: str) -> Page[Stop]:
        """Return a page, newest first: of the caller's tenant, or of all for the installation's own.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        tenant_id = None if subject.tenant_id == DEFAULT_TENANT else subject.tenant_id
        before = _id_of(page_token) if page_token else None
        async with self._database.transaction() as tx:
            found = await self._store.list(
                tx, tenant_id=tenant_id, lifted=lifted, before=before, limit=size + 1
            )
        more = len(found) > size
        return Page(
            items=tuple(found[:size]), next_page_token=encode_token(found[size - 1].stop_id) if more else ""
        )

    def _entry(self, subject: Subject, action: str, stop: Stop, reason: str) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=stop.target.tenant_id,
            actor=subject.identity,
            action=action,
            subject=stop.stop_id,
            details={
                "template_name": stop.target.template_name,
                "template_digest": stop.target.template_digest,
                "reason": reason,
                **({"evidence_digest": sha256_digest(stop.evidence)} if stop.evidence else {}),
            },
        )


def _check_evidence(target: StopTarget, evidence: bytes) -> None:
    if not evidence:
        return
    if not target.template_digest:
        raise InvalidInputError("a quarantine, a stop with evidence, is of one version by its digest")
    try:
        parse_canonical(evidence, max_bytes=MAX_EVIDENCE_BYTES)
    except MalformedError as error:
        raise InvalidInputError(f"evidence is not canonical JSON: {error}") from error


def _reaches(subject: Subject, tenant_id: TenantId) -> bool:
    return subject.tenant_id in {tenant_id, DEFAULT_TENANT}


def _require_reach(subject: Subject, tenant_id: TenantId) -> None:
    if not _reaches(subject, tenant_id):
        raise PermissionDeniedError(
            f"{subject.identity} may not stop tenant {tenant_id}",
            hint=f"only tenant {DEFAULT_TENANT} may stop another one",
        )


def _id_of(token: str) -> StopId:
    try:
        return parse_id(STOP, decode_token(token))
    except InvalidInputError as error:
        raise InvalidInputError(BAD_TOKEN) from error

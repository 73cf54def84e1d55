"""Executions in memory, by the pure transitions. Passes the same contract suite as Postgres."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from control_plane.audit.domain import SYSTEM_ACTOR, NewAuditEntry, node_actor
from control_plane.executions.body_store import UNUSED_BODY_LIFE
from control_plane.executions.domain import (
    EXCLUSION_LAPSE,
    INLINE_BODY_BYTES,
    Accepted,
    AcceptOutcome,
    AttemptRef,
    AttemptResult,
    AttemptState,
    BodyKind,
    CancelRequest,
    Claimable,
    Claimed,
    Disposition,
    EndedExecution,
    EndReason,
    ExecutionState,
    HaltScope,
    LiveAttempt,
    LossReason,
    LostAttempt,
    NewExecution,
    PendingReason,
    Placement,
    SessionRef,
    SignedBatchRecord,
    StoredBody,
    UnsafeCall,
    UploadQuota,
)
from control_plane.executions.encoding import capabilities_of_bytes
from control_plane.executions.lifecycle import Attempt, Execution, Finished
from control_plane.executions.ports import Place
from control_plane.executions.rows import execution_id_of_token, request_hmac
from control_plane.executions.turns import Turns, due, share
from control_plane.kv.domain import KvAnswer, KvDenial, KvRead
from control_plane.paging import Page, encode_token
from control_plane.policy.domain import Decision
from shared.clock import Clock
from shared.digests import Digest
from shared.errors import NotFoundError, PermissionDeniedError, ResourceExhaustedError, SessionSupersededError
from shared.ids import AuditEntryId, BodyId, BootId, ExecutionId, NodeId, OrderId, TenantId
from tests.fakes.kv import FakeKv

Key = tuple[str, str, str, str]


@dataclass
class _Body:
    tenant_id: TenantId
    body: StoredBody
    expires_at: datetime | None
    uploaded_by: str = ""


@dataclass
class _Request:
    execution_id: ExecutionId
    hmac_key: bytes
    request_hmac: bytes
    created_at: datetime


@dataclass
class FakeExecutionStore:
    """Implements `ExecutionStore`, `LeaseStore` and `KvReader`. Agents and sessions are set by the test."""

    clock: Clock
    agents: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Live agents: id → revision and template digest."""
    sessions: dict[NodeId, tuple[int, BootId]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    """Digests of templates that are retired or revoked."""
    stops: dict[HaltScope, str] = field(default_factory=dict)
    """Live emergency stops with their reasons; every template is named redact."""
    entries: list[NewAuditEntry] = field(default_factory=list)
    denials: list[Decision] = field(default_factory=list)
    batches: dict[str, SignedBatchRecord] = field(default_factory=dict)
    kv: FakeKv = field(default_factory=FakeKv)

    def __post_init__(self) -> None:
        self._executions: dict[ExecutionId, Execution] = {}
        self._work: dict[ExecutionId, NewExecution] = {}
        self._bodies: dict[BodyId, _Body] = {}
        self._turns = Turns()
        self._requests: dict[Key, _Request] = {}
        self._placements: dict[OrderId, Placement] = {}
        self._receipts: dict[tuple[NodeId, int], tuple[AttemptResult, Disposition]] = {}

    # --- as callers see them

    async def accept(
        self, items: Sequence[NewExecution], placements: Sequence[Placement | None]
    ) -> Sequence[Accepted]:
        return [self._accept(item, at) for item, at in zip(items, placements, strict=True)]

    def _accept(self, item: NewExecution, placement: Placement | None) -> Accepted:
        run = item.run
        key = (run.tenant_id, run.caller, item.idempotency.method, item.idempotency.request_id)
        known = self._requests.get(key)
        if known is not None:
            return self._accepted_before(item, placement, known)
        if run.input.content is None and run.input.body_id not in self._bodies:
            return Accepted(execution_id=run.execution_id, outcome=AcceptOutcome.BODY_GONE, placed=False)
        stop = self._stop_of(run.tenant_id, run.template_digest)
        if stop is not None:
            return Accepted(
                execution_id=run.execution_id, outcome=AcceptOutcome.STOPPED, placed=False, stop_reason=stop
            )
        if (
            self.agents.get(run.agent_id) != (item.agent_revision, run.template_digest)
            or run.template_digest in self.closed
        ):
            return Accepted(execution_id=run.execution_id, outcome=AcceptOutcome.STALE_AGENT, placed=False)
        now = self.clock.now()
        self._requests[key] = _Request(
            run.execution_id,
            item.idempotency.hmac_key,
            request_hmac(item.idempotency.hmac_key, item.idempotency.fingerprint),
            now,
        )
        self._use(run.tenant_id, run.input)
        self._work[run.execution_id] = item
        execution = _new(item, now)
        placed = placement is not None and self.sessions.get(placement.node_id) == (
            placement.session_epoch,
            placement.boot_id,
        )
        if placement is not None and placed:
            execution = execution.lease(placement, now=now)
            self._placements[placement.order_id] = placement
        self._executions[run.execution_id] = execution
        self._record(item.audit_entry_id, run.tenant_id, run.caller, "execution.submitted", run.execution_id)
        return Accepted(execution_id=run.execution_id, outcome=AcceptOutcome.NEW, placed=placed)

    def _accepted_before(self, item: NewExecution, placement: Placement | None, known: _Request) -> Accepted:
        if known.execution_id == item.run.execution_id:
            placed = placement is not None and placement.order_id in self._placements
            return Accepted(execution_id=known.execution_id, outcome=AcceptOutcome.NEW, placed=placed)
        same = hmac.compare_digest(
            request_hmac(known.hmac_key, item.idempotency.fingerprint), known.request_hmac
        )
        outcome = AcceptOutcome.DUPLICATE if same else AcceptOutcome.CONFLICT
        return Accepted(execution_id=known.execution_id, outcome=outcome, placed=False)

    async def get(self, tenant_id: TenantId, execution_id: ExecutionId) -> Execution:
        execution = self._executions.get(execution_id)
        if execution is None or execution.tenant_id != tenant_id:
            raise NotFoundError(f"there is no execution {execution_id}")
        if self._holds(execution):
            execution = replace(execution, pending_reason=PendingReason.STOPPED)
        return self._with_output(execution)

    async def list(
        self,
        tenant_id: TenantId,
        *,
        agent_name: str,
        states: Sequence[ExecutionState],
        page_size: int,
        page_token: str,
    ) -> Page[Execution]:
        before = execution_id_of_token(page_token) if page_token else None
        found = [
            replace(one, attempts=())
            for one in sorted(self._executions.values(), key=lambda one: one.execution_id, reverse=True)
            if one.tenant_id == tenant_id
            and (not agent_name or one.agent_name == agent_name)
            and (not states or one.state in states)
            and (before is None or one.execution_id < before)
        ]
        items = tuple(found[:page_size])
        token = encode_token(items[-1].execution_id) if len(found) > page_size else ""
        return Page(items=items, next_page_token=token)

    async def states_of(self, execution_ids: Sequence[ExecutionId]) -> Mapping[ExecutionId, ExecutionState]:
        return {one: self._executions[one].state for one in execution_ids if one in self._executions}

    async def request_cancel(
        self, tenant_id: TenantId, execution_id: ExecutionId, entry: NewAuditEntry
    ) -> tuple[Execution, CancelRequest | None]:
        before = await self.get(tenant_id, execution_id)
        after = before.cancel(EndReason.CANCEL_REQUESTED, now=self.clock.now())
        if after != before:
            self._executions[execution_id] = after
            self.entries.append(entry)
        return after, _cancel_request(after)

    async def halt(
        self, scope: HaltScope, reason: EndReason, *, actor: str, limit: int
    ) -> tuple[Sequence[ExecutionId], Sequence[CancelRequest]]:
        tenant_id = scope.tenant_id
        found = [
            one
            for one in self._executions.values()
            if one.tenant_id == tenant_id
            and scope.template_digest in {"", one.template_digest}
            and not one.cancel_requested
        ]
        halted = [(one, one.halt(reason, now=self.clock.now())) for one in found]
        stopped = [after for before, after in halted if after != before][:limit]
        for one in stopped:
            self._executions[one.execution_id] = one
            ended = one.state.is_terminal
            action = f"execution.{one.state}" if ended else "execution.cancel_requested"
            self._record(AuditEntryId(""), tenant_id, actor, action, one.execution_id)
        ended_ids = [one.execution_id for one in stopped if one.state.is_terminal]
        return ended_ids, [request for one in stopped if (request := _cancel_request(one))]

    async def record_denial(self, decision: Decision, entry: NewAuditEntry) -> None:
        self.denials.append(decision)
        self.entries.append(entry)

    # --- bodies

    async def protect(self, tenant_id: TenantId, body: StoredBody) -> StoredBody:
        return body

    async def protect_results(self, results: Sequence[AttemptResult]) -> Sequence[AttemptResult]:
        return results

    async def add_body(self, tenant_id: TenantId, body: StoredBody, *, quota: UploadQuota) -> None:
        unused = [
            one.body.size_bytes
            for one in self._bodies.values()
            if one.uploaded_by == quota.owner
            and one.expires_at is not None
            and one.body.body_id != body.body_id
        ]
        if len(unused) + 1 > quota.max_bodies or sum(unused) + body.size_bytes > quota.max_bytes:
            raise ResourceExhaustedError(f"{quota.owner} has {len(unused)} unused bodies stored")
        kept = _Body(tenant_id, body, self.clock.now() + UNUSED_BODY_LIFE, quota.owner)
        self._bodies.setdefault(body.body_id, kept)

    async def get_body(self, tenant_id: TenantId, body_id: BodyId) -> StoredBody:
        return replace(self._body(tenant_id, body_id), content=None)

    async def find_uploaded_body(self, tenant_id: TenantId, commitment: Digest) -> StoredBody | None:
        for one in self._bodies.values():
            if (one.tenant_id, one.body.commitment) == (tenant_id, commitment) and one.expires_at is not None:
                return replace(one.body, content=None)
        return None

    async def find_output(self, execution_id: ExecutionId, commitment: Digest) -> StoredBody | None:
        found = self._executions.get(execution_id)
        return None if found is None else await self.find_uploaded_body(found.tenant_id, commitment)

    async def body_of(self, tenant_id: TenantId, execution_id: ExecutionId, kind: BodyKind) -> StoredBody:
        execution = await self.get(tenant_id, execution_id)
        body_id = {
            BodyKind.INPUT: execution.input_body_id,
            BodyKind.OUTPUT: execution.output_body_id,
            BodyKind.LOG: execution.log_body_id,
            BodyKind.RECORDING: execution.recording_body_id,
        }[kind]
        if body_id is None:
            raise NotFoundError(f"execution {execution_id} has no {kind}")
        return replace(self._body(tenant_id, body_id), content=None)

    async def read_body(
        self, tenant_id: TenantId, body_id: BodyId, *, offset_bytes: int, max_bytes: int
    ) -> bytes:
        content = self._body(tenant_id, body_id).content or b""
        return content[offset_bytes : offset_bytes + max_bytes]

    async def remove_unused_bodies(self, *, limit: int) -> int:
        now = self.clock.now()
        old = [
            key for key, one in self._bodies.items() if one.expires_at is not None and one.expires_at < now
        ]
        for key in old[:limit]:
            del self._bodies[key]
        return len(old[:limit])

    async def remove_idempotency_keys(self, *, older_than: timedelta, limit: int) -> int:
        before = self.clock.now() - older_than
        old = [key for key, one in self._requests.items() if one.created_at < before][:limit]
        for key in old:
            del self._requests[key]
        return len(old)

    # --- as dispatch sees them

    async def claim(
        self,
        session: SessionRef,
        *,
        limit: int,
        place: Place,
        alone: bool = True,
        too_new: Sequence[ExecutionId] = (),
    ) -> Claimed:
        now = self.clock.now()
        if self.sessions.get(session.node_id, (0, ""))[0] != session.session_epoch:
            raise SessionSupersededError(f"node {session.node_id} has a newer session")
        for execution_id in too_new:
            one = self._executions[execution_id]
            if one.claimable_at is not None:
                self._executions[execution_id] = replace(one, pending_reason=PendingReason.NEEDS_NEWER_NODE)
        waiting = self._by_turns(session.node_id, limit, now, alone=alone, passed=too_new)
        found = {one.execution_id: self._claimable_of(one) for one in waiting}
        placements = tuple(place(tuple(found.values())) if found else ())
        for placement in placements:
            leased = self._executions[placement.execution_id].lease(placement, now=now)
            self._executions[placement.execution_id] = leased
            self._placements[placement.order_id] = placement
            self._record(
                AuditEntryId(""), leased.tenant_id, SYSTEM_ACTOR, "attempt.leased", leased.execution_id
            )
        self._turns.served(found[one.execution_id].run.tenant_id for one in placements)
        return Claimed(
            placements=placements,
            executions=tuple(found[one.execution_id] for one in placements),
            queue_empty=len(waiting) < limit and len(placements) == len(waiting),
            left=frozenset(
                one.tenant_id
                for one in self._executions.values()
                if one.claimable_at is not None and _claimable(one, session.node_id, now)
            ),
        )

    def _by_turns(
        self, node_id: NodeId, limit: int, now: datetime, *, alone: bool, passed: Sequence[ExecutionId]
    ) -> Sequence[Execution]:
        queues: dict[TenantId, list[Execution]] = {}
        for one in sorted(
            (one for one in self._executions.values() if one.claimable_at is not None), key=self._due
        ):
            mine = queues.setdefault(one.tenant_id, [])
            passed_over = one.execution_id in passed or (one.runs_alone and not alone)
            held = one.template_digest in self.closed or self._holds(one)
            if _claimable(one, node_id, now) and not passed_over and not held:
                mine.append(one)
        tenants = sorted(queues, key=lambda tenant: (self._turns.of(tenant), tenant))
        each = share(limit, tenants)
        first = [one for tenant in tenants for one in queues[tenant][:each]][:limit]
        rest = [one for tenant in tenants for one in queues[tenant][each:]]
        return first + rest[: limit - len(first)]

    def _holds(self, execution: Execution) -> bool:
        stop = self._stop_of(execution.tenant_id, execution.template_digest)
        return execution.claimable_at is not None and stop is not None

    def _stop_of(self, tenant_id: TenantId, digest: str) -> str | None:
        return next(
            (
                reason
                for scope, reason in self.stops.items()
                if scope.tenant_id == tenant_id
                and scope.template_name in {"", "redact"}
                and scope.template_digest in {"", digest}
            ),
            None,
        )

    def _due(self, execution: Execution) -> tuple[datetime, str]:
        assert execution.claimable_at is not None
        priority = self._work[execution.execution_id].priority
        return due(execution.claimable_at, priority), execution.execution_id

    async def record_batches(self, batches: Sequence[SignedBatchRecord]) -> None:
        for batch in batches:
            self.batches.setdefault(batch.batch_id, batch)

    async def live_of(self, attempts: Sequence[AttemptRef]) -> Sequence[AttemptRef]:
        return [one for one in attempts if self._live(one) is not None]

    async def start(self, attempts: Sequence[AttemptRef]) -> None:
        for ref in attempts:
            before = self._executions.get(ref.execution_id)
            if before is None:
                continue
            after = before.start(ref.fencing_token, now=self.clock.now())
            if after != before:
                self._executions[ref.execution_id] = after
                live = after.live_attempt
                assert live is not None
                self._record(
                    AuditEntryId(""),
                    after.tenant_id,
                    node_actor(live.node_id),
                    "execution.started",
                    after.execution_id,
                )

    async def renew(
        self, node_id: NodeId, attempts: Sequence[AttemptRef], *, lease: timedelta
    ) -> Sequence[AttemptRef]:
        renewed = []
        for ref in attempts:
            live = self._live(ref)
            if live is None or live.node_id != node_id:
                continue
            execution = self._executions[ref.execution_id]
            longer = replace(live, lease_expires_at=self.clock.now() + lease)
            self._executions[ref.execution_id] = replace(
                execution, attempts=(*execution.attempts[:-1], longer)
            )
            renewed.append(ref)
        return renewed

    async def declare_unsafe(self, calls: Sequence[UnsafeCall]) -> Sequence[bool]:
        return [self._declare(one) for one in calls]

    def _declare(self, call: UnsafeCall) -> bool:
        live = self._held(call.node_id, call.attempt)
        if live is None:
            return False
        if live.unsafe_call_at is None:
            execution = self._executions[call.attempt.execution_id]
            noted = replace(live, unsafe_call_at=self.clock.now())
            self._executions[execution.execution_id] = replace(
                execution, attempts=(*execution.attempts[:-1], noted)
            )
            self._record(
                AuditEntryId(""),
                execution.tenant_id,
                node_actor(call.node_id),
                "attempt.unsafe_call",
                execution.execution_id,
            )
        return True

    async def read(self, reads: Sequence[KvRead]) -> Sequence[KvAnswer]:
        return [self._read(one) for one in reads]

    def _read(self, read: KvRead) -> KvAnswer:
        attempt = AttemptRef(
            execution_id=read.execution_id,
            attempt_number=read.attempt_number,
            fencing_token=read.fencing_token,
        )
        if self._held(read.node_id, attempt) is None:
            return KvAnswer(denial=KvDenial.LEASE_NOT_HELD)
        run = self._work[read.execution_id].run
        if not capabilities_of_bytes(run.capabilities).kv:
            return KvAnswer(denial=KvDenial.NOT_GRANTED)
        return KvAnswer(value=self.kv.values.get((run.tenant_id, run.agent_id, read.key)))

    def _held(self, node_id: NodeId, ref: AttemptRef) -> Attempt | None:
        """The attempt whose lease this node holds now."""
        live = self._live(ref)
        if live is None or (live.node_id, live.number) != (node_id, ref.attempt_number):
            return None
        return live if live.lease_expires_at > self.clock.now() else None

    async def finish(self, results: Sequence[AttemptResult]) -> Sequence[Finished]:
        await self.record_batches([result.batch for result in results if result.batch is not None])
        return [self._finish(result) for result in results]

    def _finish(self, result: AttemptResult) -> Finished:
        earlier = self._receipts.get((result.node_id, result.sequence))
        if earlier is not None:
            return self._finished_before(result, *earlier)
        placement = self._placements.get(result.order_id)
        if placement is None or (
            placement.order_digest,
            placement.node_id,
            placement.execution_id,
            placement.fencing_token,
        ) != (result.order_digest, result.node_id, result.execution_id, result.fencing_token):
            return _answer(result, Disposition.UNKNOWN_ORDER)
        before = self._executions[result.execution_id]
        for body in result.bodies:
            if body.content is None and body.body_id not in self._bodies:
                return _answer(result, Disposition.OUTPUT_MISSING)
        after, disposition = before.finish(result, now=self.clock.now())
        if disposition is Disposition.ACCEPTED and before.agent_id in self.agents:
            capabilities = self._work[before.execution_id].run.capabilities
            result = self.kv.judge(result, before, capabilities)
            self.kv.write(result, before)
            after, disposition = before.finish(result, now=self.clock.now())
        self._receipts[(result.node_id, result.sequence)] = (result, disposition)
        self._record(
            result.audit_entry_id,
            before.tenant_id,
            node_actor(result.node_id),
            _finish_action(after, disposition),
            before.execution_id,
        )
        if disposition is Disposition.EVIDENCE:
            return _answer(result, disposition)
        for body in result.bodies:
            self._use(before.tenant_id, body)
        self._executions[result.execution_id] = after
        return _answer(result, disposition, self._with_output(after))

    def _finished_before(
        self, result: AttemptResult, stored: AttemptResult, disposition: Disposition
    ) -> Finished:
        if stored.hash != result.hash:
            return _answer(result, Disposition.CONFLICT)
        if stored.receipt_id != result.receipt_id:
            return _answer(result, Disposition.DUPLICATE)
        execution = self._with_output(self._executions[result.execution_id])
        return _answer(result, disposition, execution if disposition is Disposition.ACCEPTED else None)

    async def expire_leases(
        self, *, limit: int, database_up_for: timedelta = timedelta(0)
    ) -> Sequence[LostAttempt]:
        now = self.clock.now()
        return self._lose(LossReason.LEASE_EXPIRED, lambda one: one.lease_expires_at < now, limit)

    async def lose_attempts_of_other_boots(self, node_id: NodeId, boot_id: BootId) -> Sequence[LostAttempt]:
        return self._lose(
            LossReason.NODE_RESTARTED, lambda one: one.node_id == node_id and one.boot_id != boot_id
        )

    async def release_unsent(self, placements: Sequence[Placement]) -> Sequence[LostAttempt]:
        orders = {one.order_id for one in placements}
        return self._lose(
            LossReason.ORDER_NOT_SENT,
            lambda one: one.order_id in orders and one.state is AttemptState.LEASED,
        )

    async def expire_deadlines(self, *, limit: int) -> Sequence[EndedExecution]:
        now = self.clock.now()
        ended = []
        due = [one for one in self._executions.values() if one.run_deadline_at <= now]
        for before in [one for one in due if not one.state.is_terminal and not one.cancel_requested][:limit]:
            after = before.expire(now=now)
            self._executions[before.execution_id] = after
            done = after.state.is_terminal
            action = f"execution.{after.state}" if done else "execution.cancel_requested"
            self._record(AuditEntryId(""), after.tenant_id, SYSTEM_ACTOR, action, after.execution_id)
            if done:
                ended.append(EndedExecution(tenant_id=after.tenant_id, execution_id=after.execution_id))
        return ended

    async def cancel_requests(self, node_ids: Sequence[NodeId]) -> Sequence[CancelRequest]:
        requests = (_cancel_request(one) for one in self._executions.values())
        return [one for one in requests if one is not None and one.node_id in node_ids]

    async def live_attempt(self, node_id: NodeId, attempt: AttemptRef) -> LiveAttempt:
        live = self._live(attempt)
        if live is None or live.node_id != node_id or live.lease_expires_at <= self.clock.now():
            raise PermissionDeniedError(f"node {node_id} does not hold this lease")
        execution = self._executions[attempt.execution_id]
        return LiveAttempt(
            attempt=attempt,
            tenant_id=execution.tenant_id,
            template_digest=execution.template_digest,
            module_digest=self._work[attempt.execution_id].run.module_digest,
            policy_digest=self._work[attempt.execution_id].run.policy_digest,
            input_body_id=execution.input_body_id,
            input_bytes=execution.input_bytes,
        )

    # --- inside

    def _lose(self, reason, lost, limit: int = 1_000_000) -> Sequence[LostAttempt]:
        answers = []
        for before in list(self._executions.values()):
            live = before.live_attempt
            if live is None or not lost(live) or len(answers) >= limit:
                continue
            after = before.lose(live.fencing_token, reason, now=self.clock.now())
            self._executions[before.execution_id] = after
            action = f"execution.{after.state}" if after.state.is_terminal else "attempt.lost"
            self._record(AuditEntryId(""), after.tenant_id, SYSTEM_ACTOR, action, after.execution_id)
            answers.append(
                LostAttempt(
                    attempt=AttemptRef(
                        execution_id=before.execution_id,
                        attempt_number=live.number,
                        fencing_token=live.fencing_token,
                    ),
                    node_id=live.node_id,
                    tenant_id=before.tenant_id,
                    reason=reason,
                    state=after.state,
                )
            )
        return answers

    def _live(self, ref: AttemptRef) -> Attempt | None:
        execution = self._executions.get(ref.execution_id)
        live = execution.live_attempt if execution else None
        return live if live is not None and live.fencing_token == ref.fencing_token else None

    def _claimable_of(self, execution: Execution) -> Claimable:
        run = self._work[execution.execution_id].run
        stored = self._bodies[run.input.body_id].body
        small = stored.size_bytes <= INLINE_BODY_BYTES
        return Claimable(
            run=replace(run, input=replace(stored, content=stored.content if small else None)),
            attempt_number=len(execution.attempts) + 1,
            fencing_token=execution.fencing_token + 1,
            excluded_nodes=execution.excluded_nodes,
            runs_alone=execution.runs_alone,
        )

    def _use(self, tenant_id: TenantId, body: StoredBody) -> None:
        if body.content is None:
            self._bodies[body.body_id].expires_at = None
        else:
            self._bodies[body.body_id] = _Body(tenant_id, body, None)

    def _body(self, tenant_id: TenantId, body_id: BodyId) -> StoredBody:
        found = self._bodies.get(body_id)
        if found is None or found.tenant_id != tenant_id:
            raise NotFoundError(f"there is no body {body_id}")
        return found.body

    def _with_output(self, execution: Execution) -> Execution:
        if execution.output_body_id is None or execution.output_bytes > INLINE_BODY_BYTES:
            return execution
        return replace(execution, output=self._bodies[execution.output_body_id].body.content)

    def _record(
        self, entry_id: AuditEntryId, tenant_id: TenantId, actor: str, action: str, subject: str
    ) -> None:
        self.entries.append(
            NewAuditEntry(
                audit_entry_id=entry_id, tenant_id=tenant_id, actor=actor, action=action, subject=subject
            )
        )


def _new(item: NewExecution, now: datetime) -> Execution:
    run = item.run
    return Execution(
        execution_id=run.execution_id,
        tenant_id=run.tenant_id,
        agent_id=run.agent_id,
        agent_name=run.agent_name,
        template_digest=run.template_digest,
        caller=run.caller,
        decision_id=run.decision_id,
        media_type=run.media_type,
        input_body_id=run.input.body_id,
        input_commitment=run.input.commitment,
        input_bytes=run.input.size_bytes,
        run_deadline_at=run.run_deadline_at,
        retry_is_safe=run.retry_is_safe,
        max_attempts=item.max_attempts,
        created_at=item.created_at,
        claimable_at=now,
    )


def _claimable(execution: Execution, node_id: NodeId, now: datetime) -> bool:
    at = execution.claimable_at
    if at is None or at > now or execution.run_deadline_at <= now:
        return False
    return node_id not in execution.excluded_nodes or at <= now - EXCLUSION_LAPSE


def _cancel_request(execution: Execution) -> CancelRequest | None:
    live = execution.live_attempt
    if live is None or not execution.cancel_requested:
        return None
    ref = AttemptRef(
        execution_id=execution.execution_id, attempt_number=live.number, fencing_token=live.fencing_token
    )
    return CancelRequest(attempt=ref, node_id=live.node_id, reason=execution.reason or "")


def _finish_action(after: Execution, disposition: Disposition) -> str:
    if disposition is Disposition.EVIDENCE:
        return "receipt.late"
    return f"execution.{after.state}" if after.state.is_terminal else "attempt.rejected"


def _answer(result: AttemptResult, disposition: Disposition, execution: Execution | None = None) -> Finished:
    return Finished(
        receipt_id=result.receipt_id,
        node_id=result.node_id,
        sequence=result.sequence,
        disposition=disposition,
        execution=execution,
    )

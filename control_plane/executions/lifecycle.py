"""How an execution and its attempts change (protocol rules 1, 2, 6 and 7). No I/O, no clock, no randomness.

The statements in store.py and lease_store.py give the same answers as the transitions here; a state machine
test holds both to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from control_plane.executions.domain import (
    FIRST_RETRY_BACKOFF,
    MAX_RETRY_BACKOFF,
    REJECTION_BACKOFF,
    AttemptResult,
    AttemptState,
    Disposition,
    EndReason,
    ExecutionState,
    LossReason,
    Outcome,
    PendingReason,
    Placement,
    ResourcesUsed,
)
from shared.digests import Digest
from shared.errors import WrongStateError
from shared.ids import AgentId, BodyId, BootId, DecisionId, ExecutionId, NodeId, OrderId, ReceiptId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of an execution on one node."""

    number: int
    fencing_token: int
    node_id: NodeId
    boot_id: BootId
    order_id: OrderId
    state: AttemptState
    receipt_id: ReceiptId | None = None
    reason: str | None = None
    leased_at: datetime
    lease_expires_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    unsafe_call_at: datetime | None = None
    """When the intent of its first unsafe host call was committed (rule 6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One request to run an agent. It owns its attempts, oldest first; only the newest can be live."""

    execution_id: ExecutionId
    tenant_id: TenantId
    agent_id: AgentId
    agent_name: str
    template_digest: Digest
    caller: str
    decision_id: DecisionId
    media_type: str
    input_body_id: BodyId
    input_commitment: Digest
    input_bytes: int
    run_deadline_at: datetime
    retry_is_safe: bool
    max_attempts: int
    created_at: datetime
    state: ExecutionState = ExecutionState.PENDING
    cancel_requested: bool = False
    fencing_token: int = 0
    """Of the newest attempt; zero before the first."""
    counted_attempts: int = 0
    """Lost ones; rejections of one node and orders that never left do not count."""
    excluded_nodes: tuple[NodeId, ...] = ()
    runs_alone: bool = False
    pending_reason: str = PendingReason.QUEUED
    claimable_at: datetime | None = None
    """None while an attempt is live and after the end."""
    exit_code: int | None = None
    limit: str | None = None
    trap: str | None = None
    reason: str | None = None
    resources_used: ResourcesUsed | None = None
    receipt_id: ReceiptId | None = None
    output_body_id: BodyId | None = None
    output_commitment: Digest | None = None
    output_bytes: int = 0
    log_body_id: BodyId | None = None
    log_bytes: int = 0
    recording_body_id: BodyId | None = None
    recording_bytes: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    output: bytes | None = None
    """Up to `INLINE_BODY_BYTES`, when it was read along."""

    @property
    def live_attempt(self) -> Attempt | None:
        """The attempt that a node holds a lease for, if any."""
        newest = self.attempts[-1] if self.attempts else None
        return newest if newest is not None and newest.state.is_live else None

    def lease(self, placement: Placement, *, now: datetime) -> "Execution":
        """Start the next attempt.

        Raises:
            WrongStateError: It has ended, has a live attempt, or the token is not the next one.
        """
        if self.state is not ExecutionState.PENDING or self.live_attempt is not None:
            raise WrongStateError(f"execution {self.execution_id} is {self.state}, or leased: not claimable")
        if placement.fencing_token != self.fencing_token + 1:
            raise WrongStateError(f"token {placement.fencing_token} does not follow {self.fencing_token}")
        attempt = Attempt(
            number=placement.attempt_number,
            fencing_token=placement.fencing_token,
            node_id=placement.node_id,
            boot_id=placement.boot_id,
            order_id=placement.order_id,
            state=AttemptState.LEASED,
            leased_at=now,
            lease_expires_at=now + placement.lease,
        )
        return replace(
            self,
            fencing_token=placement.fencing_token,
            claimable_at=None,
            pending_reason="",
            attempts=(*self.attempts, attempt),
        )

    def start(self, fencing_token: int, *, now: datetime) -> "Execution":
        """The node has started the guest. Anything but the live, leased attempt changes nothing."""
        live = self.live_attempt
        if live is None or live.fencing_token != fencing_token or live.state is not AttemptState.LEASED:
            return self
        return replace(
            _with_newest(self, replace(live, state=AttemptState.RUNNING, started_at=now)),
            state=ExecutionState.RUNNING,
            started_at=self.started_at or now,
        )

    def finish(self, result: AttemptResult, *, now: datetime) -> "tuple[Execution, Disposition]":
        """Rules 1 and 2: the first terminal transition wins; a token that is not the newest is evidence.

        So is the rejection of an order that came twice: the attempt may be running still. A node's reason of
        its own leads to another attempt, but not after an unsafe call (rule 6).
        """
        if self.state.is_terminal or not self.attempts or result.fencing_token != self.fencing_token:
            return self, Disposition.EVIDENCE
        newest = self.attempts[-1]
        if newest.state is AttemptState.FINISHED or result.refuses_a_repeat:
            return self, Disposition.EVIDENCE
        attempt = replace(
            newest,
            state=AttemptState.FINISHED,
            receipt_id=result.receipt_id,
            reason=result.reason,
            started_at=newest.started_at or result.started_at,
            ended_at=now,
        )
        decided = _with_newest(self, attempt)
        if not result.counts and not self.cancel_requested and not _is_unsafe_to_retry(decided):
            return _requeue_elsewhere(decided, result.node_id, now=now), Disposition.ACCEPTED
        return _ended_by(decided, result, now=now), Disposition.ACCEPTED

    def lose(self, fencing_token: int, reason: LossReason, *, now: datetime) -> "Execution":
        """End the live attempt without a result; the execution is retried or ends (rules 1, 6 and 7)."""
        live = self.live_attempt
        if live is None or live.fencing_token != fencing_token:
            return self
        counted = self.counted_attempts + (reason is not LossReason.ORDER_NOT_SENT)
        lost = replace(
            _with_newest(self, replace(live, state=AttemptState.LOST, reason=reason, ended_at=now)),
            counted_attempts=counted,
        )
        state, end_reason = _after_loss(lost, now=now)
        if state.is_terminal:
            return _end(lost, state, end_reason, now=now)
        if reason is LossReason.ORDER_NOT_SENT:
            return replace(
                lost, state=state, pending_reason=PendingReason.QUEUED, claimable_at=now, started_at=None
            )
        return replace(
            lost,
            state=state,
            pending_reason=PendingReason.RETRYING,
            runs_alone=True,
            claimable_at=now + retry_backoff(counted),
            started_at=None,
        )

    def cancel(self, reason: EndReason, *, now: datetime) -> "Execution":
        """Ask for the end: at once while no node has it, else when its node says so.

        Raises:
            WrongStateError: It has ended.
        """
        if self.state.is_terminal:
            raise WrongStateError(f"execution {self.execution_id} has ended: {self.state}")
        if self.live_attempt is None:
            return _end(self, end_state_of_cancel(reason), reason, now=now)
        if self.cancel_requested:
            return self
        return replace(self, cancel_requested=True, reason=reason)

    def halt(self, reason: EndReason, *, now: datetime) -> "Execution":
        """Apply what was decided about its template or tenant, if it is one of those that it concerns.

        A retired template ends what waits and lets run what runs. A stop ends what runs, and what waits waits
        on. A revoked template ends both (rule 7).
        """
        has_node = self.live_attempt is not None
        spared = (reason is EndReason.TEMPLATE_RETIRED and has_node) or (
            reason is EndReason.STOPPED and not has_node
        )
        return self if self.state.is_terminal or spared else self.cancel(reason, now=now)

    def expire(self, *, now: datetime) -> "Execution":
        """Apply the run deadline, if it has passed."""
        if self.state.is_terminal or now < self.run_deadline_at:
            return self
        return self.cancel(EndReason.RUN_DEADLINE, now=now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of one `AttemptResult`."""

    receipt_id: ReceiptId
    node_id: NodeId
    sequence: int
    disposition: Disposition
    execution: Execution | None
    """The execution after it, when it was accepted."""


_END_STATES: Final[Mapping[EndReason, ExecutionState]] = {
    EndReason.CANCEL_REQUESTED: ExecutionState.CANCELLED,
    EndReason.RUN_DEADLINE: ExecutionState.EXPIRED,
    EndReason.TEMPLATE_REVOKED: ExecutionState.CANCELLED,
    EndReason.TEMPLATE_RETIRED: ExecutionState.CANCELLED,
    EndReason.STOPPED: ExecutionState.CANCELLED,
}


def end_state_of_cancel(reason: EndReason) -> ExecutionState:
    """Return the state in which an execution ends that was stopped for this reason."""
    return _END_STATES[reason]


def retry_backoff(counted_attempts: int) -> timedelta:
    """Return how long an execution rests after its n-th counted attempt was lost; doubles, bounded."""
    return min(FIRST_RETRY_BACKOFF * (1 << (counted_attempts - 1)), MAX_RETRY_BACKOFF)


def _after_loss(execution: Execution, *, now: datetime) -> tuple[ExecutionState, EndReason | None]:
    if execution.cancel_requested:
        reason = EndReason(execution.reason or EndReason.CANCEL_REQUESTED)
        return end_state_of_cancel(reason), reason
    if execution.counted_attempts >= execution.max_attempts:
        return ExecutionState.LOST, EndReason.MAX_ATTEMPTS
    if _is_unsafe_to_retry(execution):
        return ExecutionState.LOST, EndReason.RETRY_UNSAFE
    if now >= execution.run_deadline_at:
        return ExecutionState.EXPIRED, EndReason.RUN_DEADLINE
    return ExecutionState.PENDING, None


def _is_unsafe_to_retry(execution: Execution) -> bool:
    return execution.attempts[-1].unsafe_call_at is not None and not execution.retry_is_safe


def _requeue_elsewhere(execution: Execution, node_id: NodeId, *, now: datetime) -> Execution:
    return replace(
        execution,
        state=ExecutionState.PENDING,
        pending_reason=PendingReason.RETRYING,
        excluded_nodes=tuple(dict.fromkeys((*execution.excluded_nodes, node_id))),
        claimable_at=now + REJECTION_BACKOFF,
        started_at=None,
    )


def _ended_by(execution: Execution, result: AttemptResult, *, now: datetime) -> Execution:
    stopped = execution.cancel_requested and (result.outcome is Outcome.CANCELLED or not result.counts)
    if stopped:
        reason = EndReason(execution.reason or EndReason.CANCEL_REQUESTED)
        ended = _end(execution, end_state_of_cancel(reason), reason, now=now)
    elif not result.counts:
        ended = _end(execution, ExecutionState.LOST, EndReason.RETRY_UNSAFE, now=now)
    else:
        ended = replace(_end(execution, ExecutionState(result.outcome), None, now=now), reason=result.reason)
    return replace(
        ended,
        exit_code=result.exit_code,
        limit=result.limit,
        trap=result.trap,
        resources_used=result.resources_used,
        receipt_id=result.receipt_id,
        output_body_id=result.output.body_id if result.output else None,
        output_commitment=result.output.commitment if result.output else None,
        output_bytes=result.output.size_bytes if result.output else 0,
        log_body_id=result.log.body_id if result.log else None,
        log_bytes=result.log.size_bytes if result.log else 0,
        recording_body_id=result.recording.body_id if result.recording else None,
        recording_bytes=result.recording.size_bytes if result.recording else 0,
        started_at=execution.started_at or result.started_at,
    )


def _end(
    execution: Execution, state: ExecutionState, reason: EndReason | None, *, now: datetime
) -> Execution:
    return replace(execution, state=state, reason=reason, pending_reason="", claimable_at=None, ended_at=now)


def _with_newest(execution: Execution, attempt: Attempt) -> Execution:
    return replace(execution, attempts=(*execution.attempts[:-1], attempt))

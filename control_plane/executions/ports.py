"""What the use cases of executions and the dispatcher need from the outside. Promises, no implementation."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from control_plane.audit.domain import NewAuditEntry
from control_plane.body_keys.sealing import BodyPlace
from control_plane.executions.domain import (
    Accepted,
    AttemptRef,
    AttemptResult,
    BodyKind,
    CancelRequest,
    Claimable,
    Claimed,
    EndedExecution,
    EndReason,
    ExecutionState,
    HaltScope,
    LiveAttempt,
    LostAttempt,
    NewExecution,
    Placement,
    SessionRef,
    SignedBatchRecord,
    StoredBody,
    UnsafeCall,
    UploadQuota,
)
from control_plane.executions.lifecycle import Execution, Finished
from control_plane.paging import Page
from control_plane.policy.domain import Decision
from shared.digests import Digest
from shared.ids import BodyId, BootId, ExecutionId, NodeId, TenantId

Place = Callable[[Sequence[Claimable]], Sequence[Placement]]
"""Chooses a place for some of the claimables, in memory only: it runs while their rows are locked."""


class Placer(Protocol):
    """Gives newcomers a free slot at once (rule 3). Implemented by control_plane/dispatch."""

    def place(self, executions: Sequence[NewExecution]) -> Sequence[Placement | None]:
        """Take a free slot of an own session for each newcomer, while the queue is known to be empty.

        Memory only. One answer per execution; None leaves it to a later claim.
        """

    def commit(self, placements: Sequence[Placement], executions: Sequence[NewExecution]) -> None:
        """They are committed: send them as soon as their batch is signed. `executions` match by position."""

    def release(self, placements: Sequence[Placement]) -> None:
        """The placements were not committed, or their session was superseded: give the slots back."""

    def wake(self, *, of: Collection[TenantId] | None = None) -> None:
        """Something of these tenants is pending, of any when none are named: claim soon."""

    def cancel(self, requests: Sequence[CancelRequest]) -> None:
        """Tell the nodes of own sessions to stop these attempts; others reach their replica by NOTIFY."""


class BodySealer(Protocol):
    """Encrypts bodies of the tenants that want it, and opens them. Implemented by control_plane/body_keys."""

    @property
    def is_needed(self) -> bool:
        """Whether bodies of any tenant are encrypted."""

    async def seal(self, tenant_id: TenantId, body_id: BodyId, content: bytes) -> bytes | None:
        """Return what is stored instead of a new input; None: the input itself.

        Raises:
            KeyUnavailableError: The tenant's bodies are encrypted, and its key cannot be had.
        """

    async def seal_result(self, tenant_id: TenantId, body_id: BodyId, content: bytes) -> bytes | None:
        """Like `seal`, for what a run left: with a key that was had a while ago if need be."""

    async def open(self, place: BodyPlace, sealed: bytes) -> bytes:
        """Return a plain body.

        Raises:
            NotFoundError: Its key was destroyed: it is erased.
            KeyUnavailableError: Its key cannot be had.
            InternalError: It is not as it was sealed.
        """

    async def open_piece(self, place: BodyPlace, header: bytes, segments: bytes, *, first: int) -> bytes:
        """Return the plain bytes of whole segments, `first` is the number of the first.

        Raises:
            As `open`.
        """

    def open_at_once(self, place: BodyPlace, sealed: bytes) -> bytes | None:
        """Return a plain body if its key is in memory; if not, the key is fetched for the next time.

        Raises:
            InternalError: As `open`.
        """

    async def require(self, tenant_id: TenantId, header: bytes) -> None:
        """Return when the key of a sealed body can be had.

        Raises:
            NotFoundError, KeyUnavailableError: As `open`.
        """


class ExecutionStore(Protocol):
    """Executions as callers see them. Every method raises DatabaseUnavailableError when Postgres is away."""

    async def accept(
        self, items: Sequence[NewExecution], placements: Sequence[Placement | None]
    ) -> Sequence[Accepted]:
        """Store all in one transaction, with decision, body, placement and audit entry; answers in order.

        Repeating a call whose fate is unknown is harmless and tells what became of it. A placement whose
        session epoch has moved is dropped; its execution is accepted as pending.
        """

    async def get(self, tenant_id: TenantId, execution_id: ExecutionId) -> Execution:
        """Return the execution with its attempts and its output, if that is small.

        Raises:
            NotFoundError: The tenant has no such execution.
        """

    async def list(
        self,
        tenant_id: TenantId,
        *,
        agent_name: str,
        states: Sequence[ExecutionState],
        page_size: int,
        page_token: str,
    ) -> Page[Execution]:
        """Return a page, newest first, without attempts and outputs. Empty filters mean all.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """

    async def states_of(self, execution_ids: Sequence[ExecutionId]) -> Mapping[ExecutionId, ExecutionState]:
        """Return where these stand now, whoever's they are; unknown ones are left out. At most 1,000."""

    async def request_cancel(
        self, tenant_id: TenantId, execution_id: ExecutionId, entry: NewAuditEntry
    ) -> tuple[Execution, CancelRequest | None]:
        """Apply `Execution.cancel`; the request is for the node that holds the live attempt, if any.

        Raises:
            NotFoundError: The tenant has no such execution.
            WrongStateError: It has ended.
        """

    async def halt(
        self, scope: HaltScope, reason: EndReason, *, actor: str, limit: int
    ) -> tuple[Sequence[ExecutionId], Sequence[CancelRequest]]:
        """Apply `Execution.halt` to all that the scope names; returns what ended and what nodes must stop.

        At most `limit` together; the caller repeats until both are empty.
        """

    async def record_denial(self, decision: Decision, entry: NewAuditEntry) -> None:
        """Store a denial and its audit entry, in one transaction."""

    async def protect(self, tenant_id: TenantId, body: StoredBody) -> StoredBody:
        """Return a new input as `accept` shall store it: sealed, where the tenant's bodies are encrypted.

        Raises:
            KeyUnavailableError: They are, and the tenant's key cannot be had.
        """

    async def add_body(self, tenant_id: TenantId, body: StoredBody, *, quota: UploadQuota) -> None:
        """Store an uploaded body that nothing uses yet; storing it twice is harmless.

        Raises:
            KeyUnavailableError: As `protect`.
            ResourceExhaustedError: With it its owner has more unused than the quota allows.
        """

    async def get_body(self, tenant_id: TenantId, body_id: BodyId) -> StoredBody:
        """Return a body without its content.

        Raises:
            NotFoundError: The tenant has no such body.
        """

    async def find_uploaded_body(self, tenant_id: TenantId, commitment: Digest) -> StoredBody | None:
        """Return the unused uploaded body with this commitment, without its content."""

    async def find_output(self, execution_id: ExecutionId, commitment: Digest) -> StoredBody | None:
        """Return the same of the tenant that an execution belongs to."""

    async def body_of(self, tenant_id: TenantId, execution_id: ExecutionId, kind: BodyKind) -> StoredBody:
        """Return one body of an execution, without its content.

        Raises:
            NotFoundError: There is no such execution, or it has no such body, or that was erased.
            KeyUnavailableError: It is encrypted, and its key cannot be had.
        """

    async def read_body(
        self, tenant_id: TenantId, body_id: BodyId, *, offset_bytes: int, max_bytes: int
    ) -> bytes:
        """Return a piece of a body; empty behind its end.

        Raises:
            NotFoundError: The tenant has no such body, or it was erased with its key.
            KeyUnavailableError: It is encrypted, and its key cannot be had.
        """

    async def remove_unused_bodies(self, *, limit: int) -> int:
        """Remove uploads that nothing used within 24 hours; returns how many."""

    async def remove_idempotency_keys(self, *, older_than: timedelta, limit: int) -> int:
        """Forget old request ids (rule 8: kept for at least 24 hours); returns how many."""


class LeaseStore(Protocol):
    """Executions as dispatch sees them. Every method raises DatabaseUnavailableError if Postgres is away."""

    async def claim(
        self,
        session: SessionRef,
        *,
        limit: int,
        place: Place,
        alone: bool = True,
        too_new: Sequence[ExecutionId] = (),
    ) -> Claimed:
        """Lock up to `limit` executions that this session may run, let `place` choose, store its choice.

        One transaction (rule 3): skips what others hold, compares the session's epoch. Without `alone` it
        passes over what must run alone: a session that is not idle could not take it. What is `too_new` for
        its node is passed over as well, and waits with that reason.

        Raises:
            SessionSupersededError: The node has a newer session.
        """

    async def record_batches(self, batches: Sequence[SignedBatchRecord]) -> None:
        """Store the signatures of batches; repeating it is harmless."""

    async def live_of(self, attempts: Sequence[AttemptRef]) -> Sequence[AttemptRef]:
        """Return those that are still leased or running."""

    async def start(self, attempts: Sequence[AttemptRef]) -> None:
        """Apply `Execution.start`; those that are not leased any more are left alone."""

    async def renew(
        self, node_id: NodeId, attempts: Sequence[AttemptRef], *, lease: timedelta
    ) -> Sequence[AttemptRef]:
        """Extend the leases that the node still holds, from now by Postgres' time; returns those."""

    async def declare_unsafe(self, calls: Sequence[UnsafeCall]) -> Sequence[bool]:
        """Note that these attempts make unsafe calls, in one transaction that a crash cannot take back.

        True for those whose live lease the node holds now, by Postgres' time (rule 6). A repeat changes
        nothing.
        """

    async def protect_results(self, results: Sequence[AttemptResult]) -> Sequence[AttemptResult]:
        """Return results as `finish` shall store them: their bodies sealed, where their tenants encrypt.

        Those whose key cannot be had are left out.
        """

    async def finish(self, results: Sequence[AttemptResult]) -> Sequence[Finished]:
        """Store receipts, their batches' signatures, and apply `Execution.finish`, in one transaction.

        What an accepted result has put into its agent's kv is there with it; if that would pass the agent's
        quota the execution ends killed instead. Answers in order.

        A second receipt for one attempt waits for a transaction of its own. Repeating a call whose fate is
        unknown is harmless and tells what became of it.
        """

    async def expire_leases(
        self, *, limit: int, database_up_for: timedelta = timedelta(0)
    ) -> Sequence[LostAttempt]:
        """Lose attempts whose lease has run out by Postgres' time (rule 9).

        None while Postgres itself has been up for less than `database_up_for`.
        """

    async def lose_attempts_of_other_boots(self, node_id: NodeId, boot_id: BootId) -> Sequence[LostAttempt]:
        """The node has started anew: lose what its earlier boots held."""

    async def release_unsent(self, placements: Sequence[Placement]) -> Sequence[LostAttempt]:
        """Take back attempts whose order never left: uncounted (rule 1), claimable at once."""

    async def expire_deadlines(self, *, limit: int) -> Sequence[EndedExecution]:
        """Apply run deadlines; returns those that ended. Running ones become cancel requests."""

    async def cancel_requests(self, node_ids: Sequence[NodeId]) -> Sequence[CancelRequest]:
        """Return the live attempts on these nodes that shall stop: the poll behind NOTIFY."""

    async def live_attempt(self, node_id: NodeId, attempt: AttemptRef) -> LiveAttempt:
        """Return what the holder of this lease may fetch (rule 6).

        Raises:
            PermissionDeniedError: The node does not hold this lease now.
        """

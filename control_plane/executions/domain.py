"""What executions, attempts, orders to place and results are. No I/O, no clock, no randomness.

How an execution changes is in lifecycle.py.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Final

from control_plane.kv.domain import KvWrite
from control_plane.policy.domain import Decision
from shared import outcomes, resources
from shared.digests import Digest
from shared.errors import RejectionReason
from shared.ids import (
    AgentId,
    AuditEntryId,
    BodyId,
    BootId,
    DecisionId,
    ExecutionId,
    KeyId,
    NodeId,
    OrderBatchId,
    OrderId,
    ReceiptId,
    TenantId,
)

Outcome = outcomes.Outcome
ResourcesUsed = resources.ResourcesUsed

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
INLINE_BODY_BYTES: Final = 64 * 1024
"""Larger bodies travel by digest on a stream of their own, never inside a batch or an answer."""

DEFAULT_MAX_ATTEMPTS: Final = 3
FIRST_RETRY_BACKOFF: Final = timedelta(milliseconds=200)
MAX_RETRY_BACKOFF: Final = timedelta(seconds=10)
REJECTION_BACKOFF: Final = timedelta(milliseconds=100)
"""Before an execution is claimable again that one node refused for a reason of its own."""

EXCLUSION_LAPSE: Final = timedelta(seconds=5)
"""A node that was busy, draining or stale may be asked again this long after the execution became claimable.

The others have had their chance by then; without it a lone node that was busy once would never get it.
"""


class ExecutionState(StrEnum):
    """Rule 1: pending ⇄ running, then one of the others, for good."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TRAPPED = "trapped"
    KILLED = "killed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can change it any more."""
        return self not in {ExecutionState.PENDING, ExecutionState.RUNNING}


class AttemptState(StrEnum):
    """Rule 1: leased → running → finished | lost."""

    LEASED = "leased"
    RUNNING = "running"
    FINISHED = "finished"
    LOST = "lost"

    @property
    def is_live(self) -> bool:
        """Whether a node holds its lease."""
        return self in {AttemptState.LEASED, AttemptState.RUNNING}


class PendingReason(StrEnum):
    """Why an execution still waits for a node."""

    QUEUED = "QUEUED"
    RETRYING = "RETRYING"
    NO_ELIGIBLE_NODE = "NO_ELIGIBLE_NODE"
    NEEDS_NEWER_NODE = "NEEDS_NEWER_NODE"
    """A node had a free slot and speaks no order that can say what this execution is allowed."""
    STOPPED = "STOPPED"
    """An emergency stop holds its tenant or template; it goes on when that is lifted."""


class EndReason(StrEnum):
    """Machine-readable reason of an end, or of a cancellation that is under way."""

    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    RUN_DEADLINE = "RUN_DEADLINE"
    TEMPLATE_REVOKED = "TEMPLATE_REVOKED"
    TEMPLATE_RETIRED = "TEMPLATE_RETIRED"
    STOPPED = "STOPPED"
    MAX_ATTEMPTS = "MAX_ATTEMPTS"
    RETRY_UNSAFE = "RETRY_UNSAFE"


class LossReason(StrEnum):
    """Why an attempt was lost."""

    LEASE_EXPIRED = "LEASE_EXPIRED"
    NODE_RESTARTED = "NODE_RESTARTED"
    ORDER_NOT_SENT = "ORDER_NOT_SENT"


class BodyKind(StrEnum):
    """Which body of an execution."""

    INPUT = "input"
    OUTPUT = "output"
    LOG = "log"
    RECORDING = "recording"
    """Of its host calls."""


class Priority(IntEnum):
    """Which of its own tenant's waiting executions goes first; the number counts steps of waiting."""

    HIGH = -1
    NORMAL = 0
    LOW = 1


AGING_STEP: Final = timedelta(minutes=1)
"""How much earlier one has to have come to go before another that is a step of priority above it."""


class AcceptOutcome(StrEnum):
    """What became of one request to run an agent."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    """The request id was used with another request."""
    STALE_AGENT = "stale_agent"
    """The agent changed or went, or its template was retired or revoked, since it was resolved."""
    STOPPED = "stopped"
    """An emergency stop holds its tenant or template."""
    BODY_GONE = "body_gone"
    """The uploaded input is not there (any more)."""


class Disposition(StrEnum):
    """What became of one receipt."""

    ACCEPTED = "accepted"
    EVIDENCE = "evidence"
    """Stored, and nothing else changed: late, fenced off, or a second answer (rule 2)."""
    DUPLICATE = "duplicate"
    """The same receipt is stored already."""
    CONFLICT = "conflict"
    """Another receipt of this node has the same sequence (rule 5); nothing was stored."""
    UNKNOWN_ORDER = "unknown_order"
    """No stored order of this node has this id, digest, execution and token; nothing was stored."""
    OUTPUT_MISSING = "output_missing"
    """The output or log that it names was not uploaded; nothing was stored."""

    @property
    def is_recorded(self) -> bool:
        """Whether the receipt is stored for good, so that it can be acknowledged."""
        return self in {Disposition.ACCEPTED, Disposition.EVIDENCE, Disposition.DUPLICATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBody:
    """An input, output, log or recording with its salted commitment (rule 10)."""

    body_id: BodyId
    salt: bytes
    commitment: Digest
    digest: Digest
    """SHA-256 of the content."""
    size_bytes: int
    content: bytes | None
    """None: stored before (uploaded), and too large to travel inline."""
    sealed: bytes | None = field(default=None, repr=False)
    """What is stored instead of the content, where its tenant's bodies are encrypted."""

    @property
    def stored(self) -> bytes | None:
        """Return what Postgres keeps."""
        return self.content if self.sealed is None else self.sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadQuota:
    """How much one owner may have stored that nothing uses yet."""

    owner: str
    """A caller's identity, or the attempt that an output belongs to."""
    max_bodies: int
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything about an execution that influences its run; an order is made from this and a place."""

    execution_id: ExecutionId
    tenant_id: TenantId
    caller: str
    agent_id: AgentId
    agent_name: str
    template_digest: Digest
    module_digest: Digest
    parameters: bytes
    """Canonical JSON."""
    parameters_digest: Digest
    input: StoredBody
    media_type: str
    profile: str
    """default | deterministic | portable."""
    seed: bytes
    """32 bytes; copied into each attempt (rule 20)."""
    clock_start_at: datetime
    limits: bytes
    """Granted: agentfactory.v1.Limits, deterministic."""
    capabilities: bytes
    """Granted: agentfactory.v1.Capabilities, deterministic."""
    retry_is_safe: bool
    decision_id: DecisionId
    policy_digest: str
    traceparent: str
    run_deadline_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """Rule 8. The fingerprint itself is not stored, only its HMAC under a key of the row."""

    method: str
    request_id: str
    hmac_key: bytes
    """32 random bytes, erased with the body."""
    fingerprint: bytes
    """SHA-256 over what the request asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExecution:
    """One allowed request, complete; its ids make storing it twice harmless."""

    run: RunSpec
    agent_revision: int
    idempotency: IdempotencyKey
    decision: Decision
    audit_entry_id: AuditEntryId
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    priority: Priority = Priority.NORMAL
    created_at: datetime

    def claimable(self) -> "Claimable":
        """Return what a dispatcher sees of it: the first attempt is due."""
        return Claimable(run=self.run, attempt_number=1, fencing_token=1, excluded_nodes=(), runs_alone=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimable:
    """A waiting execution and the number and token that its next attempt will have."""

    run: RunSpec
    attempt_number: int
    fencing_token: int
    excluded_nodes: tuple[NodeId, ...]
    runs_alone: bool
    """Poison input: no other attempt may be on its node while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlace:
    """Where an order stands in its batch; known, and stored with the order, before the batch is signed."""

    batch_id: OrderBatchId
    leaf_index: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One attempt on one slot of one session, with the bytes of its order."""

    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int
    node_id: NodeId
    boot_id: BootId
    session_epoch: int
    order_id: OrderId
    order_content: bytes
    order_digest: Digest
    batch: BatchPlace
    lease: timedelta

    @property
    def attempt(self) -> "AttemptRef":
        """Return the attempt that it starts."""
        return AttemptRef(
            execution_id=self.execution_id,
            attempt_number=self.attempt_number,
            fencing_token=self.fencing_token,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What became of one `NewExecution`."""

    execution_id: ExecutionId
    """Of the earlier execution when it is a duplicate."""
    outcome: AcceptOutcome
    placed: bool
    """Whether its placement was committed with it, so that its order may leave."""
    stop_reason: str = ""
    """Why the emergency stop was made, when one refused it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltScope:
    """Which executions a halt concerns: of one version, of a template, or of the whole tenant."""

    tenant_id: TenantId
    template_name: str = ""
    """Empty, with the digest: all."""
    template_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRef:
    """A session as its owner knows it; the newest epoch of a node wins (rule 3)."""

    node_id: NodeId
    boot_id: BootId
    session_epoch: int
    heartbeat_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRef:
    """Names one attempt."""

    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsafeCall:
    """A node's word that its attempt is about to have an effect outside (rule 6)."""

    node_id: NodeId
    attempt: AttemptRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What one claim took from the queue."""

    placements: tuple[Placement, ...]
    executions: tuple[Claimable, ...]
    """The claimables of `placements`, in the same order: what their deliveries need besides the order."""
    queue_empty: bool
    """Whether nothing that this session may run was left waiting."""
    left: frozenset[TenantId] | None = None
    """The tenants of whom something that it may run may still wait; None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBatchRecord:
    """The signature of a batch, as it is stored: the place of each order stands with the order."""

    batch_id: OrderBatchId
    envelope: bytes
    key_id: KeyId


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedOrder:
    """A stored order whose batch has no signature on record, and where it stands in that batch."""

    order_id: OrderId
    content: bytes
    batch_id: OrderBatchId
    leaf_index: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """A verified receipt, ready to decide an attempt."""

    receipt_id: ReceiptId
    """Given by the control plane to this receipt."""
    audit_entry_id: AuditEntryId
    node_id: NodeId
    sequence: int
    hash: bytes
    previous_hash: bytes
    order_id: OrderId
    order_digest: Digest
    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int
    envelope: bytes
    outcome: Outcome
    exit_code: int | None = None
    limit: str | None = None
    trap: str | None = None
    reason: str | None = None
    counts: bool = True
    """False: a rejection for a reason of that node alone: excludes the node, is not counted (rule 1)."""
    resources_used: ResourcesUsed | None = None
    output: StoredBody | None = None
    log: StoredBody | None = None
    recording: StoredBody | None = None
    kv_writes: tuple[KvWrite, ...] = ()
    """What the run wrote, each key once; it counts if this result is accepted and succeeded (rule 6)."""
    started_at: datetime | None = None
    ended_at: datetime
    batch: SignedBatchRecord | None = None
    """The signature of its order, while it is not on record: it is stored with the receipt."""

    @property
    def refuses_a_repeat(self) -> bool:
        """Whether it only says that its order came twice: the receipt of the first time decides."""
        return self.outcome is Outcome.REJECTED and self.reason == RejectionReason.REPLAY

    @property
    def bodies(self) -> tuple[StoredBody, ...]:
        """The bodies that came with it."""
        return tuple(one for one in (self.output, self.log, self.recording) if one is not None)

    def over(self, limit: str, *, reason: str) -> "AttemptResult":
        """Return it as killed by a limit that only the control plane can know; the receipt says otherwise."""
        return replace(self, outcome=Outcome.KILLED, exit_code=None, limit=limit, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttempt:
    """One attempt that ended without a result, and what became of its execution."""

    attempt: AttemptRef
    node_id: NodeId
    tenant_id: TenantId
    reason: LossReason
    state: ExecutionState


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class EndedExecution:
    """An execution that ended without a result."""

    tenant_id: TenantId
    execution_id: ExecutionId


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """A live attempt whose execution shall end."""

    attempt: AttemptRef
    node_id: NodeId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAttempt:
    """What the holder of a live lease may fetch."""

    attempt: AttemptRef
    tenant_id: TenantId
    template_digest: Digest
    module_digest: Digest
    policy_digest: Digest
    input_body_id: BodyId
    input_bytes: int

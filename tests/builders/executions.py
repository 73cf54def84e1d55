"""Builds executions, placements and results that are right in everything a test does not care about."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from control_plane.executions.domain import (
    AttemptRef,
    AttemptResult,
    BatchPlace,
    Claimable,
    IdempotencyKey,
    NewExecution,
    Outcome,
    Placement,
    Priority,
    ResourcesUsed,
    RunSpec,
    SessionRef,
    StoredBody,
)
from control_plane.executions.encoding import capabilities_bytes
from control_plane.policy.domain import Decision, Question
from shared.clock import Clock, Random, SystemClock, SystemRandom
from shared.digests import commit_body, sha256_digest
from shared.ids import (
    AUDIT_ENTRY,
    BODY,
    DECISION,
    EXECUTION,
    ORDER,
    ORDER_BATCH,
    RECEIPT,
    AgentId,
    BootId,
    NodeId,
    TenantId,
    new_id,
)
from shared.limits import Limits
from shared.manifest import Capabilities

TENANT = TenantId("default")
OTHER_TENANT = TenantId("other")
CALLER = "spiffe://test/caller/ann"
AGENT = AgentId("agt_redact")
TEMPLATE = sha256_digest(b"template")
MODULE = sha256_digest(b"module")
LEASE = timedelta(seconds=4)


def agent_of(tenant: TenantId) -> AgentId:
    return AGENT if tenant == TENANT else AgentId(f"{AGENT}_{tenant}")


def node(name: str = "one") -> NodeId:
    return NodeId(f"nod_{name}")


def session(name: str = "one", *, epoch: int = 1, boot: str = "boot_1") -> SessionRef:
    return SessionRef(node_id=node(name), boot_id=BootId(boot), session_epoch=epoch, heartbeat_number=1)


def allowed(run: RunSpec, *, at: datetime) -> Decision:
    """The decision that let a run in."""
    return Decision(
        decision_id=run.decision_id,
        tenant_id=run.tenant_id,
        question=Question.EXECUTE,
        allowed=True,
        reason="ALLOWED",
        input=b"{}",
        policy_digest=run.policy_digest,
        limits=Limits(),
        decided_at=at,
    )


@dataclass
class Builder:
    """Makes values with fresh ids."""

    clock: Clock = field(default_factory=SystemClock)
    random: Random = field(default_factory=SystemRandom)
    sequences: dict[NodeId, int] = field(default_factory=dict)

    def body(self, content: bytes | None = b"input", *, size_bytes: int | None = None) -> StoredBody:
        salt = self.random.token_bytes(32)
        data = content or b""
        return StoredBody(
            body_id=new_id(BODY, self.clock, self.random),
            salt=salt,
            commitment=commit_body(data, salt),
            digest=sha256_digest(data),
            size_bytes=len(data) if size_bytes is None else size_bytes,
            content=content,
        )

    def execution(
        self,
        *,
        request_id: str | None = None,
        fingerprint: bytes = b"same",
        caller: str = CALLER,
        body: StoredBody | None = None,
        revision: int = 1,
        max_attempts: int = 3,
        retry_is_safe: bool = False,
        run_deadline: timedelta = timedelta(hours=1),
        tenant: TenantId = TENANT,
        priority: Priority = Priority.NORMAL,
        capabilities: Capabilities | None = None,
    ) -> NewExecution:
        decision_id = new_id(DECISION, self.clock, self.random)
        run = RunSpec(
            execution_id=new_id(EXECUTION, self.clock, self.random),
            tenant_id=tenant,
            caller=caller,
            agent_id=agent_of(tenant),
            agent_name="redact",
            template_digest=TEMPLATE,
            module_digest=MODULE,
            parameters=b"{}",
            parameters_digest=sha256_digest(b"{}"),
            input=body or self.body(),
            media_type="application/json",
            profile="default",
            seed=self.random.token_bytes(32),
            clock_start_at=self.clock.now(),
            limits=b"",
            capabilities=capabilities_bytes(capabilities) if capabilities else b"",
            retry_is_safe=retry_is_safe,
            decision_id=decision_id,
            policy_digest=sha256_digest(b"policy"),
            traceparent="",
            run_deadline_at=self.clock.now() + run_deadline,
        )
        return NewExecution(
            run=run,
            agent_revision=revision,
            idempotency=IdempotencyKey(
                method="Execute",
                request_id=request_id or run.execution_id,
                hmac_key=self.random.token_bytes(32),
                fingerprint=fingerprint,
            ),
            decision=allowed(run, at=self.clock.now()),
            audit_entry_id=new_id(AUDIT_ENTRY, self.clock, self.random),
            max_attempts=max_attempts,
            priority=priority,
            created_at=self.clock.now(),
        )

    def placement(
        self,
        work: NewExecution | Claimable,
        at: SessionRef | None = None,
        *,
        lease: timedelta = LEASE,
        batch: BatchPlace | None = None,
    ) -> Placement:
        work = work.claimable() if isinstance(work, NewExecution) else work
        at = at or session()
        content = self.random.token_bytes(600)
        return Placement(
            execution_id=work.run.execution_id,
            attempt_number=work.attempt_number,
            fencing_token=work.fencing_token,
            node_id=at.node_id,
            boot_id=at.boot_id,
            session_epoch=at.session_epoch,
            order_id=new_id(ORDER, self.clock, self.random),
            order_content=content,
            order_digest=sha256_digest(content),
            batch=batch
            or BatchPlace(batch_id=new_id(ORDER_BATCH, self.clock, self.random), leaf_index=0, path=()),
            lease=lease,
        )

    def result(
        self, placement: Placement, outcome: Outcome = Outcome.SUCCEEDED, **changes: object
    ) -> AttemptResult:
        sequence = self.sequences.get(placement.node_id, 0) + 1
        self.sequences[placement.node_id] = sequence
        envelope = self.random.token_bytes(1200)
        ran = outcome in {Outcome.SUCCEEDED, Outcome.FAILED}
        result = AttemptResult(
            receipt_id=new_id(RECEIPT, self.clock, self.random),
            audit_entry_id=new_id(AUDIT_ENTRY, self.clock, self.random),
            node_id=placement.node_id,
            sequence=sequence,
            hash=self.random.token_bytes(32),
            previous_hash=self.random.token_bytes(32),
            order_id=placement.order_id,
            order_digest=placement.order_digest,
            execution_id=placement.execution_id,
            attempt_number=placement.attempt_number,
            fencing_token=placement.fencing_token,
            envelope=envelope,
            outcome=outcome,
            exit_code={Outcome.SUCCEEDED: 0, Outcome.FAILED: 3}.get(outcome),
            limit="wall_ms" if outcome is Outcome.KILLED else None,
            trap="unreachable" if outcome is Outcome.TRAPPED else None,
            reason=None if ran else str(outcome).upper(),
            resources_used=ResourcesUsed(
                wall=timedelta(milliseconds=5),
                cpu=timedelta(milliseconds=4),
                peak_memory_bytes=65536,
                output_bytes=6,
                log_bytes=0,
            ),
            output=self.body(b"output") if ran else None,
            started_at=self.clock.now(),
            ended_at=self.clock.now(),
        )
        return replace(result, **changes)  # type: ignore[arg-type]


def attempt(placement: Placement) -> AttemptRef:
    return placement.attempt

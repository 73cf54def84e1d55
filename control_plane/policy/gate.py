"""Asks policy on behalf of a use case, and records a denial before it is raised."""

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database
from control_plane.policy.domain import Asked, AuditInput, Decision, NodeInput, Question, Subject
from control_plane.policy.ports import DecisionLog, Policy
from shared.clock import Clock, Random
from shared.digests import Digest
from shared.errors import PolicyDeniedError
from shared.ids import AUDIT_ENTRY, NodeId, TenantId, new_id


class PolicyGate:
    """For what is rare enough to have a transaction of its own; executions have a faster way."""

    def __init__(
        self,
        *,
        policy: Policy,
        decisions: DecisionLog,
        audit: AuditLog,
        database: Database,
        clock: Clock,
        random: Random,
    ) -> None:
        self._policy = policy
        self._decisions = decisions
        self._audit = audit
        self._database = database
        self._clock = clock
        self._random = random

    async def require(self, question: Question, asked: Asked, *, action: str, subject: str) -> Decision:
        """Return the decision that allows; the caller stores it together with the change.

        Raises:
            PolicyDeniedError: It denies; decision and audit entry are committed.
            DatabaseUnavailableError: The denial could not be recorded.
        """
        decision = await self._policy.decide(question, asked)
        if decision.allowed:
            return decision
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=decision.tenant_id,
            actor=asked.subject.identity,
            action=action,
            subject=subject,
            result=PolicyDeniedError.reason,
            details={"decision_id": decision.decision_id, "policy_reason": decision.reason},
        )
        async with self._database.transaction() as tx:
            await self._decisions.append(tx, decision)
            await self._audit.append(tx, [entry])
        raise PolicyDeniedError(
            f"policy denies {question}: {decision.reason} (decision {decision.decision_id})"
        )

    async def require_recorded(
        self, question: Question, asked: Asked, *, action: str, subject: str
    ) -> Decision:
        """Like `require`, where no change follows that the decision could be stored with.

        Raises:
            As `require`; DatabaseUnavailableError: The decision could not be recorded.
        """
        decision = await self.require(question, asked, action=action, subject=subject)
        async with self._database.transaction() as tx:
            await self._decisions.append(tx, decision)
        return decision


class NodePolicyGate:
    """Implements `NodeGate`."""

    def __init__(self, gate: PolicyGate) -> None:
        self._gate = gate

    async def admit(
        self, *, identity: str, tenant_id: TenantId, node_id: NodeId, zone: str, stage: str
    ) -> None:
        """See `NodeGate.admit`."""
        asked = NodeInput(subject=_node(identity, tenant_id), node_id=node_id, zone=zone, stage=stage)
        await self._gate.require_recorded(
            Question.ADMIT_NODE, asked, action=f"node.{stage}_denied", subject=node_id
        )

    async def pull(
        self, *, identity: str, tenant_id: TenantId, node_id: NodeId, module_digest: Digest
    ) -> None:
        """See `NodeGate.pull`."""
        asked = NodeInput(subject=_node(identity, tenant_id), node_id=node_id, module_digest=module_digest)
        await self._gate.require_recorded(
            Question.PULL_ARTIFACT, asked, action="artifact.denied", subject=module_digest
        )


class AuditPolicyGate:
    """Implements `AuditGate`."""

    def __init__(self, gate: PolicyGate) -> None:
        self._gate = gate

    async def read(self, subject: Subject, *, method: str) -> None:
        """See `AuditGate.read`."""
        asked = AuditInput(subject=subject, method=method)
        await self._gate.require_recorded(Question.READ_AUDIT, asked, action="audit.denied", subject=method)


def _node(identity: str, tenant_id: TenantId) -> Subject:
    return Subject(identity=identity, tenant_id=tenant_id, roles=frozenset({"node"}))

"""Asks policy on behalf of a use case, and records a denial before it is raised."""

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database
from control_plane.policy.domain import Decision, PolicyInput, Question
from control_plane.policy.ports import DecisionLog, Policy
from shared.clock import Clock, Random
from shared.errors import PolicyDeniedError
from shared.ids import AUDIT_ENTRY, new_id


class PolicyGate:
    """For changes that are rare enough to have a transaction of their own; executions have a faster way."""

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

    async def require(self, question: Question, asked: PolicyInput, *, action: str, subject: str) -> Decision:
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

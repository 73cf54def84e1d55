"""Postgres behind `DecisionLog`: an answer goes into the transaction of what it allowed."""

from sqlalchemy import insert

from control_plane.database.ports import Transaction
from control_plane.database.tables import decisions
from control_plane.database.unit_of_work import connection_of
from control_plane.policy.domain import Decision


class PostgresDecisionLog:
    """Implements `DecisionLog`."""

    async def append(self, tx: Transaction, decision: Decision) -> None:
        """See `DecisionLog.append`."""
        await connection_of(tx).execute(
            insert(decisions).values(
                decision_id=decision.decision_id,
                tenant_id=decision.tenant_id,
                question=str(decision.question),
                allowed=decision.allowed,
                reason=decision.reason,
                input=decision.input,
                policy_digest=decision.policy_digest,
            )
        )

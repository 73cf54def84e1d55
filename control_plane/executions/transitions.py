"""Rare transitions on locked rows: load, apply the pure one, write back. For the two stores only.

The frequent ones (accept, claim, start, finish) are statements of their own.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.database.arrays import is_one_of
from control_plane.database.tables import attempts, executions
from control_plane.executions.domain import AttemptRef, CancelRequest, EndReason
from control_plane.executions.lifecycle import Attempt, Execution
from control_plane.executions.rows import SELECT_ATTEMPTS, SELECT_EXECUTIONS, attempt_of, execution_of
from shared.ids import ExecutionId


async def lock_executions(
    connection: AsyncConnection, execution_ids: Sequence[ExecutionId]
) -> tuple[datetime, list[Execution]]:
    """Lock executions in key order; return them with their attempts, and Postgres' time."""
    now = (await connection.execute(select(func.now()))).scalar_one()
    if not execution_ids:
        return now, []
    ids = list(execution_ids)
    rows = await connection.execute(
        SELECT_EXECUTIONS.where(is_one_of(executions.c.execution_id, ids))
        .order_by(executions.c.execution_id)
        .with_for_update()
    )
    found = rows.mappings().all()
    tries: dict[str, list[Attempt]] = {}
    # A second statement, so that it sees what the holder of a lock that we waited for has committed.
    for row in (
        await connection.execute(
            SELECT_ATTEMPTS.where(is_one_of(attempts.c.execution_id, ids)).with_for_update()
        )
    ).mappings():
        tries.setdefault(row["execution_id"], []).append(attempt_of(row))
    return now, [execution_of(row, tries.get(row["execution_id"], ())) for row in found]


async def save_executions(connection: AsyncConnection, changed: Sequence[Execution]) -> None:
    """Write locked executions and their newest attempts back."""
    if not changed:
        return
    await connection.execute(_SAVE_EXECUTION, [_execution_values(one) for one in changed])
    newest = [(one, one.attempts[-1]) for one in changed if one.attempts]
    if newest:
        await connection.execute(_SAVE_ATTEMPT, [_attempt_values(one, attempt) for one, attempt in newest])


def cancel_request_of(execution: Execution) -> CancelRequest | None:
    """Return what the node that holds the live attempt has to be told, if it shall stop."""
    live = execution.live_attempt
    if live is None or not execution.cancel_requested:
        return None
    return CancelRequest(
        attempt=AttemptRef(
            execution_id=execution.execution_id,
            attempt_number=live.number,
            fencing_token=live.fencing_token,
        ),
        node_id=live.node_id,
        reason=execution.reason or EndReason.CANCEL_REQUESTED,
    )


def _key(table_column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    return table_column == bindparam(f"key_{name}")


_SAVE_EXECUTION: Final = (
    update(executions)
    .where(_key(executions.c.execution_id, "execution_id"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "state",
                "cancel_requested",
                "counted_attempts",
                "excluded_nodes",
                "runs_alone",
                "pending_reason",
                "claimable_at",
                "reason",
                "started_at",
                "ended_at",
            )
        }
    )
)

_SAVE_ATTEMPT: Final = (
    update(attempts)
    .where(_key(attempts.c.execution_id, "execution_id"), _key(attempts.c.fencing_token, "fencing_token"))
    .values({name: bindparam(name) for name in ("state", "reason", "started_at", "ended_at")})
)


def _execution_values(execution: Execution) -> dict[str, Any]:
    return {
        "key_execution_id": execution.execution_id,
        "state": str(execution.state),
        "cancel_requested": execution.cancel_requested,
        "counted_attempts": execution.counted_attempts,
        "excluded_nodes": list(execution.excluded_nodes),
        "runs_alone": execution.runs_alone,
        "pending_reason": str(execution.pending_reason),
        "claimable_at": execution.claimable_at,
        "reason": execution.reason,
        "started_at": execution.started_at,
        "ended_at": execution.ended_at,
    }


def _attempt_values(execution: Execution, attempt: Attempt) -> dict[str, Any]:
    return {
        "key_execution_id": execution.execution_id,
        "key_fencing_token": attempt.fencing_token,
        "state": str(attempt.state),
        "reason": attempt.reason,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
    }

"""What tenants used of language models: counted with each receipt, asked for by admission. SQL of its own."""

from collections.abc import Sequence
from typing import Final

from control_plane.database.unit_of_work import DriverConnection
from control_plane.executions.domain import AttemptResult

COUNT_USE: Final = """
INSERT INTO llm_use AS u (tenant_id, day, tokens, cost_micros, runs)
SELECT e.tenant_id, (now() AT TIME ZONE 'UTC')::date, sum(i.tokens), sum(i.cost_micros), count(*)
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS i (execution_id, tokens, cost_micros)
JOIN executions e ON e.execution_id = i.execution_id
GROUP BY e.tenant_id ORDER BY e.tenant_id
ON CONFLICT (tenant_id, day) DO UPDATE SET
    tokens = u.tokens + excluded.tokens, cost_micros = u.cost_micros + excluded.cost_micros,
    runs = u.runs + excluded.runs
"""
"""In the order of tenants, so that groups never wait in a circle."""

SPENT: Final = """
SELECT u.tenant_id FROM llm_use u JOIN tenants t ON t.tenant_id = u.tenant_id
WHERE u.day = (now() AT TIME ZONE 'UTC')::date
    AND (u.tokens >= coalesce(t.llm_tokens_per_day, $1::bigint)
        OR u.cost_micros >= coalesce(t.llm_cost_micros_per_day, $2::bigint))
"""


def has_use(result: AttemptResult) -> bool:
    """Whether a receipt tells of a language model."""
    used = result.resources_used
    return used is not None and bool(used.llm_tokens or used.llm_cost_micros)


async def count_use(connection: DriverConnection, results: Sequence[AttemptResult]) -> None:
    """Count what these results used, in the transaction that stores their receipts: the late ones too."""
    counted = [(one.execution_id, one.resources_used) for one in results if has_use(one)]
    if not counted:
        return
    await connection.execute(
        COUNT_USE,
        [execution_id for execution_id, _ in counted],
        [used.llm_tokens for _, used in counted if used is not None],
        [used.llm_cost_micros for _, used in counted if used is not None],
    )

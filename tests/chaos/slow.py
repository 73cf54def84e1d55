"""Says where the slowest calls of a fault spent their time: every step on record, beside the logs. Judges nothing."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tests.chaos.load import Call
from tests.chaos.row import Times
from tests.chaos.world import World

SLOWEST = 40
_STEPS = """
SELECT e.execution_id, e.created_at, e.ended_at, a.fencing_token, a.node_id, a.state, a.reason, a.leased_at,
    a.started_at, a.ended_at AS attempt_ended_at
FROM executions e LEFT JOIN attempts a USING (execution_id)
WHERE e.execution_id = ANY($1::text[]) ORDER BY e.execution_id, a.fencing_token
"""


async def tell_slowest(world: World, calls: Sequence[Call], times: Times) -> str:
    """Return a line of JSON for each of the slowest calls due while the fault held; seconds since its injection."""
    held = [call for call in calls if call.seconds and times.injected_at <= call.due_at < times.lifted_at]
    slowest = sorted(held, key=lambda call: call.seconds or 0, reverse=True)[:SLOWEST]
    names = {node.node_id: number for number, node in enumerate(world.nodes)}
    async with world.sql() as sql:
        rows = await sql.fetch(_STEPS, [name for call in slowest for name in call.execution_ids])

    def since(at: datetime | float | None) -> float | None:
        at = at.timestamp() if isinstance(at, datetime) else at
        return None if at is None else round(at - times.injected_at, 3)

    def told(call: Call) -> dict[str, Any]:
        mine = [row for row in rows if row["execution_id"] in call.execution_ids]
        return {
            "due": since(call.due_at),
            "ms": round((call.seconds or 0) * 1e3),
            "waits": call.waits,
            "tries": call.tries,
            "execution": sorted(call.execution_ids),
            "created": since(mine[0]["created_at"]) if mine else None,
            "ended": since(mine[0]["ended_at"]) if mine else None,
            "attempts": [
                {
                    "token": row["fencing_token"],
                    "node": names.get(row["node_id"]),
                    "state": row["state"],
                    "reason": row["reason"],
                    "leased": since(row["leased_at"]),
                    "started": since(row["started_at"]),
                    "ended": since(row["attempt_ended_at"]),
                }
                for row in mine
                if row["fencing_token"] is not None
            ],
        }

    return "".join(json.dumps(told(call)) + "\n" for call in sorted(slowest, key=lambda call: call.due_at))

"""Erasing in Postgres: rows of bodies go, with their salts and the keys of what was asked for twice."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import bindparam, exists, select, text
from sqlalchemy.types import ARRAY, Text

from control_plane.database.ports import Transaction
from control_plane.database.tables import executions
from control_plane.database.unit_of_work import connection_of
from control_plane.erasure.domain import Erased
from shared.errors import NotFoundError, WrongStateError
from shared.ids import ExecutionId, TenantId

_LIVE: Final = ("pending", "running")
_IN_USE: Final = text(
    """SELECT o.execution_id FROM executions o WHERE o.state IN ('pending', 'running') AND o.input_body_id IN
        (SELECT e.input_body_id FROM executions e WHERE e.tenant_id = :tenant AND e.execution_id = ANY(:ids))
    LIMIT 1"""
).bindparams(bindparam("ids", type_=ARRAY(Text)))
_ERASE: Final = text(
    """WITH marked AS (
        UPDATE executions SET erased_at = now()
        WHERE tenant_id = :tenant AND execution_id = ANY(:ids) AND erased_at IS NULL
        RETURNING execution_id, receipt_id, input_commitment, output_commitment, caller, created_at,
            ARRAY[input_body_id, output_body_id, log_body_id, recording_body_id] AS body_ids
    ), removed AS (
        DELETE FROM bodies b USING marked m
        WHERE b.tenant_id = :tenant AND b.body_id = ANY(m.body_ids)
        RETURNING m.execution_id, b.commitment
    ), forgotten AS (
        -- The digest of the request was made under this key: without it nobody can confirm a guess. By time,
        -- because that has an index.
        UPDATE idempotency_keys k SET hmac_key = '', request_hmac = '' FROM marked m
        WHERE k.tenant_id = :tenant AND k.caller = m.caller AND k.execution_id = m.execution_id
            AND k.created_at BETWEEN m.created_at - interval '1 hour' AND m.created_at + interval '1 hour'
    )
    SELECT m.execution_id, coalesce(m.receipt_id, '') AS receipt_id, m.input_commitment,
        coalesce(m.output_commitment, '') AS output_commitment, count(r.commitment) AS bodies,
        coalesce(array_agg(r.commitment ORDER BY r.commitment) FILTER (WHERE r.commitment IS NOT NULL), '{}')
            AS commitments
    FROM marked m LEFT JOIN removed r USING (execution_id)
    GROUP BY 1, 2, 3, 4 ORDER BY 1"""
).bindparams(bindparam("ids", type_=ARRAY(Text)))


class PostgresErasureStore:
    """Implements `ErasureStore`."""

    async def find(self, tx: Transaction, tenant_id: TenantId, execution_id: ExecutionId) -> bool:
        """See `ErasureStore.find`."""
        c = executions.c
        query = select(c.state).where(c.tenant_id == tenant_id, c.execution_id == execution_id)
        state = (await connection_of(tx).execute(query.with_for_update())).scalar_one_or_none()
        if state is None:
            raise NotFoundError(f"there is no execution {execution_id}")
        return state not in _LIVE

    async def of_caller(
        self, tx: Transaction, tenant_id: TenantId, caller: str, *, limit: int
    ) -> Sequence[ExecutionId]:
        """See `ErasureStore.of_caller`."""
        c, live = executions.c, executions.alias()
        in_use = exists().where(live.c.state.in_(_LIVE), live.c.input_body_id == c.input_body_id)
        query = (
            select(c.execution_id)
            .where(c.tenant_id == tenant_id, c.caller == caller, c.erased_at.is_(None))
            .where(c.state.not_in(_LIVE), ~in_use)
            .order_by(c.execution_id)
            .limit(limit)
            .with_for_update(skip_locked=True, of=executions)
        )
        return list((await connection_of(tx).execute(query)).scalars())

    async def erase(
        self, tx: Transaction, tenant_id: TenantId, execution_ids: Sequence[ExecutionId]
    ) -> Sequence[Erased]:
        """See `ErasureStore.erase`."""
        connection = connection_of(tx)
        given = {"tenant": tenant_id, "ids": list(execution_ids)}
        user = (await connection.execute(_IN_USE, given)).scalar_one_or_none()
        if user is not None:
            raise WrongStateError(
                f"execution {user} reads the same input and has not ended", hint="cancel it"
            )
        rows = (await connection.execute(_ERASE, given)).mappings().all()
        return [Erased(**{**row, "commitments": tuple(row["commitments"])}) for row in rows]

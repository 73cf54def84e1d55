"""Executions in Postgres as their callers see them: accept, read, cancel.

Bodies are in body_store.py, what dispatch does is in lease_store.py.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, and_, bindparam, delete, exists, func, select, tuple_

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.body_keys.sealing import BodyPlace
from control_plane.database.arrays import is_one_of
from control_plane.database.notifications import Channel
from control_plane.database.tables import (
    attempts,
    bodies,
    executions,
    fleet,
    idempotency_keys,
    sessions,
)
from control_plane.database.unit_of_work import (
    DriverConnection,
    DriverRecord,
    PostgresDatabase,
    connection_of,
)
from control_plane.executions.accept_sql import RESOLVE, accept_arguments, accept_statement, key_of
from control_plane.executions.body_store import PostgresBodyStore
from control_plane.executions.domain import (
    INLINE_BODY_BYTES,
    Accepted,
    AcceptOutcome,
    CancelRequest,
    EndReason,
    ExecutionState,
    HaltScope,
    NewExecution,
    PendingReason,
    Placement,
)
from control_plane.executions.halt_sql import concerned, is_stopped
from control_plane.executions.lifecycle import Execution
from control_plane.executions.ports import BodySealer
from control_plane.executions.rows import (
    EXECUTION_COLUMNS,
    SELECT_ATTEMPTS,
    SELECT_EXECUTIONS,
    Row,
    attempt_of,
    execution_id_of_token,
    execution_of,
    request_hmac,
)
from control_plane.executions.transitions import cancel_request_of, lock_executions, save_executions
from control_plane.paging import Page, encode_token
from control_plane.policy.domain import Decision
from control_plane.policy.ports import DecisionLog
from shared.clock import Clock, Random
from shared.errors import NotFoundError
from shared.ids import AUDIT_ENTRY, ExecutionId, TenantId, new_id

_LIVE_SESSION: Final = timedelta(seconds=30)
"""A session that was silent for longer is not counted when somebody asks why an execution waits."""


class PostgresExecutionStore(PostgresBodyStore):
    """Implements `ExecutionStore`."""

    def __init__(
        self,
        database: PostgresDatabase,
        *,
        audit: AuditLog,
        decisions: DecisionLog,
        clock: Clock,
        random: Random,
        sealer: BodySealer | None = None,
    ) -> None:
        super().__init__(database, sealer=sealer)
        self._audit = audit
        self._decisions = decisions
        self._clock = clock
        self._random = random
        self._accepting = database.held()

    async def close(self) -> None:
        """Give the connection of `accept` up."""
        await self._accepting.close()

    async def accept(
        self, items: Sequence[NewExecution], placements: Sequence[Placement | None]
    ) -> Sequence[Accepted]:
        """See `ExecutionStore.accept`."""
        order = sorted(range(len(items)), key=lambda n: key_of(items[n]))
        arguments = accept_arguments([items[n] for n in order], [placements[n] for n in order])
        async with self._accepting.use() as connection:
            rows = await connection.fetch(accept_statement(items), *arguments)
            placed = {row["execution_id"]: row["placed"] for row in rows}
            resolved = await self._resolve(connection, items, placements, placed)
        answers = [
            Accepted(execution_id=item.run.execution_id, outcome=AcceptOutcome.NEW, placed=was_placed)
            if (was_placed := placed.get(item.run.execution_id)) is not None
            else resolved[n]
            for n, item in enumerate(items)
        ]
        self._tell(answers)
        return answers

    async def _resolve(
        self,
        connection: DriverConnection,
        items: Sequence[NewExecution],
        placements: Sequence[Placement | None],
        placed: dict[str, bool],
    ) -> dict[int, Accepted]:
        """Say what became of those that were not inserted: stored before, or not allowed any more."""
        left = [n for n, item in enumerate(items) if item.run.execution_id not in placed]
        if not left:
            return {}
        runs = [items[n].run for n in left]
        keys = zip(
            *(
                (*key_of(items[n]), run.input.body_id, run.template_digest)
                for n, run in zip(left, runs, strict=True)
            ),
            strict=True,
        )
        rows = await connection.fetch(RESOLVE, *(list(column) for column in keys))
        return {n: _resolved(items[n], placements[n], row) for n, row in zip(left, rows, strict=True)}

    def _tell(self, answers: Sequence[Accepted]) -> None:
        new = [answer for answer in answers if answer.outcome is AcceptOutcome.NEW]
        if any(not answer.placed for answer in new):
            self._database.notifier.notify_others(Channel.QUEUE)  # its acceptor tells this one
        if new:
            self._database.notifier.notify(Channel.AUDIT)

    async def get(self, tenant_id: TenantId, execution_id: ExecutionId) -> Execution:
        """See `ExecutionStore.get`."""
        wanted = {"tenant": tenant_id, "execution": execution_id}
        async with self._database.reading() as connection:
            row = (await connection.execute(_GET, wanted)).mappings().one_or_none()
            if row is None:
                raise NotFoundError(f"there is no execution {execution_id}")
            tries = await connection.execute(_GET_ATTEMPTS, {"execution": execution_id})
            found = [attempt_of(attempt) for attempt in tries.mappings()]
        execution = execution_of(row, found, await self._small_output(row))
        if row["stopped"]:
            return replace(execution, pending_reason=PendingReason.STOPPED)
        if row["nobody"]:
            return replace(execution, pending_reason=PendingReason.NO_ELIGIBLE_NODE)
        return execution

    async def _small_output(self, row: Row) -> bytes | None:
        """Return the plain output of a row of `get`; None once its key was destroyed."""
        if row["output"] is None or len(row["output"]) == row["output_bytes"]:
            return row["output"]  # type: ignore[no-any-return]
        place = BodyPlace(
            tenant_id=row["tenant_id"], body_id=row["output_body_id"], size_bytes=row["output_bytes"]
        )
        try:
            return await self._sealer.open(place, row["output"])
        except NotFoundError:
            return None

    async def list(
        self,
        tenant_id: TenantId,
        *,
        agent_name: str,
        states: Sequence[ExecutionState],
        page_size: int,
        page_token: str,
    ) -> Page[Execution]:
        """See `ExecutionStore.list`."""
        query = SELECT_EXECUTIONS.where(executions.c.tenant_id == tenant_id)
        if agent_name:
            query = query.where(executions.c.agent_name == agent_name)
        if states:
            query = query.where(executions.c.state.in_([str(state) for state in states]))
        if page_token:
            query = query.where(executions.c.execution_id < execution_id_of_token(page_token))
        query = query.order_by(executions.c.execution_id.desc()).limit(page_size + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(execution_of(row) for row in rows[:page_size])
        more = len(rows) > page_size
        return Page(items=items, next_page_token=encode_token(items[-1].execution_id) if more else "")

    async def states_of(self, execution_ids: Sequence[ExecutionId]) -> Mapping[ExecutionId, ExecutionState]:
        """See `ExecutionStore.states_of`."""
        query = select(executions.c.execution_id, executions.c.state).where(
            is_one_of(executions.c.execution_id, execution_ids)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {ExecutionId(row.execution_id): ExecutionState(row.state) for row in rows}

    async def request_cancel(
        self, tenant_id: TenantId, execution_id: ExecutionId, entry: NewAuditEntry
    ) -> tuple[Execution, CancelRequest | None]:
        """See `ExecutionStore.request_cancel`."""
        async with self._database.transaction() as tx:
            connection = connection_of(tx)
            now, found = await lock_executions(connection, [execution_id])
            if not found or found[0].tenant_id != tenant_id:
                raise NotFoundError(f"there is no execution {execution_id}")
            before = found[0]
            after = before.cancel(EndReason.CANCEL_REQUESTED, now=now)
            if after != before:
                await save_executions(connection, [after])
                await self._audit.append(tx, [entry])
                tx.notify_after_commit(_channel_of(after), execution_id)
        return after, cancel_request_of(after)

    async def halt(
        self, scope: HaltScope, reason: EndReason, *, actor: str, limit: int
    ) -> tuple[Sequence[ExecutionId], Sequence[CancelRequest]]:
        """See `ExecutionStore.halt`."""
        async with self._database.transaction() as tx:
            connection = connection_of(tx)
            ids: list[ExecutionId] = list(
                (await connection.execute(concerned(scope, reason).limit(limit))).scalars()
            )
            now, found = await lock_executions(connection, ids)
            stopped = [after for one in found if (after := one.halt(reason, now=now)) != one]
            await save_executions(connection, stopped)
            await self._audit.append(tx, [self._halt_entry(one, reason, actor) for one in stopped])
            for one in stopped:
                tx.notify_after_commit(_channel_of(one), one.execution_id)
        ended = [one.execution_id for one in stopped if one.state.is_terminal]
        return ended, [request for one in stopped if (request := cancel_request_of(one))]

    def _halt_entry(self, execution: Execution, reason: EndReason, actor: str) -> NewAuditEntry:
        ended = execution.state.is_terminal
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=execution.tenant_id,
            actor=actor,
            action=f"execution.{execution.state}" if ended else "execution.cancel_requested",
            subject=execution.execution_id,
            details={"reason": reason, "template_digest": execution.template_digest},
        )

    async def record_denial(self, decision: Decision, entry: NewAuditEntry) -> None:
        """See `ExecutionStore.record_denial`."""
        async with self._database.transaction() as tx:
            await self._decisions.append(tx, decision)
            await self._audit.append(tx, [entry])

    async def remove_idempotency_keys(self, *, older_than: timedelta, limit: int) -> int:
        """See `ExecutionStore.remove_idempotency_keys`."""
        keys = idempotency_keys.c
        primary = (keys.tenant_id, keys.caller, keys.method, keys.request_id)
        old = (
            select(*primary)
            .where(keys.created_at < func.now() - older_than)
            .limit(limit)
            .with_for_update(skip_locked=True)  # other replicas sweep too
        )
        async with self._database.transaction() as tx:
            removed = await connection_of(tx).execute(
                delete(idempotency_keys).where(tuple_(*primary).in_(old))
            )
        return removed.rowcount


def _waits_for_nobody() -> ColumnElement[bool]:
    """Whether it waits, and no node that may run it is connected."""
    eligible = (
        exists()
        .where(sessions.c.node_id == fleet.c.node_id, fleet.c.state == "active")
        .where(sessions.c.replica_id != "", sessions.c.last_heartbeat_at > func.now() - _LIVE_SESSION)
    )
    return and_(executions.c.claimable_at.is_not(None), ~eligible)


# Made once: to make it anew took more than half of the time of a call.
_GET: Final = select(
    *EXECUTION_COLUMNS,
    select(bodies.c.content)
    .where(bodies.c.body_id == executions.c.output_body_id, bodies.c.size_bytes <= INLINE_BODY_BYTES)
    .scalar_subquery()
    .label("output"),
    _waits_for_nobody().label("nobody"),
    is_stopped().label("stopped"),
).where(executions.c.tenant_id == bindparam("tenant"), executions.c.execution_id == bindparam("execution"))
_GET_ATTEMPTS: Final = SELECT_ATTEMPTS.where(attempts.c.execution_id == bindparam("execution"))


def _channel_of(execution: Execution) -> Channel:
    return Channel.EXECUTIONS if execution.state.is_terminal else Channel.CANCELS


def _resolved(item: NewExecution, placement: Placement | None, row: DriverRecord) -> Accepted:
    stored = row["execution_id"]
    if stored is None:
        if row["stop_reason"] is not None:
            return Accepted(
                execution_id=item.run.execution_id,
                outcome=AcceptOutcome.STOPPED,
                placed=False,
                stop_reason=row["stop_reason"],
            )
        gone = item.run.input.content is None and row["body_id"] is None
        outcome = AcceptOutcome.BODY_GONE if gone else AcceptOutcome.STALE_AGENT
        return Accepted(execution_id=item.run.execution_id, outcome=outcome, placed=False)
    if stored == item.run.execution_id:  # an earlier try of this very call has committed
        placed = placement is not None and row["order_id"] == placement.order_id
        return Accepted(execution_id=stored, outcome=AcceptOutcome.NEW, placed=placed)
    key = row["hmac_key"]
    same = bool(key) and hmac.compare_digest(
        request_hmac(key, item.idempotency.fingerprint), row["request_hmac"]
    )
    outcome = AcceptOutcome.DUPLICATE if same else AcceptOutcome.CONFLICT
    return Accepted(execution_id=stored, outcome=outcome, placed=False)

"""Executions in Postgres as dispatch sees them: claim, lease, result, loss. store.py has what callers see."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.audit.domain import SYSTEM_ACTOR, NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.notifications import Channel
from control_plane.database.unit_of_work import (
    DriverConnection,
    DriverRecord,
    PostgresDatabase,
    PostgresTransaction,
)
from control_plane.executions import claim_sql as sql
from control_plane.executions.domain import (
    AttemptRef,
    AttemptResult,
    AttemptState,
    CancelRequest,
    Claimed,
    EndedExecution,
    LiveAttempt,
    LossReason,
    LostAttempt,
    Placement,
    SessionRef,
    SignedBatchRecord,
    UnsafeCall,
)
from control_plane.executions.finishing import Finishing
from control_plane.executions.lifecycle import Attempt, Execution, Finished
from control_plane.executions.plain_bodies import PlainBodies
from control_plane.executions.ports import BodySealer, ExecutionStore, Place
from control_plane.executions.sealed import TENANTS_OF, LockedInputs, seal_results
from control_plane.executions.transitions import lock_executions, save_executions
from control_plane.executions.turns import Turns
from control_plane.kv.domain import DEFAULT_QUOTA, KvQuota
from control_plane.kv.settlement import KvSettlement
from shared.clock import Clock, Random
from shared.errors import PermissionDeniedError, SessionSupersededError
from shared.ids import AUDIT_ENTRY, AuditEntryId, BootId, ExecutionId, NodeId, TenantId, new_id


class PostgresLeaseStore:
    """Implements `LeaseStore`."""

    def __init__(
        self,
        database: PostgresDatabase,
        *,
        executions: ExecutionStore,
        audit: AuditLog,
        clock: Clock,
        random: Random,
        kv_quota: KvQuota = DEFAULT_QUOTA,
        sealer: BodySealer | None = None,
        is_awaited: Callable[[ExecutionId], bool] = lambda _: False,
    ) -> None:
        self._database = database
        self._sealer: BodySealer = sealer or PlainBodies()
        self._locked = LockedInputs(self._sealer, clock)
        self._audit = audit
        self._clock = clock
        self._random = random
        self._turns = Turns()
        self._finishing = Finishing(
            database, executions=executions, settlement=KvSettlement(kv_quota), is_awaited=is_awaited
        )
        self._claiming = database.held()
        self._recording = database.held()

    async def close(self) -> None:
        """Give the connections of the hot path up."""
        for held in (self._finishing, self._claiming, self._recording):
            await held.close()

    async def claim(
        self,
        session: SessionRef,
        *,
        limit: int,
        place: Place,
        alone: bool = True,
        too_new: Sequence[ExecutionId] = (),
    ) -> Claimed:
        """See `LeaseStore.claim`."""
        async with self._claiming.use() as connection, connection.transaction():
            newest = await connection.fetchrow(sql.LOCK_SESSION, session.node_id)
            if newest is None or newest["session_epoch"] != session.session_epoch:
                raise SessionSupersededError(f"node {session.node_id} has a newer session")
            if too_new:
                await connection.execute(sql.MARK_TOO_NEW, list(too_new))
            locked = self._locked.passed()
            passed = (*too_new, *locked)
            rows = await self._lock_claimable(connection, session.node_id, limit, alone=alone, passed=passed)
            claimables = {one.run.execution_id: one for one in self._locked.opened(rows)}
            placements = tuple(place(tuple(claimables.values())) if claimables else ())
            if placements:
                arguments = sql.claim_arguments(placements, [self._audit_id() for _ in placements])
                await connection.fetchrow(sql.STORE_CLAIM, *arguments)
        if placements:
            self._turns.served(claimables[one.execution_id].run.tenant_id for one in placements)
            self._database.notifier.notify(Channel.AUDIT)
        return Claimed(
            placements=placements,
            executions=tuple(claimables[one.execution_id] for one in placements),
            queue_empty=len(rows) < limit and len(placements) == len(rows) and not locked,
            left=_left(rows, placements, limit),
        )

    async def _lock_claimable(
        self,
        connection: DriverConnection,
        node_id: NodeId,
        limit: int,
        *,
        alone: bool,
        passed: Sequence[ExecutionId],
    ) -> list[DriverRecord]:
        arguments = sql.claimable_arguments(node_id, limit, self._turns, alone=alone, passed=passed)
        rows = list(await connection.fetch(sql.LOCK_CLAIMABLE, *arguments))
        if rows and len(rows) < limit and rows[0]["tenants"] > 1:
            locked = [row["execution_id"] for row in rows]
            arguments = sql.claimable_arguments(
                node_id, limit - len(rows), self._turns, alone=alone, passed=passed, locked=locked
            )
            rows += await connection.fetch(sql.LOCK_CLAIMABLE, *arguments)
        return rows

    async def record_batches(self, batches: Sequence[SignedBatchRecord]) -> None:
        """See `LeaseStore.record_batches`."""
        async with self._recording.use() as connection:
            await connection.execute(
                sql.RECORD_BATCHES,
                [batch.batch_id for batch in batches],
                [batch.envelope for batch in batches],
                [batch.key_id for batch in batches],
            )

    async def live_of(self, attempts: Sequence[AttemptRef]) -> Sequence[AttemptRef]:
        """See `LeaseStore.live_of`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(sql.LIVE_OF, *sql.attempt_arguments(attempts))
        return [_attempt_ref(row) for row in rows]

    async def start(self, attempts: Sequence[AttemptRef]) -> None:
        """See `LeaseStore.start`."""
        arguments = sql.attempt_arguments(attempts)
        async with self._database.driver() as connection, connection.transaction():
            await connection.execute(sql.RELAXED_COMMIT)
            rows = await connection.fetch(sql.START, *arguments, [self._audit_id() for _ in attempts])
        if rows:
            self._database.notifier.notify(Channel.STARTS, [row["execution_id"] for row in rows])
            self._database.notifier.notify(Channel.AUDIT)

    async def declare_unsafe(self, calls: Sequence[UnsafeCall]) -> Sequence[bool]:
        """See `LeaseStore.declare_unsafe`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(
                sql.DECLARE_UNSAFE,
                [one.attempt.execution_id for one in calls],
                [one.attempt.fencing_token for one in calls],
                [one.attempt.attempt_number for one in calls],
                [one.node_id for one in calls],
                [self._audit_id() for _ in calls],
            )
        if any(row["is_new"] for row in rows):
            self._database.notifier.notify(Channel.AUDIT)
        held = {
            (row["execution_id"], row["fencing_token"], row["attempt_number"], row["node_id"]) for row in rows
        }
        return [
            (one.attempt.execution_id, one.attempt.fencing_token, one.attempt.attempt_number, one.node_id)
            in held
            for one in calls
        ]

    async def renew(
        self, node_id: NodeId, attempts: Sequence[AttemptRef], *, lease: timedelta
    ) -> Sequence[AttemptRef]:
        """See `LeaseStore.renew`."""
        if not attempts:
            return []
        arguments = sql.attempt_arguments(attempts)
        async with self._database.driver() as connection, connection.transaction():
            await connection.execute(sql.RELAXED_COMMIT)
            rows = await connection.fetch(sql.RENEW, *arguments, node_id, lease)
        return [_attempt_ref(row) for row in rows]

    async def protect_results(self, results: Sequence[AttemptResult]) -> Sequence[AttemptResult]:
        """See `LeaseStore.protect_results`."""
        if not self._sealer.is_needed:
            return results
        async with self._database.driver() as connection:
            rows = await connection.fetch(TENANTS_OF, [one.execution_id for one in results])
        tenants = {ExecutionId(row["execution_id"]): TenantId(row["tenant_id"]) for row in rows}
        return await seal_results(self._sealer, results, tenants)

    async def finish(self, results: Sequence[AttemptResult]) -> Sequence[Finished]:
        """See `LeaseStore.finish`."""
        return await self._finishing.finish(results)

    async def expire_leases(
        self, *, limit: int, database_up_for: timedelta = timedelta(0)
    ) -> Sequence[LostAttempt]:
        """See `LeaseStore.expire_leases`."""
        arguments = (limit, database_up_for)
        if not await self._finds(sql.EXPIRED_LEASES, arguments):
            return []
        return await self._lose(
            f"{sql.EXPIRED_LEASES} {sql.LOCKED}",
            arguments,
            LossReason.LEASE_EXPIRED,
            # The lease may have been renewed while we waited for its row.
            lost=lambda attempt, now: attempt.lease_expires_at < now,
        )

    async def lose_attempts_of_other_boots(self, node_id: NodeId, boot_id: BootId) -> Sequence[LostAttempt]:
        """See `LeaseStore.lose_attempts_of_other_boots`."""
        return await self._lose(
            sql.OTHER_BOOTS,
            (node_id, boot_id),
            LossReason.NODE_RESTARTED,
            lost=lambda attempt, _: attempt.node_id == node_id and attempt.boot_id != boot_id,
        )

    async def release_unsent(self, placements: Sequence[Placement]) -> Sequence[LostAttempt]:
        """See `LeaseStore.release_unsent`."""
        orders = {one.order_id for one in placements}
        return await self._lose(
            "SELECT unnest($1::text[]) AS execution_id",
            ([one.execution_id for one in placements],),
            LossReason.ORDER_NOT_SENT,
            lost=lambda attempt, _: attempt.order_id in orders and attempt.state is AttemptState.LEASED,
        )

    async def expire_deadlines(self, *, limit: int) -> Sequence[EndedExecution]:
        """See `LeaseStore.expire_deadlines`."""
        if not await self._finds(sql.PAST_DEADLINE, (limit,)):
            return []
        async with self._database.transaction() as tx:
            ids = await _ids(tx.connection, f"{sql.PAST_DEADLINE} {sql.LOCKED}", (limit,))
            now, found = await lock_executions(tx.connection, ids)
            changed = [after for before in found if (after := before.expire(now=now)) != before]
            await save_executions(tx.connection, changed)
            await self._audit.append(tx, [self._deadline_entry(one) for one in changed])
            for one in changed:
                channel = Channel.EXECUTIONS if one.state.is_terminal else Channel.CANCELS
                tx.notify_after_commit(channel, one.execution_id)
        return [
            EndedExecution(tenant_id=one.tenant_id, execution_id=one.execution_id)
            for one in changed
            if one.state.is_terminal
        ]

    async def cancel_requests(self, node_ids: Sequence[NodeId]) -> Sequence[CancelRequest]:
        """See `LeaseStore.cancel_requests`."""
        async with self._database.driver() as connection:
            rows = await connection.fetch(sql.CANCEL_REQUESTS, list(node_ids))
        return [
            CancelRequest(attempt=_attempt_ref(row), node_id=row["node_id"], reason=row["reason"] or "")
            for row in rows
        ]

    async def live_attempt(self, node_id: NodeId, attempt: AttemptRef) -> LiveAttempt:
        """See `LeaseStore.live_attempt`."""
        async with self._database.driver() as connection:
            row = await connection.fetchrow(
                sql.LIVE_ATTEMPT,
                attempt.execution_id,
                attempt.fencing_token,
                attempt.attempt_number,
                node_id,
            )
        if row is None:
            raise PermissionDeniedError(
                f"node {node_id} does not hold the lease of attempt {attempt.attempt_number} of "
                f"{attempt.execution_id}"
            )
        return LiveAttempt(
            attempt=attempt,
            tenant_id=row["tenant_id"],
            template_digest=row["template_digest"],
            module_digest=row["module_digest"],
            policy_digest=row["policy_digest"],
            input_body_id=row["input_body_id"],
            input_bytes=row["input_bytes"],
        )

    async def _finds(self, query: str, arguments: tuple[Any, ...]) -> bool:
        """Look outside a transaction: several times a second nothing is due, and one round trip says so."""
        async with self._database.driver() as connection:
            return bool(await connection.fetch(f"SELECT WHERE EXISTS ({query})", *arguments))

    async def _lose(
        self,
        query: str,
        arguments: tuple[Any, ...],
        reason: LossReason,
        *,
        lost: Callable[[Attempt, datetime], bool],
    ) -> Sequence[LostAttempt]:
        """Lock what `query` finds, end live attempts that `lost` confirms, and tell what became of each."""
        async with self._database.transaction() as tx:
            now, found = await lock_executions(tx.connection, await _ids(tx.connection, query, arguments))
            answers, changed = [], []
            for before in found:
                attempt = before.live_attempt
                if attempt is None or not lost(attempt, now):
                    continue
                after = before.lose(attempt.fencing_token, reason, now=now)
                changed.append(after)
                answers.append(_lost(after, attempt, reason))
            await save_executions(tx.connection, changed)
            await self._audit.append(tx, [self._loss_entry(one) for one in answers])
            _notify_changed(tx, changed)
        return answers

    def _loss_entry(self, lost: LostAttempt) -> NewAuditEntry:
        ended = lost.state.is_terminal
        return NewAuditEntry(
            audit_entry_id=self._audit_id(),
            tenant_id=lost.tenant_id,
            actor=SYSTEM_ACTOR,
            action=f"execution.{lost.state}" if ended else "attempt.lost",
            subject=lost.attempt.execution_id,
            details={
                "node_id": lost.node_id,
                "fencing_token": lost.attempt.fencing_token,
                "reason": lost.reason,
            },
        )

    def _deadline_entry(self, execution: Execution) -> NewAuditEntry:
        ended = execution.state.is_terminal
        return NewAuditEntry(
            audit_entry_id=self._audit_id(),
            tenant_id=execution.tenant_id,
            actor=SYSTEM_ACTOR,
            action=f"execution.{execution.state}" if ended else "execution.cancel_requested",
            subject=execution.execution_id,
            details={"reason": execution.reason or ""},
        )

    def _audit_id(self) -> AuditEntryId:
        return new_id(AUDIT_ENTRY, self._clock, self._random)


def _left(
    rows: Sequence[DriverRecord], placements: Sequence[Placement], limit: int
) -> frozenset[TenantId] | None:
    """Return of which tenants something may still wait: those that got their whole share of the claim."""
    tenants = rows[0]["tenants"] if rows else 0
    if tenants > limit:
        return None  # some had no turn
    placed = {one.execution_id for one in placements}
    counts = Counter(TenantId(row["tenant_id"]) for row in rows)
    passed_over = {TenantId(row["tenant_id"]) for row in rows if row["execution_id"] not in placed}
    full = {tenant for tenant, count in counts.items() if count * tenants >= limit}
    return frozenset(full | passed_over)


async def _ids(connection: AsyncConnection, query: str, arguments: tuple[Any, ...]) -> list[ExecutionId]:
    found = await connection.exec_driver_sql(query, arguments)
    return [ExecutionId(one) for one in dict.fromkeys(found.scalars())]


def _notify_changed(tx: PostgresTransaction, changed: Sequence[Execution]) -> None:
    for one in changed:
        tx.notify_after_commit(Channel.EXECUTIONS, one.execution_id)
        if not one.state.is_terminal:
            tx.notify_after_commit(Channel.QUEUE)


def _attempt_ref(row: DriverRecord) -> AttemptRef:
    return AttemptRef(
        execution_id=row["execution_id"],
        attempt_number=row["attempt_number"],
        fencing_token=row["fencing_token"],
    )


def _lost(after: Execution, attempt: Attempt, reason: LossReason) -> LostAttempt:
    return LostAttempt(
        attempt=AttemptRef(
            execution_id=after.execution_id,
            attempt_number=attempt.number,
            fencing_token=attempt.fencing_token,
        ),
        node_id=attempt.node_id,
        tenant_id=after.tenant_id,
        reason=reason,
        state=after.state,
    )

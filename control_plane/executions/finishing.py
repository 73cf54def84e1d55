"""Records the receipts of a group in one transaction. What a receipt changes is in finish_sql.py.

Results that leave values behind have a transaction of their own, with more statements; the others pay nothing
for them.
"""

import hmac
from collections.abc import Callable, Sequence

from control_plane.database.notifications import Channel
from control_plane.database.unit_of_work import DriverConnection, DriverRecord, PostgresDatabase
from control_plane.executions.domain import INLINE_BODY_BYTES, AttemptResult, AttemptState, Disposition
from control_plane.executions.finish_sql import (
    STORED_RECEIPTS,
    finish_arguments,
    finish_statement,
    in_rounds,
)
from control_plane.executions.lifecycle import Attempt, Execution, Finished
from control_plane.executions.llm_use import count_use, has_use
from control_plane.executions.ports import ExecutionStore
from control_plane.executions.rows import execution_of
from control_plane.kv.settlement import KvSettlement
from shared.ids import ExecutionId


class Finishing:
    """The part of `LeaseStore` that concerns results."""

    def __init__(
        self,
        database: PostgresDatabase,
        *,
        executions: ExecutionStore,
        settlement: KvSettlement,
        is_awaited: Callable[[ExecutionId], bool],
    ) -> None:
        self._is_awaited = is_awaited
        self._notifier = database.notifier
        self._executions = executions
        self._settlement = settlement
        self._connection = database.held()

    async def close(self) -> None:
        """Give the connection up."""
        await self._connection.close()

    async def finish(self, results: Sequence[AttemptResult]) -> Sequence[Finished]:
        """See `LeaseStore.finish`."""
        answers: dict[int, Finished] = {}
        for places in in_rounds(results):
            for group in _apart(results, places):
                finished = await self._finish([results[n] for n in group])
                answers |= zip(group, finished, strict=True)
        self._tell([one.execution for one in answers.values() if one.execution is not None])
        return [answers[n] for n in range(len(results))]

    def _tell(self, changed: Sequence[Execution]) -> None:
        if not changed:
            return
        # Who waits here gets the execution itself from what `finish` returns, without another look.
        told: dict[Channel, list[ExecutionId]] = {Channel.ENDS: [], Channel.EXECUTIONS: []}
        for one in changed:
            awaited = one.state.is_terminal and self._is_awaited(one.execution_id)
            told[Channel.ENDS if awaited else Channel.EXECUTIONS].append(one.execution_id)
        for channel, ids in told.items():
            if ids:
                self._notifier.notify_others(channel, ids)
        self._notifier.notify(Channel.AUDIT)

    async def _finish(self, results: Sequence[AttemptResult]) -> list[Finished]:
        async with self._connection.use() as connection:
            if any(result.kv_writes or has_use(result) for result in results):
                rows = await self._record_and_write(connection, results)
            else:
                rows = await _record(connection, results)
            left = [n for n, row in enumerate(rows) if row["decides"] is None]
            stored = await _stored(connection, [results[n] for n in left])
        answers = [_finished(result, row) for result, row in zip(results, rows, strict=True)]
        for n, earlier in zip(left, stored, strict=True):
            answers[n] = await self._finished_before(results[n], rows[n], earlier)
        return answers

    async def _record_and_write(
        self, connection: DriverConnection, results: Sequence[AttemptResult]
    ) -> list[DriverRecord]:
        async with connection.transaction():
            settled = await self._settlement.settle(connection, results)
            rows = await _record(connection, settled.results)
            accepted = {n for n, row in enumerate(rows) if row["decides"]}
            await self._settlement.write(connection, settled, accepted)
            stored = [one for one, row in zip(results, rows, strict=True) if row["decides"] is not None]
            await count_use(connection, stored)
        return rows

    async def _finished_before(
        self, result: AttemptResult, row: DriverRecord, stored: DriverRecord
    ) -> Finished:
        """Say what became of a receipt that this call did not store."""
        if stored["receipt_id"] is None:
            missing = row["order_matches"] and not row["bodies_there"]
            return _answer(result, Disposition.OUTPUT_MISSING if missing else Disposition.UNKNOWN_ORDER)
        if not hmac.compare_digest(stored["hash"], result.hash):
            return _answer(result, Disposition.CONFLICT)
        if stored["receipt_id"] != result.receipt_id:
            return _answer(result, Disposition.DUPLICATE)
        # An earlier try of this very call has committed.
        if not stored["accepted"]:
            return _answer(result, Disposition.EVIDENCE)
        execution = await self._executions.get(stored["tenant_id"], result.execution_id)
        return _answer(result, Disposition.ACCEPTED, execution)


def _apart(results: Sequence[AttemptResult], places: Sequence[int]) -> list[list[int]]:
    """Return the places in groups: those with values or recordings apart from the others."""
    plain = [n for n in places if not results[n].kv_writes and results[n].recording is None]
    calling = [n for n in places if results[n].kv_writes or results[n].recording is not None]
    return [group for group in (plain, calling) if group]


async def _record(connection: DriverConnection, results: Sequence[AttemptResult]) -> list[DriverRecord]:
    found = await connection.fetch(finish_statement(results), *finish_arguments(results))
    return sorted(found, key=lambda row: int(row["n"]))


async def _stored(connection: DriverConnection, results: Sequence[AttemptResult]) -> Sequence[DriverRecord]:
    if not results:
        return []
    return await connection.fetch(
        STORED_RECEIPTS, [one.node_id for one in results], [one.sequence for one in results]
    )


def _finished(result: AttemptResult, row: DriverRecord) -> Finished:
    if not row["decides"]:
        return _answer(result, Disposition.EVIDENCE)
    attempt = Attempt(
        number=row["attempt_number"],
        fencing_token=result.fencing_token,
        node_id=row["ran_on"],
        boot_id=row["boot_id"],
        order_id=row["order_id"],
        state=AttemptState.FINISHED,
        receipt_id=row["attempt_receipt_id"],
        reason=row["attempt_reason"],
        leased_at=row["leased_at"],
        lease_expires_at=row["lease_expires_at"],
        started_at=row["attempt_started_at"],
        ended_at=row["attempt_ended_at"],
        unsafe_call_at=row["unsafe_call_at"],
    )
    small = result.output is not None and result.output.size_bytes <= INLINE_BODY_BYTES
    output = result.output.content if result.output is not None and small else None
    return _answer(result, Disposition.ACCEPTED, execution_of(row, (attempt,), output))


def _answer(result: AttemptResult, disposition: Disposition, execution: Execution | None = None) -> Finished:
    return Finished(
        receipt_id=result.receipt_id,
        node_id=result.node_id,
        sequence=result.sequence,
        disposition=disposition,
        execution=execution,
    )

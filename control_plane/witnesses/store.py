"""Cosignatures and what witnesses have seen, in Postgres. Implements `WitnessStore`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import func, select, true, update
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.database.ports import Transaction
from control_plane.database.tables import log_checkpoints, log_cosignatures, log_witnesses
from control_plane.database.unit_of_work import connection_of
from control_plane.witnesses.domain import Cosignature, WitnessState
from shared.checkpoints import NoteSignature, parse_signatures, signature_line

_WRITES: Final = 0x61667769746E
"""The advisory lock of whoever writes what witnesses said ("afwitn"): rows of several are written at once."""
_c = log_witnesses.c


class PostgresWitnessStore:
    """Implements `WitnessStore`."""

    async def states(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str]
    ) -> Mapping[str, WitnessState]:
        """See `WitnessStore.states`."""
        query = select(
            _c.witness,
            _c.tree_size,
            _c.failures,
            (_c.next_at <= func.now()).label("is_due"),
            (func.now() - _c.cosigned_at).label("success_age"),
            _c.fork,
        ).where(_c.origin == origin, _c.witness.in_(witness_ids))
        rows = await connection_of(tx).execute(query)
        found = {
            row.witness: WitnessState(
                witness_id=row.witness,
                tree_size=row.tree_size,
                failures=row.failures,
                is_due=row.is_due,
                success_age=row.success_age,
                fork=row.fork,
            )
            for row in rows
        }
        return {named: found.get(named, WitnessState(witness_id=named)) for named in witness_ids}

    async def alone(self, tx: Transaction) -> None:
        """See `WitnessStore.alone`."""
        await connection_of(tx).execute(select(func.pg_advisory_xact_lock(_WRITES)))

    async def take_round(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str], *, hold: timedelta
    ) -> bool:
        """See `WitnessStore.take_round`."""
        connection = connection_of(tx)
        taken = await connection.execute(select(func.pg_try_advisory_xact_lock(_WRITES)))
        if not taken.scalar_one():
            return False
        busy = select(true()).where(_c.origin == origin, _c.round_until > func.now()).limit(1)
        if (await connection.execute(busy)).first() is not None:
            return False
        await self._change(tx, origin, witness_ids, round_until=func.now() + hold)
        return True

    async def end_round(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str], *, pause: timedelta
    ) -> None:
        """See `WitnessStore.end_round`."""
        await self._change(tx, origin, witness_ids, round_until=func.now() + pause)

    async def cosigned(self, tx: Transaction, origin: str, witness_id: str, cosignature: Cosignature) -> None:
        """See `WitnessStore.cosigned`."""
        await connection_of(tx).execute(
            upsert(log_cosignatures)
            .values(
                origin=origin,
                tree_size=cosignature.tree_size,
                witness=witness_id,
                signature=signature_line(cosignature.line),
                cosigned_at=datetime.fromtimestamp(cosignature.at, UTC),
            )
            .on_conflict_do_nothing()
        )
        await self._change(tx, origin, [witness_id], failures=0, next_at=func.now(), cosigned_at=func.now())
        await self.seen(tx, origin, witness_id, cosignature.tree_size)

    async def seen(self, tx: Transaction, origin: str, witness_id: str, tree_size: int) -> None:
        """See `WitnessStore.seen`."""
        await self._change(tx, origin, [witness_id], tree_size=func.greatest(_c.tree_size, tree_size))

    async def failed(self, tx: Transaction, origin: str, witness_id: str, *, pause: timedelta) -> None:
        """See `WitnessStore.failed`."""
        await self._change(tx, origin, [witness_id], failures=_c.failures + 1, next_at=func.now() + pause)

    async def forked(self, tx: Transaction, origin: str, witness_id: str, detail: str) -> bool:
        """See `WitnessStore.forked`."""
        await self._rows(tx, origin, [witness_id])
        changed = await connection_of(tx).execute(
            update(log_witnesses)
            .where(_c.origin == origin, _c.witness == witness_id, _c.fork == "")
            .values(fork=detail, forked_at=func.now())
        )
        return changed.rowcount == 1

    async def newest_quorum(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str], quorum: int
    ) -> tuple[int, bytes, Sequence[NoteSignature]] | None:
        """See `WitnessStore.newest_quorum`."""
        c, connection = log_cosignatures.c, connection_of(tx)
        mine = (c.origin == origin, c.witness.in_(witness_ids))
        newest = (
            select(c.tree_size)
            .where(*mine)
            .group_by(c.tree_size)
            .having(func.count() >= quorum)
            .order_by(c.tree_size.desc())
            .limit(1)
        )
        size = (await connection.execute(newest)).scalar_one_or_none()
        notes = select(log_checkpoints.c.note).where(log_checkpoints.c.tree_size == size)
        note = None if size is None else (await connection.execute(notes)).scalar_one_or_none()
        if size is None or note is None:
            return None
        signatures = select(c.signature).where(*mine, c.tree_size == size).order_by(c.witness)
        lines: Sequence[bytes] = (await connection.execute(signatures)).scalars().all()
        return size, note, parse_signatures(b"".join(lines))

    async def _change(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str], **values: object
    ) -> None:
        await self._rows(tx, origin, witness_ids)
        await connection_of(tx).execute(
            update(log_witnesses).where(_c.origin == origin, _c.witness.in_(witness_ids)).values(**values)
        )

    async def _rows(self, tx: Transaction, origin: str, witness_ids: Sequence[str]) -> None:
        """Have a row for each of them; in order, so that two never wait for each other."""
        rows = [{"origin": origin, "witness": named} for named in sorted(witness_ids)]
        if rows:
            await connection_of(tx).execute(upsert(log_witnesses).on_conflict_do_nothing(), rows)

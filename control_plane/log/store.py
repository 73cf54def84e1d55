"""The transparency log in Postgres."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from sqlalchemy import delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.database.arrays import is_one_of
from control_plane.database.ports import Transaction
from control_plane.database.tables import (
    log_checkpoints,
    log_entries,
    log_head,
    log_pending,
    log_tiles,
    policies_used,
)
from control_plane.database.unit_of_work import connection_of
from control_plane.log.domain import EMPTY_HEAD, Head, LogEntry, Pending
from shared.digests import Digest
from shared.errors import ConflictError
from shared.ids import TenantId
from shared.tiles import TileId

_LEAD: Final = 0x61666C6F67
"""The advisory lock of whoever integrates ("aflog")."""
_APPEND: Final = text(
    """INSERT INTO log_entries (log_index, tenant_id, kind, subject, salt, commitment)
    SELECT * FROM unnest(
        CAST(:indexes AS bigint[]), CAST(:tenants AS text[]), CAST(:kinds AS text[]),
        CAST(:subjects AS text[]),
        CAST(:salts AS bytea[]), CAST(:commitments AS bytea[]))"""
)


class PostgresLogStore:
    """Implements `LogStore`."""

    async def take_lead(self, tx: Transaction) -> bool:
        """See `LogStore.take_lead`."""
        taken = await connection_of(tx).execute(select(func.pg_try_advisory_xact_lock(_LEAD)))
        return bool(taken.scalar_one())

    async def pending(self, tx: Transaction, *, limit: int) -> list[Pending]:
        """See `LogStore.pending`."""
        c = log_pending.c
        query = select(c.log_pending_id, c.kind, c.tenant_ids, c.subjects, c.contents)
        rows = await connection_of(tx).execute(query.order_by(c.log_pending_id).limit(limit))
        return [
            Pending(
                pending_id=row.log_pending_id,
                kind=row.kind,
                tenant_ids=tuple(row.tenant_ids),
                subjects=tuple(row.subjects),
                contents=tuple(row.contents),
            )
            for row in rows
        ]

    async def head(self, tx: Transaction) -> Head:
        """See `LogStore.head`."""
        row = (await connection_of(tx).execute(select(log_head.c.tree_size, log_head.c.root))).first()
        return EMPTY_HEAD if row is None else Head(tree_size=row.tree_size, root=row.root)

    async def tiles(self, tx: Transaction, wanted: Collection[TileId]) -> Mapping[TileId, bytes]:
        """See `LogStore.tiles`."""
        c = log_tiles.c
        query = select(c.level, c.tile_index, c.hashes).where(
            tuple_(c.level, c.tile_index).in_(sorted(wanted))
        )
        rows = await connection_of(tx).execute(query)
        return {TileId(row.level, row.tile_index): row.hashes for row in rows}

    async def append(
        self,
        tx: Transaction,
        *,
        before: Head,
        after: Head,
        entries: Sequence[LogEntry],
        tiles: Mapping[TileId, bytes],
        done: Sequence[int],
    ) -> None:
        """See `LogStore.append`."""
        connection = connection_of(tx)
        if before.tree_size == 0:
            await connection.execute(
                upsert(log_head).values(tree_size=0, root=before.root).on_conflict_do_nothing()
            )
        moved = await connection.execute(
            update(log_head)
            .where(log_head.c.tree_size == before.tree_size, log_head.c.root == before.root)
            .values(tree_size=after.tree_size, root=after.root, integrated_at=func.now())
        )
        if moved.rowcount != 1:
            raise ConflictError(f"the log's head is not {before.tree_size} leaves any more")
        await connection.execute(
            _APPEND,
            {
                "indexes": [entry.log_index for entry in entries],
                "tenants": [entry.tenant_id for entry in entries],
                "kinds": [entry.kind for entry in entries],
                "subjects": [entry.subject for entry in entries],
                "salts": [entry.salt for entry in entries],
                "commitments": [entry.commitment for entry in entries],
            },
        )
        rows = [
            {"level": tile.level, "tile_index": tile.place, "hashes": hashes}
            for tile, hashes in tiles.items()
        ]
        written = upsert(log_tiles)
        await connection.execute(
            written.on_conflict_do_update(
                index_elements=["level", "tile_index"], set_={"hashes": written.excluded.hashes}
            ),
            rows,
        )
        await connection.execute(delete(log_pending).where(is_one_of(log_pending.c.log_pending_id, done)))

    async def add_checkpoint(self, tx: Transaction, *, tree_size: int, note: bytes) -> None:
        """See `LogStore.add_checkpoint`."""
        await connection_of(tx).execute(
            upsert(log_checkpoints).values(tree_size=tree_size, note=note).on_conflict_do_nothing()
        )

    async def newest_checkpoint(self, tx: Transaction) -> tuple[int, bytes] | None:
        """See `LogStore.newest_checkpoint`."""
        c = log_checkpoints.c
        query = select(c.tree_size, c.note).order_by(c.tree_size.desc()).limit(1)
        row = (await connection_of(tx).execute(query)).first()
        return None if row is None else (row.tree_size, row.note)

    async def entry_of(self, tx: Transaction, tenant_id: TenantId, subject: str) -> LogEntry | None:
        """See `LogStore.entry_of`."""
        c = log_entries.c
        query = select(log_entries).where(c.subject == subject, c.tenant_id == tenant_id)
        row = (await connection_of(tx).execute(query)).mappings().first()
        return None if row is None else LogEntry(**row)

    async def entries_of(self, tx: Transaction, subjects: Collection[str]) -> Mapping[str, LogEntry]:
        """See `LogStore.entries_of`."""
        query = select(log_entries).where(is_one_of(log_entries.c.subject, sorted(subjects)))
        rows = (await connection_of(tx).execute(query)).mappings()
        return {row["subject"]: LogEntry(**row) for row in rows}

    async def note_policy(self, tx: Transaction, digest: Digest) -> None:
        """See `LogStore.note_policy`."""
        await connection_of(tx).execute(upsert(policies_used).values(digest=digest).on_conflict_do_nothing())

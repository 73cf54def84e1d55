"""What the check of the evidence reads, of all tenants, in Postgres. Writes nothing but its own marks."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.audit.domain import AuditEntry
from control_plane.completeness.domain import LoggedLeaf, LogState, NodeNumbers
from control_plane.database.ports import Transaction
from control_plane.database.tables import log_checkpoints, receipt_marks
from control_plane.database.unit_of_work import connection_of
from shared.merkle import EMPTY_ROOT

_LEAD: Final = 0x6166636865636B
"""The advisory lock of whoever checks in the background ("afcheck")."""
SAMPLED_TENANTS: Final = 50
_NO_TIME: Final = timedelta()

# One statement, so that a checkpoint of a head that came meanwhile is not held against this one.
_STATE: Final = text(
    """SELECT h.tree_size, h.root, now() - h.integrated_at AS idle_for, p.waiting_for,
        (SELECT max(tree_size) FROM log_checkpoints) AS signed_size
    FROM (SELECT max(now() - created_at) AS waiting_for FROM log_pending) p LEFT JOIN log_head h ON true"""
)
# Entries are stored under tenant and id: whoever changes the tenant of either has lost it. What was made
# before the oldest partition begins was dropped with an older one.
_LEAVES: Final = text(
    """SELECT e.log_index, e.kind, e.subject, e.salt, e.commitment, r.envelope,
        a.audit_entry_id, a.tenant_id, a.actor, a.action, a.subject AS about, a.result,
        CAST(a.details AS text) AS details, a.recorded_at,
        e.kind <> 'audit_entry' OR e.subject >= coalesce(:oldest, '') AS retained
    FROM log_entries e
    LEFT JOIN audit_entries a
        ON e.kind = 'audit_entry' AND a.tenant_id = e.tenant_id AND a.audit_entry_id = e.subject
    LEFT JOIN receipts r ON e.kind = 'receipt' AND r.tenant_id = e.tenant_id AND r.receipt_id = e.subject
    WHERE e.log_index >= :start AND e.log_index < :end ORDER BY e.log_index"""
)
_OLDEST_ENTRY: Final = text(
    """SELECT min(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \\(''([^'']+)''\\)'))
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = CAST('audit_entries' AS regclass)
    HAVING bool_and(pg_get_expr(c.relpartbound, c.oid) NOT LIKE '%(MINVALUE)%TO%')"""
)
# What waits is another finding: this one is about what nobody has announced.
_SETTLED: Final = "least(now() - CAST(:older AS interval), (SELECT min(created_at) FROM log_pending))"
_UNLOGGED: Final = text(
    f"""WITH next AS MATERIALIZED (
        SELECT tenant_id, audit_entry_id, recorded_at FROM audit_entries
        WHERE (tenant_id, audit_entry_id) > (:tenant, :id) ORDER BY tenant_id, audit_entry_id LIMIT :limit
    )
    SELECT tenant_id, audit_entry_id AS id, recorded_at < {_SETTLED} AND NOT EXISTS
        (SELECT FROM log_entries e WHERE e.subject = audit_entry_id) AS unlogged
    FROM next ORDER BY tenant_id, audit_entry_id"""  # noqa: S608 - a text of our own
)
_UNLOGGED_RECEIPTS: Final = text(
    f"""WITH next AS MATERIALIZED (
        SELECT receipt_id, received_at FROM receipts WHERE receipt_id > :id ORDER BY receipt_id LIMIT :limit
    )
    SELECT receipt_id AS id, received_at < {_SETTLED} AND NOT EXISTS
        (SELECT FROM log_entries e WHERE e.subject = receipt_id) AS unlogged
    FROM next ORDER BY receipt_id"""  # noqa: S608 - a text of our own
)
_NEWEST_UNLOGGED: Final = text(
    f"""WITH drawn AS MATERIALIZED (SELECT tenant_id FROM tenants ORDER BY random() LIMIT {SAMPLED_TENANTS})
    SELECT x.id FROM (
        (SELECT a.id FROM drawn CROSS JOIN LATERAL (
            SELECT audit_entry_id AS id FROM audit_entries
            WHERE tenant_id = drawn.tenant_id AND recorded_at < {_SETTLED}
            ORDER BY audit_entry_id DESC LIMIT :limit) a)
        UNION ALL
        (SELECT receipt_id FROM receipts WHERE received_at < {_SETTLED}
            ORDER BY receipt_id DESC LIMIT :limit)) x
    WHERE NOT EXISTS (SELECT FROM log_entries e WHERE e.subject = x.id)
    ORDER BY x.id"""  # noqa: S608 - a text of our own
)
_NODES: Final = text(
    """SELECT n.node_id, n.last_sequence, coalesce(m.checked_to, 0) AS checked_to,
        coalesce(m.missing, '{}') AS missing, coalesce(m.dropped_to, 0) AS dropped_to,
        EXISTS (SELECT FROM receipts r WHERE r.node_id = n.node_id AND r.sequence = n.last_sequence)
            AS head_is_there,
        coalesce((SELECT r.sequence FROM receipts r
            WHERE r.node_id = n.node_id AND r.received_at <= now() - CAST(:grace AS interval)
            ORDER BY r.sequence DESC LIMIT 1), 0) AS settled
    FROM nodes n LEFT JOIN receipt_marks m ON m.node_id = n.node_id
    WHERE n.last_sequence > 0 ORDER BY n.node_id"""
)
_MISSING: Final = text(
    """SELECT n FROM generate_series(CAST(:above AS bigint) + 1, CAST(:up_to AS bigint)) AS n
    EXCEPT SELECT sequence FROM receipts
    WHERE node_id = :node AND sequence > :above AND sequence <= :up_to ORDER BY n"""
)


class PostgresCompletenessStore:
    """Implements `CompletenessStore`."""

    async def take_lead(self, tx: Transaction) -> bool:
        """See `CompletenessStore.take_lead`."""
        taken = await connection_of(tx).execute(select(func.pg_try_advisory_xact_lock(_LEAD)))
        return bool(taken.scalar_one())

    async def state(self, tx: Transaction) -> LogState:
        """See `CompletenessStore.state`."""
        row = (await connection_of(tx).execute(_STATE)).one()
        return LogState(
            tree_size=row.tree_size or 0,
            root=EMPTY_ROOT if row.root is None else row.root,
            signed_size=row.signed_size or 0,
            idle_for=row.idle_for or _NO_TIME,
            waiting_for=row.waiting_for or _NO_TIME,
        )

    async def leaves(self, tx: Transaction, start: int, end: int) -> list[LoggedLeaf]:
        """See `CompletenessStore.leaves`."""
        connection = connection_of(tx)
        oldest = (await connection.execute(_OLDEST_ENTRY)).scalar_one_or_none()
        rows = await connection.execute(_LEAVES, {"start": start, "end": end, "oldest": oldest})
        return [_leaf(row) for row in rows]

    async def checkpoints(
        self, tx: Transaction, *, above: int, up_to: int, limit: int
    ) -> list[tuple[int, bytes]]:
        """See `CompletenessStore.checkpoints`."""
        c = log_checkpoints.c
        query = select(c.tree_size, c.note).where(c.tree_size > above, c.tree_size <= up_to)
        rows = await connection_of(tx).execute(query.order_by(c.tree_size.desc()).limit(limit))
        return [(row.tree_size, row.note) for row in rows]

    async def unlogged(
        self, tx: Transaction, *, older_than: timedelta, behind: tuple[str, str], limit: int
    ) -> tuple[list[str], tuple[str, str] | None]:
        """See `CompletenessStore.unlogged`."""
        tenant, last = behind
        given = {"older": older_than, "tenant": tenant, "id": last, "limit": limit}
        rows = (await connection_of(tx).execute(_UNLOGGED, given)).all()
        wrong = [row.id for row in rows if row.unlogged]
        return wrong, (rows[-1].tenant_id, rows[-1].id) if len(rows) == limit else None

    async def unlogged_receipts(
        self, tx: Transaction, *, older_than: timedelta, behind: str, limit: int
    ) -> tuple[list[str], str | None]:
        """See `CompletenessStore.unlogged_receipts`."""
        given = {"older": older_than, "id": behind, "limit": limit}
        rows = (await connection_of(tx).execute(_UNLOGGED_RECEIPTS, given)).all()
        return [row.id for row in rows if row.unlogged], rows[-1].id if len(rows) == limit else None

    async def newest_unlogged(self, tx: Transaction, *, older_than: timedelta, limit: int) -> list[str]:
        """See `CompletenessStore.newest_unlogged`."""
        rows = await connection_of(tx).execute(_NEWEST_UNLOGGED, {"older": older_than, "limit": limit})
        return list(rows.scalars())

    async def nodes(self, tx: Transaction, *, grace: timedelta) -> list[NodeNumbers]:
        """See `CompletenessStore.nodes`."""
        rows = (await connection_of(tx).execute(_NODES, {"grace": grace})).mappings()
        return [NodeNumbers(**{**row, "missing": tuple(row["missing"])}) for row in rows]

    async def missing(self, tx: Transaction, node_id: str, *, above: int, up_to: int) -> list[int]:
        """See `CompletenessStore.missing`."""
        rows = await connection_of(tx).execute(_MISSING, {"node": node_id, "above": above, "up_to": up_to})
        return list(rows.scalars())

    async def mark(self, tx: Transaction, node_id: str, *, checked_to: int, missing: Sequence[int]) -> None:
        """See `CompletenessStore.mark`."""
        values = {"checked_to": checked_to, "missing": list(missing)}
        statement = upsert(receipt_marks).values(node_id=node_id, **values)
        await connection_of(tx).execute(
            statement.on_conflict_do_update(index_elements=["node_id"], set_=values)
        )


def _leaf(row: Any) -> LoggedLeaf:
    entry = None
    if row.audit_entry_id is not None:
        entry = AuditEntry(
            audit_entry_id=row.audit_entry_id,
            tenant_id=row.tenant_id,
            actor=row.actor,
            action=row.action,
            subject=row.about,
            result=row.result,
            details=row.details,
            recorded_at=row.recorded_at,
        )
    return LoggedLeaf(
        log_index=row.log_index,
        kind=row.kind,
        subject=row.subject,
        salt=row.salt,
        commitment=row.commitment,
        entry=entry,
        envelope=row.envelope,
        retained=row.retained,
    )

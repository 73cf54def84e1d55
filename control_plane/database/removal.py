"""Removes rows of executions and bodies that are old, and the salts of leaves whose facts go.

As the owner of the schema, outside transactions, in steps; repeating any of it is harmless.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.ids import EXECUTION, AuditEntryId, least_id

BODY_COLUMNS: Final = {
    "inputs": ("input_body_id",),
    # What a run left: its output, what it said, and what it was answered.
    "outputs": ("output_body_id", "log_body_id", "recording_body_id"),
}
AT_ONCE: Final = 1000
"""Rows of one step."""
_OLD: Final = """
old AS MATERIALIZED (
    SELECT execution_id, ARRAY[{columns}] AS body_ids FROM executions
    WHERE execution_id > :behind AND execution_id < :below AND state NOT IN ('pending', 'running')
    ORDER BY execution_id LIMIT :limit
)"""
_UNUSED: Final = """b.body_id = ANY(o.body_ids) AND NOT EXISTS (
    SELECT FROM executions l WHERE l.state IN ('pending', 'running') AND l.input_body_id = b.body_id)"""
_REMOVE: Final = f"""
WITH {_OLD}, gone AS (DELETE FROM bodies b USING old o WHERE {_UNUSED} RETURNING b.body_id)
SELECT max(execution_id) AS last, (SELECT count(*) FROM gone) AS bodies FROM old"""  # noqa: S608 - texts of our own
_COUNT: Final = f"""
WITH {_OLD}, gone AS (SELECT DISTINCT b.body_id FROM bodies b JOIN old o ON {_UNUSED})
SELECT max(execution_id) AS last, (SELECT count(*) FROM gone) AS bodies FROM old"""  # noqa: S608 - texts of our own

_RECORD: Final = text(
    """INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
    VALUES (:id, :tenant, 'system', 'retention.erased', :kind, jsonb_build_object(
        'bodies', CAST(:removed AS bigint), 'accepted_before', CAST(:before AS text)))"""
)
_ENDED: Final = "execution_id < :below AND state NOT IN ('pending', 'running')"
_REMOVE_EXECUTIONS: Final = f"""
WITH old AS MATERIALIZED (
    SELECT execution_id FROM executions WHERE {_ENDED}
    ORDER BY execution_id LIMIT {AT_ONCE} FOR UPDATE SKIP LOCKED
), tries AS (
    DELETE FROM attempts a USING old WHERE a.execution_id = old.execution_id
)
DELETE FROM executions e USING old WHERE e.execution_id = old.execution_id"""  # noqa: S608 - texts of our own
_LOGGED: Final = {"receipts": "receipt_id", "audit_entries": "audit_entry_id"}
"""Tables whose rows are leaves of the log, and the column that a leaf is about."""
_FORGET_SALTS: Final = """
WITH next AS MATERIALIZED (
    SELECT {column} AS subject FROM {partition} WHERE {column} > :behind ORDER BY {column} LIMIT :limit
), forgotten AS (
    UPDATE log_entries e SET salt = '' FROM next n WHERE e.subject = n.subject
)
SELECT max(subject) FROM next"""
_MARK_DROPPED: Final = """
INSERT INTO receipt_marks (node_id, dropped_to)
    SELECT node_id, max(sequence) FROM {partition} GROUP BY node_id
ON CONFLICT (node_id) DO UPDATE SET dropped_to = greatest(receipt_marks.dropped_to, excluded.dropped_to)"""


async def remove_executions(connection: AsyncConnection, below: str, *, dry_run: bool) -> int:
    """Remove ended executions with lower ids, and their attempts; returns how many."""
    if dry_run:
        count = text(f"SELECT count(*) FROM executions WHERE {_ENDED}")  # noqa: S608 - a text of our own
        return int(await connection.scalar(count, {"below": below}) or 0)
    statement, removed = text(_REMOVE_EXECUTIONS), 0
    while (rows := (await connection.execute(statement, {"below": below})).rowcount) > 0:
        removed += rows
    return removed


async def forget_salts(connection: AsyncConnection, table: str, partition: str) -> None:
    """Take from the log what would let somebody confirm a guess of what a partition holds; leaves stay."""
    if table not in _LOGGED:
        return
    statement = text(_FORGET_SALTS.format(column=_LOGGED[table], partition=partition))
    behind: str | None = ""
    while behind is not None:
        behind = await connection.scalar(statement, {"behind": behind, "limit": AT_ONCE})


async def mark_dropped(connection: AsyncConnection, table: str, partition: str) -> None:
    """Note which numbers of receipts go with a partition, so that nobody looks for them."""
    if table == "receipts":
        await connection.execute(text(_MARK_DROPPED.format(partition=partition)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRemoval:
    """Which bodies go."""

    kind: str
    """A key of `BODY_COLUMNS`."""
    before: datetime
    """Those of ended executions that were accepted before."""
    tenant: str
    """Where the audit entry goes."""


async def remove_bodies(
    connection: AsyncConnection, removal: BodyRemoval, entry: AuditEntryId, *, dry_run: bool
) -> int:
    """Remove what ended executions read or wrote; returns how many bodies. If any went, `entry` says so."""
    template = _COUNT if dry_run else _REMOVE
    statement = text(template.format(columns=", ".join(BODY_COLUMNS[removal.kind])))
    given = {"below": least_id(EXECUTION.prefix, removal.before), "limit": AT_ONCE}
    behind: str | None = ""
    removed = 0
    while behind is not None:
        row = (await connection.execute(statement, {**given, "behind": behind})).one()
        behind, removed = row.last, removed + row.bodies
    if removed and not dry_run:
        said = {"kind": removal.kind, "tenant": removal.tenant, "before": removal.before.isoformat()}
        await connection.execute(_RECORD, {**said, "id": entry, "removed": removed})
    return removed

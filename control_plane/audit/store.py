"""Audit entries and receipts in Postgres. Adds and reads; nothing here can change or remove."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    ScalarSelect,
    Table,
    Text,
    case,
    cast,
    collate,
    false,
    func,
    insert,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.audit.domain import (
    OK,
    PREFIX_MARK,
    REFUSED,
    AuditEntry,
    AuditFilter,
    EntryOrder,
    Exported,
    ExportedReceipt,
    NewAuditEntry,
)
from control_plane.audit.ports import AuditCursor, ReceiptEvidence
from control_plane.body_keys.sealing import KEY_ID_BYTES
from control_plane.database.notifications import Channel
from control_plane.database.ports import Transaction
from control_plane.database.tables import (
    audit_entries,
    bodies,
    body_keys,
    enrollments,
    executions,
    fleet,
    keysets,
    log_entries,
    order_batches,
    orders,
    receipts,
    template_versions,
)
from control_plane.database.unit_of_work import PostgresDatabase, connection_of
from control_plane.paging import BAD_TOKEN, Page, decode_token, encode_token
from shared.errors import InvalidInputError, NotFoundError
from shared.ids import AUDIT_ENTRY, AuditEntryId, ExecutionId, ReceiptId, TenantId, least_id, parse_id
from shared.log_leaf import LeafKind
from shared.merkle import split_hashes

CLOCKS_AGREE: Final = timedelta(minutes=10)
"""By which an entry's id, of a replica's clock, and its time, of Postgres', differ at most."""

_BEHIND_ALL: Final = "\U0010ffff"
"""Behind every character of an action: this one cannot be printed, and is recorded as an escape."""

_PLANNED_FOR_VALUES: Final = text("SET LOCAL plan_cache_mode = force_custom_plan")

_c = audit_entries.c


def _entry(of: Table) -> tuple[ColumnElement[Any], ...]:
    """Return what an entry is read from: a row of the table or of the view of enrollments."""
    plain = ("audit_entry_id", "tenant_id", "actor", "action", "subject", "result", "recorded_at")
    return (*(of.c[name] for name in plain), cast(of.c.details, Text).label("details"))


_ENTRY: Final = _entry(audit_entries)
# Transactions below this number have all ended: what they recorded is visible and nothing more will come.
_SETTLED: Final[ColumnElement[int]] = literal_column(
    "(pg_snapshot_xmin(pg_current_snapshot())::text)::bigint"
)


class PostgresAuditStore:
    """Implements `AuditStore`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def append(self, tx: Transaction, entries: Sequence[NewAuditEntry]) -> None:
        """See `AuditLog.append`."""
        if not entries:
            return
        await connection_of(tx).execute(insert(audit_entries), [_values(entry) for entry in entries])
        tx.notify_after_commit(Channel.AUDIT)

    async def record(self, entries: Sequence[NewAuditEntry]) -> None:
        """See `AuditStore.record`."""
        async with self._database.transaction() as tx:
            await self.append(tx, entries)

    async def list(
        self,
        tenant_id: TenantId,
        wanted: AuditFilter,
        *,
        order: EntryOrder,
        page_size: int,
        page_token: str,
    ) -> Page[AuditEntry]:
        """See `AuditStore.list`."""
        newest_first = order is EntryOrder.NEWEST_FIRST
        query = select(*_ENTRY).where(_c.tenant_id == tenant_id, *_conditions(wanted))
        if page_token:
            last = _id_of_token(page_token)
            query = query.where(_c.audit_entry_id < last if newest_first else _c.audit_entry_id > last)
        query = query.order_by(_c.audit_entry_id.desc() if newest_first else _c.audit_entry_id.asc())
        query = query.limit(page_size + 1)
        async with self._database.reading() as connection:
            # How many entries a filter takes decides between two indexes, and depends on its values.
            await connection.execute(_PLANNED_FOR_VALUES)
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(AuditEntry(**row) for row in rows[:page_size])
        more = len(rows) > page_size
        return Page(items=items, next_page_token=encode_token(items[-1].audit_entry_id) if more else "")

    async def after(
        self, tenant_id: TenantId, cursor: AuditCursor, *, limit: int
    ) -> tuple[Sequence[AuditEntry], AuditCursor]:
        """See `AuditStore.after`."""
        query = (
            select(*_ENTRY, _c.recorded_in)
            .where(
                _c.tenant_id == tenant_id,
                tuple_(_c.recorded_in, _c.audit_entry_id) > (cursor.position, cursor.last_id or ""),
                _c.recorded_in < _SETTLED,
            )
            .order_by(_c.recorded_in, _c.audit_entry_id)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        if not rows:
            return (), cursor
        entries = [AuditEntry(**{key: row[key] for key in row if key != "recorded_in"}) for row in rows]
        behind = AuditCursor(position=rows[-1]["recorded_in"], last_id=entries[-1].audit_entry_id)
        return entries, behind

    async def newest(self, tenant_id: TenantId) -> AuditCursor:
        """See `AuditStore.newest`."""
        del tenant_id  # a position in Postgres' own order of transactions, the same for all
        async with self._database.reading() as connection:
            position = (await connection.execute(select(_SETTLED))).scalar_one()
        return AuditCursor(position=position)

    async def cursor_after(self, tenant_id: TenantId, audit_entry_id: AuditEntryId) -> AuditCursor:
        """See `AuditStore.cursor_after`."""
        query = select(_c.recorded_in).where(_c.tenant_id == tenant_id, _c.audit_entry_id == audit_entry_id)
        async with self._database.reading() as connection:
            position = (await connection.execute(query)).scalar_one_or_none()
        if position is None:
            raise NotFoundError(f"there is no audit entry {audit_entry_id}")
        return AuditCursor(position=position, last_id=audit_entry_id)

    async def get_receipt(self, tenant_id: TenantId, receipt_id: ReceiptId) -> ReceiptEvidence:
        """See `AuditStore.get_receipt`."""
        newest_keyset = (
            select(keysets.c.envelope).order_by(keysets.c.version.desc()).limit(1).scalar_subquery()
        )
        query = (
            select(
                receipts.c.receipt_id,
                receipts.c.execution_id,
                receipts.c.envelope,
                receipts.c.order_id,
                orders.c.content.label("order_content"),
                func.coalesce(orders.c.leaf_index, 0).label("leaf_index"),
                func.coalesce(orders.c.proof, b"").label("proof"),
                func.coalesce(order_batches.c.envelope, b"").label("batch_envelope"),
                fleet.c.receipt_public_key,
                func.coalesce(receipts.c.received_at >= fleet.c.evicted_at, false()).label("after_eviction"),
                func.coalesce(newest_keyset, b"").label("keyset"),
                func.coalesce(template_versions.c.envelope, b"").label("template_envelope"),
                func.coalesce(executions.c.erased_at, _keys_destroyed_at()).label("erased_at"),
                func.coalesce(template_versions.c.ancestors, cast([], ARRAY(Text))).label("ancestors"),
                executions.c.decision_id,
                fleet.c.node_id,
                fleet.c.tenant_id.label("node_tenant_id"),
            )
            .join(orders, orders.c.order_id == receipts.c.order_id)
            .join(fleet, fleet.c.node_id == receipts.c.node_id)
            .join(executions, executions.c.execution_id == receipts.c.execution_id)
            .outerjoin(order_batches, order_batches.c.batch_id == orders.c.batch_id)
            .outerjoin(
                template_versions,
                (template_versions.c.tenant_id == receipts.c.tenant_id)
                & (template_versions.c.digest == executions.c.template_digest),
            )
            .where(receipts.c.tenant_id == tenant_id, receipts.c.receipt_id == receipt_id)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                raise NotFoundError(f"there is no receipt {receipt_id}")
            values = dict(row)
            ancestors = await _envelopes(connection, tenant_id, values.pop("ancestors"))
            submission = await _first(
                connection, audit_entries, tenant_id, "execution.submitted", row["execution_id"]
            )
            node = (values.pop("node_tenant_id"), "node.enrolled", values.pop("node_id"))
            enrollment = await _first(connection, enrollments, *node)
        path = split_hashes(values.pop("proof"))
        return ReceiptEvidence(
            **values,
            path=path,
            ancestor_envelopes=ancestors,
            submission=submission,
            enrollment=enrollment,
        )

    async def exported(
        self, tenant_id: TenantId, *, after: int, limit: int
    ) -> tuple[Sequence[Exported], int]:
        """See `AuditStore.exported`."""
        e, r = log_entries.c, receipts.c
        leaves = (
            select(e.log_index, e.kind, e.subject)
            .where(e.tenant_id == tenant_id, e.log_index > after)
            .order_by(e.log_index)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            found = (await connection.execute(leaves)).all()
            by_kind = {kind: [row.subject for row in found if row.kind == kind] for kind in LeafKind}
            entries = select(*_ENTRY).where(
                _c.tenant_id == tenant_id, _c.audit_entry_id.in_(by_kind[LeafKind.AUDIT_ENTRY])
            )
            signed = select(
                r.receipt_id, r.execution_id, r.node_id, r.sequence, r.received_at, r.accepted, r.envelope
            ).where(r.tenant_id == tenant_id, r.receipt_id.in_(by_kind[LeafKind.RECEIPT]))
            facts: dict[str, AuditEntry | ExportedReceipt] = {
                row["audit_entry_id"]: AuditEntry(**row)
                for row in (await connection.execute(entries)).mappings()
            }
            for row in (await connection.execute(signed)).mappings():
                facts[row["receipt_id"]] = ExportedReceipt(**row)
        exported = [
            Exported(log_index=row.log_index, kind=row.kind, subject=row.subject, fact=facts.get(row.subject))
            for row in found
        ]
        return exported, exported[-1].log_index if exported else after

    async def receipt_of(self, tenant_id: TenantId, execution_id: ExecutionId) -> ReceiptId:
        """See `AuditStore.receipt_of`."""
        query = select(executions.c.receipt_id).where(
            executions.c.tenant_id == tenant_id, executions.c.execution_id == execution_id
        )
        async with self._database.reading() as connection:
            receipt_id = (await connection.execute(query)).scalar_one_or_none()
        if receipt_id is None:
            raise NotFoundError(f"no receipt has decided execution {execution_id}, or there is no such one")
        return ReceiptId(receipt_id)


def _keys_destroyed_at() -> ScalarSelect[Any]:
    """When the key of what the execution read or wrote was destroyed: it is erased, though its bytes stay."""
    e, b, k = executions.c, bodies.c, body_keys.c
    named = func.encode(func.substring(b.content, 2, KEY_ID_BYTES), "escape")
    sealed_by = case((func.octet_length(b.content) > b.size_bytes, named))
    return (
        select(func.min(k.destroyed_at))
        .select_from(bodies.join(body_keys, (k.body_key_id == sealed_by) & (k.tenant_id == b.tenant_id)))
        .where(b.body_id.in_([e.input_body_id, e.output_body_id, e.log_body_id, e.recording_body_id]))
        .correlate(executions)
        .scalar_subquery()
    )


async def _envelopes(
    connection: AsyncConnection, tenant_id: TenantId, digests: Sequence[str]
) -> tuple[bytes, ...]:
    """Return the envelopes of these template versions, in this order."""
    if not digests:
        return ()
    c = template_versions.c
    query = select(c.digest, c.envelope).where(c.tenant_id == tenant_id, c.digest.in_(digests))
    found = {row.digest: row.envelope for row in await connection.execute(query)}
    return tuple(found[digest] for digest in digests if digest in found)


async def _first(
    connection: AsyncConnection, of: Table, tenant_id: TenantId, action: str, subject: str
) -> AuditEntry | None:
    """Return the oldest entry of an action on a subject."""
    query = (
        select(*_entry(of))
        .where(of.c.tenant_id == tenant_id, of.c.subject == subject, of.c.action == action)
        .order_by(of.c.audit_entry_id)
        .limit(1)
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else AuditEntry(**row)


def _values(entry: NewAuditEntry) -> Mapping[str, Any]:
    return {
        "audit_entry_id": entry.audit_entry_id,
        "tenant_id": entry.tenant_id,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "result": entry.result,
        "details": dict(entry.details),
    }


def _conditions(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    """Return what `AuditFilter.takes` says, for Postgres; and a range of ids: few partitions are read."""
    found: list[ColumnElement[bool]] = []
    action = collate(_c.action, "C")  # as its index has it
    if wanted.action.endswith(PREFIX_MARK):
        first = wanted.action[:-1]
        found += [action >= first, action < first + _BEHIND_ALL]
    elif wanted.action:
        found.append(action == wanted.action)
    if wanted.subject:
        found.append(_c.subject == wanted.subject)
    if wanted.actor:
        found.append(_c.actor == wanted.actor)
    if wanted.result == REFUSED:
        found.append(_c.result != OK)
    elif wanted.result:
        found.append(_c.result == wanted.result)
        if wanted.result != OK:
            found.append(_c.result != OK)  # so that the index of refusals serves
    if wanted.recorded_from is not None:
        found.append(_c.recorded_at >= wanted.recorded_from)
        found.append(_c.audit_entry_id >= least_id(AUDIT_ENTRY.prefix, wanted.recorded_from - CLOCKS_AGREE))
    if wanted.recorded_before is not None:
        found.append(_c.recorded_at < wanted.recorded_before)
        found.append(_c.audit_entry_id < least_id(AUDIT_ENTRY.prefix, wanted.recorded_before + CLOCKS_AGREE))
    return found


def _id_of_token(token: str) -> AuditEntryId:
    try:
        return parse_id(AUDIT_ENTRY, decode_token(token))
    except InvalidInputError as error:
        raise InvalidInputError(BAD_TOKEN) from error

"""Inputs, outputs, logs and recordings in Postgres: uploads, pieces, and the removal of what nothing uses."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, case, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from control_plane.body_keys.sealing import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    BodyPlace,
    span_of,
)
from control_plane.database.tables import bodies, executions
from control_plane.database.unit_of_work import PostgresDatabase, connection_of
from control_plane.executions.domain import BodyKind, StoredBody, UploadQuota
from control_plane.executions.plain_bodies import PlainBodies
from control_plane.executions.ports import BodySealer
from control_plane.executions.rows import Row, body_of_row
from shared.digests import Digest
from shared.errors import NotFoundError, ResourceExhaustedError
from shared.ids import BodyId, ExecutionId, TenantId

UNUSED_BODY_LIFE: Final = timedelta(hours=24)
"""Of an upload that no execution uses."""

IS_SEALED: Final = func.octet_length(bodies.c.content) > bodies.c.size_bytes
"""Known without reading the content."""

_HEADER: Final = case((IS_SEALED, func.substring(bodies.c.content, 1, HEADER_BYTES))).label("header")
_COLUMNS: Final = (
    bodies.c.body_id,
    bodies.c.salt,
    bodies.c.commitment,
    bodies.c.digest,
    bodies.c.size_bytes,
)
_BODY_OF: Final = {
    BodyKind.INPUT: executions.c.input_body_id,
    BodyKind.OUTPUT: executions.c.output_body_id,
    BodyKind.LOG: executions.c.log_body_id,
    BodyKind.RECORDING: executions.c.recording_body_id,
}


class PostgresBodyStore:
    """The part of `ExecutionStore` that concerns bodies."""

    def __init__(self, database: PostgresDatabase, *, sealer: BodySealer | None = None) -> None:
        self._database = database
        self._sealer: BodySealer = sealer or PlainBodies()

    async def protect(self, tenant_id: TenantId, body: StoredBody) -> StoredBody:
        """See `ExecutionStore.protect`."""
        if not self._sealer.is_needed or body.content is None:
            return body
        sealed = await self._sealer.seal(tenant_id, body.body_id, body.content)
        return body if sealed is None else replace(body, sealed=sealed)

    async def add_body(self, tenant_id: TenantId, body: StoredBody, *, quota: UploadQuota) -> None:
        """See `ExecutionStore.add_body`."""
        body = await self.protect(tenant_id, body)
        statement = (
            insert(bodies)
            .values(
                body_id=body.body_id,
                tenant_id=tenant_id,
                salt=body.salt,
                commitment=body.commitment,
                digest=body.digest,
                size_bytes=body.size_bytes,
                content=body.stored,
                expires_at=func.now() + UNUSED_BODY_LIFE,
                uploaded_by=quota.owner,
            )
            .on_conflict_do_nothing()
        )
        unused = select(func.count(), func.coalesce(func.sum(bodies.c.size_bytes), 0)).where(
            bodies.c.uploaded_by == quota.owner,
            bodies.c.expires_at.is_not(None),
            bodies.c.body_id != body.body_id,
        )
        async with self._database.transaction() as tx:
            connection = connection_of(tx)
            # Uploads of one owner count one after another, on every replica.
            await connection.execute(
                select(func.pg_advisory_xact_lock(func.hashtextextended(quota.owner, 0)))
            )
            row = (await connection.execute(unused)).one()
            count, size_bytes = int(row[0]), int(row[1])
            if count + 1 > quota.max_bodies or size_bytes + body.size_bytes > quota.max_bytes:
                raise ResourceExhaustedError(
                    f"{quota.owner} has {count} unused bodies of {size_bytes} bytes stored, at most"
                    f" {quota.max_bodies} of {quota.max_bytes} bytes are possible",
                    hint="use those that are uploaded; an unused one is removed after 24 hours",
                )
            await connection.execute(statement)

    async def get_body(self, tenant_id: TenantId, body_id: BodyId) -> StoredBody:
        """See `ExecutionStore.get_body`."""
        row = await self._one(
            select(*_COLUMNS).where(bodies.c.tenant_id == tenant_id, bodies.c.body_id == body_id)
        )
        if row is None:
            raise NotFoundError(f"there is no body {body_id}")
        return body_of_row(row)

    async def find_uploaded_body(self, tenant_id: TenantId, commitment: Digest) -> StoredBody | None:
        """See `ExecutionStore.find_uploaded_body`."""
        return await self._uploaded(bodies.c.tenant_id == tenant_id, commitment)

    async def find_output(self, execution_id: ExecutionId, commitment: Digest) -> StoredBody | None:
        """See `ExecutionStore.find_output`."""
        owner = select(executions.c.tenant_id).where(executions.c.execution_id == execution_id)
        return await self._uploaded(bodies.c.tenant_id == owner.scalar_subquery(), commitment)

    async def _uploaded(self, whose: ColumnElement[bool], commitment: Digest) -> StoredBody | None:
        row = await self._one(
            select(*_COLUMNS)
            .where(whose, bodies.c.commitment == commitment, bodies.c.expires_at.is_not(None))
            .limit(1)
        )
        return None if row is None else body_of_row(row)

    async def body_of(self, tenant_id: TenantId, execution_id: ExecutionId, kind: BodyKind) -> StoredBody:
        """See `ExecutionStore.body_of`."""
        row = await self._one(
            select(*_COLUMNS, _HEADER)
            .join(executions, _BODY_OF[kind] == bodies.c.body_id)
            .where(executions.c.tenant_id == tenant_id, executions.c.execution_id == execution_id)
        )
        if row is None:
            raise NotFoundError(f"execution {execution_id} has no {kind}, or there is no such execution")
        if row["header"] is not None:
            await self._sealer.require(tenant_id, row["header"])
        return body_of_row(row)

    async def read_body(
        self, tenant_id: TenantId, body_id: BodyId, *, offset_bytes: int, max_bytes: int
    ) -> bytes:
        """See `ExecutionStore.read_body`."""
        content, span = bodies.c.content, span_of(offset_bytes, max_bytes)
        piece = case(
            (IS_SEALED, func.substring(content, span.start_bytes + 1, span.length_bytes)),
            else_=func.substring(content, offset_bytes + 1, max_bytes),
        )
        row = await self._one(
            select(bodies.c.size_bytes, _HEADER, piece.label("piece")).where(
                bodies.c.tenant_id == tenant_id, bodies.c.body_id == body_id
            )
        )
        if row is None:
            raise NotFoundError(f"there is no body {body_id}")
        if row["header"] is None or not row["piece"]:
            return bytes(row["piece"])
        place = BodyPlace(tenant_id=tenant_id, body_id=body_id, size_bytes=row["size_bytes"])
        plain = await self._sealer.open_piece(place, row["header"], row["piece"], first=span.first)
        start = offset_bytes - span.first * SEGMENT_BYTES
        return plain[start : start + max_bytes]

    async def remove_unused_bodies(self, *, limit: int) -> int:
        """See `ExecutionStore.remove_unused_bodies`."""
        old = (
            select(bodies.c.body_id)
            .where(bodies.c.expires_at < func.now())
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._database.transaction() as tx:
            removed = await connection_of(tx).execute(delete(bodies).where(bodies.c.body_id.in_(old)))
        return removed.rowcount

    async def _one(self, query: Any) -> Row | None:
        async with self._database.reading() as connection:
            row: Row | None = (await connection.execute(query)).mappings().one_or_none()
            return row

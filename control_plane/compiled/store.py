"""Compiled artifacts in Postgres, in pieces of rows of their own."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    String,
    and_,
    column,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
    values,
)
from sqlalchemy.exc import IntegrityError

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.compiled.domain import MAX_AGE_OF_UPLOAD, Compiled, NewCompiled, Source, Wanted
from control_plane.database.tables import artifacts, compiled_artifacts, compiled_pieces, template_versions
from control_plane.database.unit_of_work import PostgresDatabase
from shared.compiled import MAX_STATEMENT_BYTES, Target
from shared.digests import Digest
from shared.errors import NotFoundError, ResourceExhaustedError
from shared.ids import CompiledArtifactId, KeyId, TemplateVersionId, TenantId
from shared.manifest import Profile

_c = compiled_artifacts.c
_p = compiled_pieces.c
_v = template_versions.c

_UPLOADS: Final = 7_201_727_227
"""Advisory lock of those who begin an upload, so that the bound holds for all of them together."""


class PostgresCompiledStore:
    """Implements `CompiledStore`."""

    def __init__(self, database: PostgresDatabase, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def wanted(
        self,
        targets: Sequence[Target],
        keys: Collection[KeyId],
        *,
        before: TemplateVersionId | None,
        limit: int,
    ) -> Sequence[Wanted]:
        """See `CompiledStore.wanted`."""
        asked = _asked(targets)
        is_there = exists().where(
            _c.module_digest == _v.module_digest,
            _is_good(keys),
            *(_c[name] == asked.c[name] for name in _TARGET),
        )
        query = (
            select(_v.template_version_id, _v.digest, _v.module_digest, _v.profile, artifacts.c.size_bytes)
            .join(artifacts, artifacts.c.module_digest == _v.module_digest)
            .join(asked, asked.c.profile == _v.profile)
            .where(_v.state == "active", ~is_there)
            .order_by(_v.template_version_id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(_v.template_version_id < before)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [
            Wanted(
                template_version_id=TemplateVersionId(row.template_version_id),
                template_digest=Digest(row.digest),
                module_digest=Digest(row.module_digest),
                profile=Profile(row.profile),
                module_bytes=row.size_bytes,
            )
            for row in rows
        ]

    async def source(self, template_digest: Digest) -> Source | None:
        """See `CompiledStore.source`."""
        query = (
            select(_v.tenant_id, _v.envelope, _v.module_digest)
            .where(_v.digest == template_digest, _v.state == "active")
            .limit(1)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return Source(
            tenant_id=TenantId(row.tenant_id), module_digest=Digest(row.module_digest), envelope=row.envelope
        )

    async def find(self, module_digest: Digest, target: Target, keys: Collection[KeyId]) -> Compiled | None:
        """See `CompiledStore.find`."""
        query = select(_c.compiled_artifact_id, _c.statement, _c.size_bytes).where(
            _c.module_digest == module_digest, _is_for(target), _is_good(keys)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return Compiled(
            compiled_artifact_id=CompiledArtifactId(row.compiled_artifact_id),
            envelope=row.statement,
            size_bytes=row.size_bytes,
        )

    async def read(self, compiled_artifact_id: CompiledArtifactId, numbers: Sequence[int]) -> Sequence[bytes]:
        """See `CompiledStore.read`."""
        query = (
            select(_p.content)
            .where(_p.compiled_artifact_id == compiled_artifact_id)
            .where(_p.number.in_(numbers))
            .order_by(_p.number)
        )
        async with self._database.reading() as connection:
            return (await connection.scalars(query)).all()

    async def begin(self, artifact: NewCompiled, keys: Collection[KeyId], *, bound_bytes: int) -> None:
        """See `CompiledStore.begin`."""
        made = artifact.statement
        in_use = select(_v.module_digest).where(_v.state == "active")
        is_old = and_(_c.completed_at.is_(None), _c.began_at < func.now() - MAX_AGE_OF_UPLOAD)
        async with self._database.transaction() as tx:
            connection = tx.connection
            await connection.execute(select(func.pg_advisory_xact_lock(_UPLOADS)))
            if await connection.scalar(in_use.where(_v.module_digest == made.module_digest).limit(1)) is None:
                raise NotFoundError(f"no active template version has module {made.module_digest}")
            await connection.execute(
                delete(compiled_artifacts).where(
                    _c.module_digest.not_in(in_use) | is_old | _c.compiler_key_id.not_in(sorted(keys))
                )
            )
            # Each with its statement, or small ones would cost nothing.
            used = await connection.scalar(
                select(func.coalesce(func.sum(_c.size_bytes + MAX_STATEMENT_BYTES), 0))
            )
            if int(used or 0) + made.artifact_bytes + MAX_STATEMENT_BYTES > bound_bytes:
                raise ResourceExhaustedError(
                    f"compiled artifacts have {used} bytes, {made.artifact_bytes} more pass {bound_bytes}",
                    hint="raise AF_CONTROL_MAX_COMPILED_BYTES, or retire template versions",
                )
            await connection.execute(insert(compiled_artifacts).values(_row(artifact)))

    async def add_piece(self, compiled_artifact_id: CompiledArtifactId, number: int, content: bytes) -> None:
        """See `CompiledStore.add_piece`."""
        row = insert(compiled_pieces).values(
            compiled_artifact_id=compiled_artifact_id, number=number, content=content
        )
        try:
            async with self._database.transaction() as tx:
                await tx.connection.execute(row)
        except IntegrityError as error:
            raise NotFoundError("the upload is gone: it took too long") from error

    async def complete(self, artifact: NewCompiled, keys: Collection[KeyId], *, audit: NewAuditEntry) -> bool:
        """See `CompiledStore.complete`. Of two at once the first wins: both take the same lock."""
        made = artifact.statement
        same = and_(
            _c.module_digest == made.module_digest, _is_for(made.target), _c.completed_at.is_not(None)
        )
        mine = _c.compiled_artifact_id == artifact.compiled_artifact_id
        async with self._database.transaction() as tx:
            connection = tx.connection
            await connection.execute(select(func.pg_advisory_xact_lock(_UPLOADS)))
            if (
                await connection.scalar(select(_c.compiled_artifact_id).where(same, _is_good(keys)))
                is not None
            ):
                await connection.execute(delete(compiled_artifacts).where(mine))
                return False
            await connection.execute(delete(compiled_artifacts).where(same))
            done = await connection.execute(
                update(compiled_artifacts)
                .where(mine)
                .values(completed_at=func.now())
                .returning(_c.compiled_artifact_id)
            )
            if done.first() is None:
                raise NotFoundError("the upload is gone: it took too long, or its template was retired")
            await self._audit.append(tx, [audit])
        return True

    async def abandon(self, compiled_artifact_id: CompiledArtifactId) -> None:
        """See `CompiledStore.abandon`."""
        async with self._database.transaction() as tx:
            await tx.connection.execute(
                delete(compiled_artifacts).where(
                    _c.compiled_artifact_id == compiled_artifact_id, _c.completed_at.is_(None)
                )
            )


_TARGET: Final = ("profile", "engine_name", "engine_version", "config_digest", "cpu_features")


def _values_of(target: Target) -> tuple[str, ...]:
    return tuple(str(getattr(target, name)) for name in _TARGET)


def _asked(targets: Sequence[Target]) -> Any:
    return values(*(column(name, String) for name in _TARGET), name="asked").data(
        [_values_of(target) for target in targets]
    )


def _is_for(target: Target) -> ColumnElement[bool]:
    return tuple_(*(_c[name] for name in _TARGET)) == tuple_(*_values_of(target))


def _is_good(keys: Collection[KeyId]) -> ColumnElement[bool]:
    return and_(_c.completed_at.is_not(None), _c.compiler_key_id.in_(sorted(keys)))


def _row(artifact: NewCompiled) -> dict[str, Any]:
    made = artifact.statement
    return {
        "compiled_artifact_id": artifact.compiled_artifact_id,
        "module_digest": made.module_digest,
        **dict(zip(_TARGET, _values_of(made.target), strict=True)),
        "artifact_digest": made.artifact_digest,
        "size_bytes": made.artifact_bytes,
        "compiler_key_id": artifact.key_id,
        "statement": artifact.envelope,
        "node_id": artifact.node_id,
    }

"""Postgres behind `TemplateStore`."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, ScalarSelect, Select, Text, cast, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.database.ports import Transaction
from control_plane.database.tables import artifacts, template_channels, template_versions, templates
from control_plane.database.unit_of_work import connection_of
from control_plane.templates.domain import TemplateRef, TemplateState, TemplateVersion
from shared.digests import Digest
from shared.ids import KeyId, TemplateId, TemplateVersionId, TenantId
from shared.manifest import Profile

_v = template_versions.c


class PostgresTemplateStore:
    """Implements `TemplateStore`."""

    async def add(
        self, tx: Transaction, template_id: TemplateId, version: TemplateVersion, module: bytes
    ) -> TemplateVersion | None:
        """See `TemplateStore.add`."""
        connection = connection_of(tx)
        name = upsert(templates).values(
            template_id=template_id, tenant_id=version.tenant_id, name=version.name
        )
        await connection.execute(name.on_conflict_do_nothing())
        artifact = upsert(artifacts).values(
            module_digest=version.module_digest, module=module, size_bytes=len(module)
        )
        await connection.execute(artifact.on_conflict_do_nothing())
        template = select(templates.c.template_id).where(
            templates.c.tenant_id == version.tenant_id, templates.c.name == version.name
        )
        row = upsert(template_versions).values(
            template_version_id=version.template_version_id,
            tenant_id=version.tenant_id,
            template_id=template.scalar_subquery(),
            name=version.name,
            version=version.version,
            digest=version.digest,
            module_digest=version.module_digest,
            publisher_key_id=version.publisher_key_id,
            manifest=version.manifest,
            envelope=version.envelope,
            state=str(version.state),
            ancestors=list(version.ancestors),
            profile=str(version.profile),
            published_by=version.published_by,
        )
        stored = await connection.execute(row.on_conflict_do_nothing().returning(_v.template_version_id))
        if stored.first() is None:
            return None
        return await self.find(tx, version.tenant_id, TemplateRef(digest=version.digest))

    async def find(self, tx: Transaction, tenant_id: TenantId, ref: TemplateRef) -> TemplateVersion | None:
        """See `TemplateStore.find`."""
        query = _versions(tenant_id).add_columns(_v.envelope)
        if ref.digest:
            query = query.where(_v.digest == ref.digest)
        elif ref.channel:
            query = query.where(_v.digest == _channel_digest(tenant_id, ref))
        else:
            query = query.where(_v.name == ref.name, _v.version == ref.version)
        row = (await connection_of(tx).execute(query)).first()
        return None if row is None else _version(row, row.envelope)

    async def list(
        self, tx: Transaction, tenant_id: TenantId, *, name: str, before: TemplateVersionId | None, limit: int
    ) -> Sequence[TemplateVersion]:
        """See `TemplateStore.list`."""
        query = _versions(tenant_id).order_by(_v.template_version_id.desc()).limit(limit)
        if name:
            query = query.where(_v.name == name)
        if before is not None:
            query = query.where(_v.template_version_id < before)
        return [_version(row, b"") for row in await connection_of(tx).execute(query)]

    async def set_state(self, tx: Transaction, version: TemplateVersion, state: TemplateState) -> None:
        """See `TemplateStore.set_state`."""
        change = update(template_versions).where(
            _v.tenant_id == version.tenant_id, _v.template_version_id == version.template_version_id
        )
        # Two at once: a revoked version never becomes a retired one.
        await connection_of(tx).execute(
            change.where(_v.state != "revoked").values(state=str(state), state_changed_at=func.now())
        )

    async def lock(self, tx: Transaction, tenant_id: TenantId, digest: Digest) -> TemplateVersion | None:
        """See `TemplateStore.lock`."""
        query = (
            _versions(tenant_id).where(_v.digest == digest).with_for_update(read=True, of=template_versions)
        )
        row = (await connection_of(tx).execute(query)).first()
        return None if row is None else _version(row, b"")

    async def children(
        self, tx: Transaction, tenant_id: TenantId, digest: Digest
    ) -> Sequence[TemplateVersion]:
        """See `TemplateStore.children`."""
        query = (
            _versions(tenant_id)
            .where(_v.ancestors.bool_op("@>")(cast([digest], ARRAY(Text))))
            .order_by(_v.template_version_id)
        )
        rows = await connection_of(tx).execute(query.with_for_update(of=template_versions))
        return [_version(row, b"") for row in rows]

    async def read_module(
        self, tx: Transaction, module_digest: Digest, *, offset_bytes: int, max_bytes: int
    ) -> bytes | None:
        """See `TemplateStore.read_module`."""
        piece = func.substring(artifacts.c.module, offset_bytes + 1, max_bytes)
        query = select(piece).where(artifacts.c.module_digest == module_digest)
        read: bytes | None = await connection_of(tx).scalar(query)
        return read


def _channel_digest(tenant_id: TenantId, ref: TemplateRef) -> ScalarSelect[Any]:
    channel = template_channels.c
    return (
        select(channel.template_digest)
        .where(
            channel.tenant_id == tenant_id,
            channel.template_name == ref.name,
            channel.channel == ref.channel,
        )
        .scalar_subquery()
    )


def _versions(tenant_id: TenantId) -> Select[Any]:
    return (
        select(
            _v.template_version_id,
            _v.tenant_id,
            _v.name,
            _v.version,
            _v.digest,
            _v.module_digest,
            artifacts.c.size_bytes,
            _v.publisher_key_id,
            _v.manifest,
            _v.state,
            _v.ancestors,
            _v.profile,
            _v.published_by,
            _v.published_at,
        )
        .join(artifacts, artifacts.c.module_digest == _v.module_digest)
        .where(_v.tenant_id == tenant_id)
    )


def _version(row: Row[Any], envelope: bytes) -> TemplateVersion:
    return TemplateVersion(
        template_version_id=TemplateVersionId(row.template_version_id),
        tenant_id=TenantId(row.tenant_id),
        name=row.name,
        version=row.version,
        digest=Digest(row.digest),
        module_digest=Digest(row.module_digest),
        module_bytes=row.size_bytes,
        publisher_key_id=KeyId(row.publisher_key_id),
        state=TemplateState(row.state),
        manifest=row.manifest,
        envelope=envelope,
        ancestors=tuple(Digest(digest) for digest in row.ancestors),
        profile=Profile(row.profile),
        published_by=row.published_by,
        published_at=row.published_at,
    )

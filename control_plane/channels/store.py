"""Postgres behind `ChannelStore`."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.channels.domain import TemplateChannel
from control_plane.database.ports import Transaction
from control_plane.database.tables import template_channels
from control_plane.database.unit_of_work import connection_of
from shared.digests import Digest
from shared.ids import TenantId

_c = template_channels.c


class PostgresChannelStore:
    """Implements `ChannelStore`."""

    async def lock(
        self, tx: Transaction, tenant_id: TenantId, template_name: str, channel: str
    ) -> TemplateChannel | None:
        """See `ChannelStore.lock`."""
        query = select(template_channels).where(
            _c.tenant_id == tenant_id, _c.template_name == template_name, _c.channel == channel
        )
        row = (await connection_of(tx).execute(query.with_for_update())).first()
        return None if row is None else _channel(row)

    async def add(self, tx: Transaction, channel: TemplateChannel) -> bool:
        """See `ChannelStore.add`."""
        row = upsert(template_channels).values(
            tenant_id=channel.tenant_id,
            template_name=channel.template_name,
            channel=channel.channel,
            template_digest=channel.template_digest,
            template_version=channel.template_version,
            revision=channel.revision,
            updated_by=channel.updated_by,
            updated_at=channel.updated_at,
        )
        stored = await connection_of(tx).execute(row.on_conflict_do_nothing().returning(_c.channel))
        return stored.first() is not None

    async def move(self, tx: Transaction, channel: TemplateChannel) -> None:
        """See `ChannelStore.move`."""
        change = update(template_channels).where(
            _c.tenant_id == channel.tenant_id,
            _c.template_name == channel.template_name,
            _c.channel == channel.channel,
        )
        await connection_of(tx).execute(
            change.values(
                template_digest=channel.template_digest,
                template_version=channel.template_version,
                revision=channel.revision,
                updated_by=channel.updated_by,
                updated_at=channel.updated_at,
            )
        )

    async def count(self, tx: Transaction, tenant_id: TenantId, template_name: str) -> int:
        """See `ChannelStore.count`."""
        query = select(func.count()).where(_c.tenant_id == tenant_id, _c.template_name == template_name)
        return (await connection_of(tx).execute(query)).scalar_one()

    async def list(
        self, tx: Transaction, tenant_id: TenantId, *, template_name: str, after: tuple[str, str], limit: int
    ) -> Sequence[TemplateChannel]:
        """See `ChannelStore.list`."""
        query = (
            select(template_channels)
            .where(_c.tenant_id == tenant_id, tuple_(_c.template_name, _c.channel) > after)
            .order_by(_c.template_name, _c.channel)
            .limit(limit)
        )
        if template_name:
            query = query.where(_c.template_name == template_name)
        return [_channel(row) for row in await connection_of(tx).execute(query)]


def _channel(row: Row[Any]) -> TemplateChannel:
    return TemplateChannel(
        tenant_id=TenantId(row.tenant_id),
        template_name=row.template_name,
        channel=row.channel,
        template_version=row.template_version,
        template_digest=Digest(row.template_digest),
        revision=row.revision,
        updated_by=row.updated_by,
        updated_at=row.updated_at,
    )

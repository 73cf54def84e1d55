"""Postgres behind `StopStore`."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Row, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.database.ports import Transaction
from control_plane.database.tables import stops, template_versions, templates, tenants
from control_plane.database.unit_of_work import connection_of
from control_plane.executions.domain import EndReason, HaltScope
from control_plane.stops.domain import Stop, StopTarget
from shared.ids import StopId, TenantId

_s, _v = stops.c, template_versions.c
# Evidence is large, and every replica looks at the stops each second.
_COLUMNS: Final = (
    *(column for column in stops.columns if column is not _s.evidence),
    _s.evidence.is_not(None).label("is_quarantine"),
)


class PostgresStopStore:
    """Implements `StopStore`."""

    async def has_target(self, tx: Transaction, target: StopTarget) -> bool:
        """See `StopStore.has_target`."""
        if target.template_name:
            query = select(templates.c.template_id).where(
                templates.c.tenant_id == target.tenant_id, templates.c.name == target.template_name
            )
        elif target.template_digest:
            query = select(_v.template_version_id).where(
                _v.tenant_id == target.tenant_id, _v.digest == target.template_digest
            )
        else:
            query = select(tenants.c.tenant_id).where(tenants.c.tenant_id == target.tenant_id)
        return await connection_of(tx).scalar(query) is not None

    async def add(self, tx: Transaction, stop: Stop) -> bool:
        """See `StopStore.add`."""
        row = upsert(stops).values(
            stop_id=stop.stop_id,
            tenant_id=stop.target.tenant_id,
            template_name=stop.target.template_name,
            template_digest=stop.target.template_digest,
            reason=stop.reason,
            created_by=stop.created_by,
            created_at=stop.created_at,
            evidence=stop.evidence or None,
        )
        stored = await connection_of(tx).execute(row.on_conflict_do_nothing().returning(_s.stop_id))
        return stored.first() is not None

    async def find_live(self, tx: Transaction, target: StopTarget) -> Stop | None:
        """See `StopStore.find_live`."""
        query = select(*_COLUMNS).where(
            _s.lifted_at.is_(None),
            _s.tenant_id == target.tenant_id,
            _s.template_name == target.template_name,
            _s.template_digest == target.template_digest,
        )
        row = (await connection_of(tx).execute(query)).first()
        return None if row is None else _stop(row)

    async def count_live(self, tx: Transaction, tenant_id: TenantId) -> int:
        """See `StopStore.count_live`."""
        query = select(func.count()).where(_s.lifted_at.is_(None), _s.tenant_id == tenant_id)
        return (await connection_of(tx).execute(query)).scalar_one()

    async def get(self, tx: Transaction, stop_id: StopId) -> Stop | None:
        """See `StopStore.get`."""
        query = select(*_COLUMNS).where(_s.stop_id == stop_id).with_for_update()
        row = (await connection_of(tx).execute(query)).first()
        return None if row is None else _stop(row)

    async def evidence(self, tx: Transaction, stop_id: StopId) -> bytes:
        """See `StopStore.evidence`."""
        found = await connection_of(tx).scalar(select(_s.evidence).where(_s.stop_id == stop_id))
        return bytes(found or b"")

    async def lift(self, tx: Transaction, stop: Stop) -> None:
        """See `StopStore.lift`."""
        change = update(stops).where(_s.stop_id == stop.stop_id)
        await connection_of(tx).execute(
            change.values(lifted_by=stop.lifted_by, lift_reason=stop.lift_reason, lifted_at=stop.lifted_at)
        )

    async def list(
        self, tx: Transaction, *, tenant_id: TenantId | None, lifted: bool, before: StopId | None, limit: int
    ) -> Sequence[Stop]:
        """See `StopStore.list`."""
        query = select(*_COLUMNS).order_by(_s.stop_id.desc()).limit(limit)
        if tenant_id is not None:
            query = query.where(_s.tenant_id == tenant_id)
        if not lifted:
            query = query.where(_s.lifted_at.is_(None))
        if before is not None:
            query = query.where(_s.stop_id < before)
        return [_stop(row) for row in await connection_of(tx).execute(query)]

    async def halts(
        self, tx: Transaction, *, changed_within: timedelta
    ) -> Sequence[tuple[HaltScope, EndReason]]:
        """See `StopStore.halts`."""
        connection = connection_of(tx)
        live = await connection.execute(select(*_COLUMNS).where(_s.lifted_at.is_(None)))
        found = [(_scope(_stop(row).target), EndReason.STOPPED) for row in live]
        closed = await connection.execute(
            select(_v.tenant_id, _v.digest, _v.state).where(
                _v.state_changed_at > func.now() - changed_within, _v.state != "active"
            )
        )
        return found + [
            (
                HaltScope(tenant_id=TenantId(row.tenant_id), template_digest=row.digest),
                EndReason.TEMPLATE_REVOKED if row.state == "revoked" else EndReason.TEMPLATE_RETIRED,
            )
            for row in closed
        ]


def _scope(target: StopTarget) -> HaltScope:
    return HaltScope(
        tenant_id=target.tenant_id,
        template_name=target.template_name,
        template_digest=target.template_digest,
    )


def _stop(row: Row[Any]) -> Stop:
    return Stop(
        stop_id=StopId(row.stop_id),
        target=StopTarget(
            tenant_id=TenantId(row.tenant_id),
            template_name=row.template_name,
            template_digest=row.template_digest,
        ),
        reason=row.reason,
        created_by=row.created_by,
        created_at=row.created_at,
        lifted_by=row.lifted_by or "",
        lift_reason=row.lift_reason or "",
        lifted_at=row.lifted_at,
        is_quarantine=row.is_quarantine,
    )

"""Denied engines in Postgres."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.database.ports import Transaction
from control_plane.database.tables import engine_denials
from control_plane.database.unit_of_work import PostgresDatabase, connection_of
from control_plane.engines.domain import EngineDenial, EngineRule

_c = engine_denials.c


class PostgresEngineDenialStore:
    """Implements `EngineDenialStore`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def add(self, tx: Transaction, denial: EngineDenial) -> bool:
        """See `EngineDenialStore.add`."""
        row = upsert(engine_denials).values(
            engine_name=denial.rule.name,
            engine_version=denial.rule.version,
            engine_config_digest=denial.rule.config_digest,
            reason=denial.reason,
            denied_by=denial.denied_by,
            denied_at=denial.denied_at,
        )
        stored = await connection_of(tx).execute(row.on_conflict_do_nothing().returning(_c.engine_name))
        return stored.first() is not None

    async def find(self, tx: Transaction, rule: EngineRule) -> EngineDenial | None:
        """See `EngineDenialStore.find`."""
        row = (await connection_of(tx).execute(select(engine_denials).where(_is(rule)))).first()
        return None if row is None else _denial(row)

    async def count(self, tx: Transaction) -> int:
        """See `EngineDenialStore.count`."""
        query = select(func.count()).select_from(engine_denials)
        return (await connection_of(tx).execute(query)).scalar_one()

    async def remove(self, tx: Transaction, rule: EngineRule) -> bool:
        """See `EngineDenialStore.remove`."""
        removed = await connection_of(tx).execute(delete(engine_denials).where(_is(rule)))
        return bool(removed.rowcount)

    async def denials(self) -> Sequence[EngineDenial]:
        """See `EngineDenialStore.denials`."""
        query = select(engine_denials).order_by(_c.engine_name, _c.engine_version, _c.engine_config_digest)
        async with self._database.reading() as connection:
            return [_denial(row) for row in await connection.execute(query)]


def _is(rule: EngineRule) -> ColumnElement[bool]:
    return and_(
        _c.engine_name == rule.name,
        _c.engine_version == rule.version,
        _c.engine_config_digest == rule.config_digest,
    )


def _denial(row: Row[Any]) -> EngineDenial:
    return EngineDenial(
        rule=EngineRule(
            name=row.engine_name, version=row.engine_version, config_digest=row.engine_config_digest
        ),
        reason=row.reason,
        denied_by=row.denied_by,
        denied_at=row.denied_at,
    )

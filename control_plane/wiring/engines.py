"""Builds what denies engines."""

from control_plane.engines.service import EngineService
from control_plane.engines.servicer import EngineServicer
from control_plane.engines.store import PostgresEngineDenialStore
from control_plane.wiring.base import Base


def build_engines(base: Base) -> EngineServicer:
    service = EngineService(
        database=base.database,
        store=PostgresEngineDenialStore(base.database),
        audit=base.audit,
        clock=base.clock,
        random=base.random,
    )
    return EngineServicer(service)

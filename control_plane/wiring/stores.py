"""The Postgres adapters of every concern, built once for all services."""

from collections.abc import Callable
from dataclasses import dataclass

from control_plane.agents.store import PostgresAgentStore
from control_plane.channels.store import PostgresChannelStore
from control_plane.executions.lease_store import PostgresLeaseStore
from control_plane.executions.ports import BodySealer
from control_plane.executions.store import PostgresExecutionStore
from control_plane.kv.domain import KvQuota
from control_plane.kv.store import PostgresKvStore
from control_plane.nodes.store import PostgresNodeStore
from control_plane.policy.store import (
    PostgresBundleStore,
    PostgresDecisionLog,
    PostgresDecisionReader,
)
from control_plane.stops.store import PostgresStopStore
from control_plane.templates.store import PostgresTemplateStore
from control_plane.wiring.base import Base
from shared.ids import ExecutionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    executions: PostgresExecutionStore
    leases: PostgresLeaseStore
    kv: PostgresKvStore
    nodes: PostgresNodeStore
    templates: PostgresTemplateStore
    agents: PostgresAgentStore
    decisions: PostgresDecisionLog
    decision_reader: PostgresDecisionReader
    bundles: PostgresBundleStore
    stops: PostgresStopStore
    channels: PostgresChannelStore

    @classmethod
    def of(cls, base: Base, sealer: BodySealer, *, is_awaited: Callable[[ExecutionId], bool]) -> "Stores":
        decisions = PostgresDecisionLog()
        executions = PostgresExecutionStore(
            base.database,
            audit=base.audit,
            decisions=decisions,
            clock=base.clock,
            random=base.random,
            sealer=sealer,
        )
        return cls(
            executions=executions,
            leases=PostgresLeaseStore(
                base.database,
                executions=executions,
                audit=base.audit,
                clock=base.clock,
                random=base.random,
                kv_quota=KvQuota(max_keys=base.settings.kv_max_keys, max_bytes=base.settings.kv_max_bytes),
                sealer=sealer,
                is_awaited=is_awaited,
            ),
            kv=PostgresKvStore(base.database),
            nodes=PostgresNodeStore(database=base.database, audit=base.audit),
            templates=PostgresTemplateStore(),
            agents=PostgresAgentStore(),
            decisions=decisions,
            decision_reader=PostgresDecisionReader(base.database),
            bundles=PostgresBundleStore(),
            stops=PostgresStopStore(),
            channels=PostgresChannelStore(),
        )

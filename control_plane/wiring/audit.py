"""Reading, checking and erasing of evidence, from settings."""

from functools import partial

from control_plane.audit.service import AuditService
from control_plane.audit.servicer import AuditServicer
from control_plane.completeness.service import CompletenessService
from control_plane.completeness.store import PostgresCompletenessStore
from control_plane.database.notifications import Channel
from control_plane.erasure.service import ErasureService
from control_plane.erasure.store import PostgresErasureStore
from control_plane.log.service import LogService
from control_plane.log.store import PostgresLogStore
from control_plane.policy.gate import AuditPolicyGate, PolicyGate
from control_plane.wiring.base import Base
from control_plane.wiring.stores import Stores
from shared.checkpoints import log_origin


def build_audit(
    base: Base, stores: Stores, log: LogService, gate: PolicyGate, completeness: CompletenessService
) -> AuditServicer:
    erasure = ErasureService(
        database=base.database,
        store=PostgresErasureStore(),
        audit=base.audit,
        clock=base.clock,
        random=base.random,
    )
    return AuditServicer(
        AuditService(
            base.audit,
            decisions=stores.decision_reader,
            subscribe=partial(base.subscriptions.subscribed, Channel.AUDIT),
        ),
        log,
        AuditPolicyGate(gate),
        completeness=completeness,
        erasure=erasure,
    )


def build_completeness(base: Base) -> CompletenessService:
    return CompletenessService(
        database=base.database,
        store=PostgresCompletenessStore(),
        log=PostgresLogStore(),
        keys=base.keysets,
        origins=[log_origin(base.found.installation, epoch) for epoch in range(1, base.found.epoch + 1)],
        observer=base.metrics,
        random=base.random,
    )

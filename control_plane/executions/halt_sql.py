"""What emergency stops and closed templates hold back, as SQL. Changes nothing."""

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, exists, select, union_all

from control_plane.database.tables import attempts, executions, stops, template_versions
from control_plane.executions.domain import EndReason, HaltScope

_e, _a, _s, _v = executions.c, attempts.c, stops.c, template_versions.c


def stops_of(tenant_id: str, name: str, digest: str) -> str:
    """Return FROM and WHERE of the live stops that hold what these expressions name."""
    return (
        f"FROM stops s WHERE s.lifted_at IS NULL AND s.tenant_id = {tenant_id}"
        f" AND s.template_name IN ('', {name}) AND s.template_digest IN ('', {digest})"
    )


NOT_STOPPED: Final = f"(SELECT count(*) {stops_of('i.tenant_id', 'v.name', 'v.digest')}) = 0"
"""Of a newcomer `i` of the version `v`. Not EXISTS: that may be answered from a hash of the whole table."""


def concerned(scope: HaltScope, reason: EndReason) -> Select[Any]:
    """Return the executions that `Execution.halt` may concern, found by the queue or by live attempts."""
    waiting = select(_e.execution_id).where(_e.claimable_at.is_not(None), *_within(scope))
    running = (
        select(_e.execution_id)
        .join(attempts, _a.execution_id == _e.execution_id)
        .where(_a.state.in_(["leased", "running"]), _e.fencing_token == _a.fencing_token, *_within(scope))
    )
    if reason is EndReason.STOPPED:
        return running.order_by(_e.execution_id)
    if reason is EndReason.TEMPLATE_RETIRED:
        return waiting.order_by(_e.execution_id)
    both = union_all(waiting, running).subquery()
    return select(both.c.execution_id).order_by(both.c.execution_id)


def is_stopped() -> ColumnElement[bool]:
    """Whether an execution waits and a live stop holds it."""
    held = (
        exists()
        .where(_s.lifted_at.is_(None), _s.tenant_id == _e.tenant_id)
        .where(_s.template_digest.in_(["", _e.template_digest]))
        .where(
            _s.template_name.in_(
                [
                    "",
                    select(_v.name)
                    .where(_v.tenant_id == _e.tenant_id, _v.digest == _e.template_digest)
                    .correlate(executions)
                    .scalar_subquery(),
                ]
            )
        )
    )
    return _e.claimable_at.is_not(None) & held


def _within(scope: HaltScope) -> list[ColumnElement[bool]]:
    conditions = [_e.tenant_id == scope.tenant_id, _e.cancel_requested.is_(False)]
    if scope.template_digest:
        conditions.append(_e.template_digest == scope.template_digest)
    if scope.template_name:
        versions = select(_v.digest).where(_v.tenant_id == scope.tenant_id, _v.name == scope.template_name)
        conditions.append(_e.template_digest.in_(versions))
    return conditions

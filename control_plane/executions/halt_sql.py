"""What emergency stops and closed templates hold back, as SQL. Changes nothing."""

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, any_, exists, or_, select, union_all

from control_plane.database.tables import attempts, executions, stops, template_versions
from control_plane.executions.domain import EndReason, HaltScope

_e, _a, _s, _v = executions.c, attempts.c, stops.c, template_versions.c


STOPS: Final = """FROM stops s WHERE s.lifted_at IS NULL AND s.tenant_id = v.tenant_id
    AND (s.template_digest IN ('', v.digest) OR s.template_digest = ANY(v.ancestors))
    AND (s.template_name IN ('', v.name) OR s.template_name IN (
        SELECT p.name FROM template_versions p
        WHERE p.tenant_id = v.tenant_id AND p.digest = ANY(v.ancestors)))"""
"""FROM and WHERE of the live stops `s` that hold a version `v`: its own, and those of what it extends."""

NOT_STOPPED: Final = f"(SELECT count(*) {STOPS}) = 0"
"""Of the version `v`. Not EXISTS: that may be answered from a hash of the whole table."""


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
    held = exists().where(
        _s.lifted_at.is_(None),
        _s.tenant_id == _v.tenant_id,
        _v.tenant_id == _e.tenant_id,
        _v.digest == _e.template_digest,
        or_(_s.template_digest.in_(["", _v.digest]), _s.template_digest == any_(_v.ancestors)),
        or_(_s.template_name.in_(["", _v.name]), _is_ancestor_named(_s.template_name)),
    )
    return _e.claimable_at.is_not(None) & held


def _within(scope: HaltScope) -> list[ColumnElement[bool]]:
    """The scope's executions: of its versions, and of those that extend one of them."""
    conditions = [_e.tenant_id == scope.tenant_id, _e.cancel_requested.is_(False)]
    if scope.template_digest:
        line = or_(_v.digest == scope.template_digest, any_(_v.ancestors) == scope.template_digest)
        conditions.append(_e.template_digest.in_(_versions(scope.tenant_id, line)))
    if scope.template_name:
        line = or_(_v.name == scope.template_name, _is_ancestor_named(scope.template_name))
        conditions.append(_e.template_digest.in_(_versions(scope.tenant_id, line)))
    return conditions


def _versions(tenant_id: str, line: ColumnElement[bool]) -> Select[Any]:
    return select(_v.digest).where(_v.tenant_id == tenant_id, line)


def _is_ancestor_named(name: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Whether a version extends one of this name."""
    parent = template_versions.alias("parent")
    return (
        exists()
        .where(
            parent.c.tenant_id == _v.tenant_id, parent.c.digest == any_(_v.ancestors), parent.c.name == name
        )
        .correlate(template_versions, stops)
    )

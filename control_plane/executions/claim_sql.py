"""The statements of claims and leases (rules 1, 3 and 9). Text and arrays only."""

from collections.abc import Sequence
from typing import Any, Final

from control_plane.executions.domain import (
    AGING_STEP,
    EXCLUSION_LAPSE,
    INLINE_BODY_BYTES,
    AttemptRef,
    PendingReason,
    Placement,
)
from control_plane.executions.halt_sql import STOPS
from control_plane.executions.turns import Turns
from shared.ids import NodeId

LOCK_SESSION: Final = """
SELECT session_epoch, boot_id FROM sessions WHERE node_id = $1 FOR SHARE
"""

_STEP: Final = f"interval '{AGING_STEP.total_seconds():.0f} seconds'"
DUE: Final = f"((e.claimable_at AT TIME ZONE 'UTC') + e.priority * {_STEP})"
"""The expression of the queue's index, letter for letter; by UTC because only that is immutable."""

WAITING_TENANTS: Final = f"""waiting AS (
    -- One look into the queue's index for each tenant, however much of each waits. By all its columns:
    -- otherwise another index would do too, and be read from end to end for what waits in a long history.
    (SELECT e.tenant_id FROM executions e WHERE e.claimable_at IS NOT NULL
        ORDER BY e.tenant_id, {DUE}, e.execution_id LIMIT 1)
    UNION ALL
    SELECT (SELECT e.tenant_id FROM executions e
        WHERE e.claimable_at IS NOT NULL AND e.tenant_id > w.tenant_id
        ORDER BY e.tenant_id, {DUE}, e.execution_id LIMIT 1)
    FROM waiting w WHERE w.tenant_id IS NOT NULL
)"""  # noqa: S608 - constants of our own
"""Part of a recursive query: the tenants of whom something waits, and a null."""

_HAS_STOPS: Final = "EXISTS (SELECT FROM stops o WHERE o.lifted_at IS NULL AND o.tenant_id = w.tenant_id)"
_IS_STOPPED: Final = f"{_HAS_STOPS[:-1]} AND o.template_name = '' AND o.template_digest = '')"
"""The whole tenant: nothing of it is looked at, however much waits."""

LOCK_CLAIMABLE: Final = f"""
WITH RECURSIVE {WAITING_TENANTS}, turn AS MATERIALIZED (
    SELECT w.tenant_id, coalesce(s.turn, $6::float8) AS turn, count(*) OVER () AS tenants,
        {_HAS_STOPS} AS has_stops
    FROM waiting w LEFT JOIN unnest($4::text[], $5::float8[]) AS s (tenant_id, turn) USING (tenant_id)
    WHERE w.tenant_id IS NOT NULL AND NOT {_IS_STOPPED}
)
-- The outer limit ends the loop over tenants: no more rows are locked than are returned.
SELECT c.*, t.tenants
FROM (SELECT * FROM turn ORDER BY turn, tenant_id) t
CROSS JOIN LATERAL (
SELECT e.execution_id, e.tenant_id, e.caller, e.agent_id, e.agent_name, e.template_digest, e.module_digest,
    e.parameters, e.parameters_digest, e.input_body_id, e.input_commitment, e.input_bytes, e.media_type,
    e.profile, e.seed, e.clock_start_at, e.limits, e.capabilities, e.retry_is_safe, e.decision_id,
    e.policy_digest, e.traceparent, e.run_deadline_at, e.attempt_number, e.fencing_token, e.excluded_nodes,
    e.runs_alone, b.salt, b.digest,
    CASE WHEN b.size_bytes <= {INLINE_BODY_BYTES} THEN b.content END AS content
FROM executions e
JOIN bodies b ON b.body_id = e.input_body_id
JOIN template_versions v ON v.tenant_id = e.tenant_id AND v.digest = e.template_digest AND v.state = 'active'
WHERE e.tenant_id = t.tenant_id AND e.claimable_at <= now() AND e.run_deadline_at > now()
    AND e.execution_id <> ALL($8::text[])
    AND (NOT $1 = ANY(e.excluded_nodes)
        OR e.claimable_at <= now() - interval '{EXCLUSION_LAPSE.total_seconds()} seconds')
    AND ($3 OR NOT e.runs_alone)
    AND (NOT t.has_stops OR NOT EXISTS (SELECT {STOPS}))
ORDER BY {DUE}, e.execution_id
LIMIT coalesce($7::bigint, (t.tenants + $2 - 1) / t.tenants)
FOR UPDATE OF e SKIP LOCKED
) c
LIMIT $2::bigint
"""  # noqa: S608 - constants of our own; values are parameters
"""Waiting executions by turns of their tenants, each tenant's own by priority and age.

None of a template that is closed, or that an emergency stop holds: it obeys what has committed before it
begins.

Without $7 a tenant gets an equal share of the limit; what others leave of theirs is asked for by a second
call with the limit as $7 and what is locked already in $8.
"""

MARK_TOO_NEW: Final = f"""
UPDATE executions e SET pending_reason = '{PendingReason.NEEDS_NEWER_NODE}'
FROM (
    SELECT execution_id FROM executions
    WHERE execution_id = ANY($1::text[]) AND claimable_at IS NOT NULL
        AND pending_reason <> '{PendingReason.NEEDS_NEWER_NODE}'
    ORDER BY execution_id FOR UPDATE SKIP LOCKED
) waiting
WHERE e.execution_id = waiting.execution_id
"""  # noqa: S608 - constants of our own; values are parameters


def claimable_arguments(
    node_id: NodeId,
    limit: int,
    turns: Turns,
    *,
    alone: bool,
    passed: Sequence[str] = (),
    locked: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Return the arguments of `LOCK_CLAIMABLE`, which passes over `passed`; of the 2nd call with `locked`."""
    later = turns.later
    share = limit if locked else None
    return (node_id, limit, alone, list(later), list(later.values()), turns.now, share, [*locked, *passed])


_PLACED: Final = (
    ("execution_id", "text"),
    ("attempt_number", "integer"),
    ("fencing_token", "bigint"),
    ("node_id", "text"),
    ("boot_id", "text"),
    ("session_epoch", "bigint"),
    ("order_id", "text"),
    ("order_content", "bytea"),
    ("order_digest", "text"),
    ("batch_id", "text"),
    ("leaf_index", "integer"),
    ("proof", "bytea"),
    ("lease", "interval"),
    ("audit_entry_id", "text"),
)

STORE_CLAIM: Final = f"""
WITH item AS MATERIALIZED (
    SELECT * FROM unnest({", ".join(f"${n}::{kind}[]" for n, (_, kind) in enumerate(_PLACED, 1))})
        AS i ({", ".join(name for name, _ in _PLACED)})
), claimed AS (
    UPDATE executions e SET attempt_number = i.attempt_number, fencing_token = i.fencing_token,
        claimable_at = NULL, pending_reason = ''
    FROM item i WHERE e.execution_id = i.execution_id AND e.fencing_token = i.fencing_token - 1
    RETURNING e.execution_id, e.tenant_id
), new_attempt AS (
    INSERT INTO attempts (tenant_id, execution_id, attempt_number, fencing_token, node_id, boot_id,
        session_epoch, order_id, order_digest, lease_expires_at)
    SELECT c.tenant_id, i.execution_id, i.attempt_number, i.fencing_token, i.node_id, i.boot_id,
        -- What is left of a lease was reckoned within this transaction, after it began.
        i.session_epoch, i.order_id, i.order_digest, statement_timestamp() + i.lease
    FROM item i JOIN claimed c USING (execution_id)
), new_order AS (
    INSERT INTO orders (order_id, tenant_id, execution_id, fencing_token, node_id, content, digest, batch_id,
        leaf_index, proof)
    SELECT i.order_id, c.tenant_id, i.execution_id, i.fencing_token, i.node_id, i.order_content,
        i.order_digest, i.batch_id, i.leaf_index, i.proof
    FROM item i JOIN claimed c USING (execution_id)
), new_audit_entry AS (
    INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
    SELECT i.audit_entry_id, c.tenant_id, 'system', 'attempt.leased', i.execution_id,
        jsonb_build_object('order_id', i.order_id, 'node_id', i.node_id, 'fencing_token', i.fencing_token)
    FROM item i JOIN claimed c USING (execution_id)
)
SELECT count(*) FROM claimed
"""  # noqa: S608 - constants of our own; values are parameters

_ATTEMPTS: Final = "unnest($1::text[], $2::bigint[]) AS i (execution_id, fencing_token)"

START: Final = f"""
WITH held AS MATERIALIZED (
    SELECT e.execution_id, e.tenant_id, a.fencing_token, a.node_id FROM {_ATTEMPTS}
    JOIN executions e ON e.execution_id = i.execution_id AND e.fencing_token = i.fencing_token
    JOIN attempts a ON a.execution_id = i.execution_id AND a.fencing_token = i.fencing_token
    WHERE a.state = 'leased' AND e.state = 'pending'
    ORDER BY e.execution_id FOR UPDATE OF e, a
), started_attempt AS (
    UPDATE attempts a SET state = 'running', started_at = now()
    FROM held h WHERE a.execution_id = h.execution_id AND a.fencing_token = h.fencing_token
), started AS (
    UPDATE executions e SET state = 'running', started_at = coalesce(e.started_at, now())
    FROM held h WHERE e.execution_id = h.execution_id
), new_audit_entry AS (
    INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
    SELECT d.audit_entry_id, h.tenant_id, 'node:' || h.node_id, 'execution.started', h.execution_id,
        jsonb_build_object('fencing_token', h.fencing_token)
    FROM held h JOIN unnest($1::text[], $3::text[]) AS d (execution_id, audit_entry_id) USING (execution_id)
)
SELECT execution_id FROM held
"""  # noqa: S608 - constants of our own; values are parameters

RENEW: Final = f"""
WITH held AS MATERIALIZED (
    SELECT a.execution_id, a.fencing_token FROM {_ATTEMPTS}
    JOIN attempts a ON a.execution_id = i.execution_id AND a.fencing_token = i.fencing_token
    WHERE a.node_id = $3 AND a.state IN ('leased', 'running')
    ORDER BY a.execution_id, a.fencing_token FOR UPDATE OF a
)
UPDATE attempts a SET lease_expires_at = now() + $4
FROM held h WHERE a.execution_id = h.execution_id AND a.fencing_token = h.fencing_token
RETURNING a.execution_id, a.attempt_number, a.fencing_token
"""  # noqa: S608 - constants of our own; values are parameters

DECLARE_UNSAFE: Final = """
WITH item AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[])
        AS i (execution_id, fencing_token, attempt_number, node_id, audit_entry_id)
), held AS MATERIALIZED (
    SELECT a.tenant_id, a.execution_id, a.fencing_token, a.attempt_number, a.node_id,
        a.unsafe_call_at IS NULL AS is_new
    FROM attempts a
    WHERE (a.execution_id, a.fencing_token) IN (SELECT execution_id, fencing_token FROM item)
        AND a.state IN ('leased', 'running') AND a.lease_expires_at > now()
    ORDER BY a.execution_id, a.fencing_token FOR UPDATE OF a
), told AS MATERIALIZED (
    -- One row for each attempt, however often the group names it.
    SELECT DISTINCT ON (h.execution_id, h.fencing_token) h.*, i.audit_entry_id
    FROM held h JOIN item i USING (execution_id, fencing_token, attempt_number, node_id)
    ORDER BY h.execution_id, h.fencing_token
), noted AS (
    UPDATE attempts a SET unsafe_call_at = now()
    FROM told t WHERE t.is_new AND a.execution_id = t.execution_id AND a.fencing_token = t.fencing_token
), new_audit_entry AS (
    INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
    SELECT audit_entry_id, tenant_id, 'node:' || node_id, 'attempt.unsafe_call', execution_id,
        jsonb_build_object('fencing_token', fencing_token)
    FROM told WHERE is_new
)
SELECT execution_id, fencing_token, attempt_number, node_id, is_new FROM told
"""
"""Committed like a result, not relaxed: the call leaves the node after it."""

RELAXED_COMMIT: Final = "SET LOCAL synchronous_commit = off"
"""For what a crash of Postgres may take back: rule 9 lets leases run on, a start shows as leased again."""

LIVE_OF: Final = f"""
SELECT a.execution_id, a.attempt_number, a.fencing_token FROM {_ATTEMPTS}
JOIN attempts a ON a.execution_id = i.execution_id AND a.fencing_token = i.fencing_token
WHERE a.state IN ('leased', 'running')
"""  # noqa: S608 - constants of our own; values are parameters

RECORD_BATCHES: Final = """
INSERT INTO order_batches (batch_id, envelope, key_id)
SELECT batch_id, envelope, key_id FROM unnest($1::text[], $2::bytea[], $3::text[])
    AS i (batch_id, envelope, key_id)
WHERE (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
ON CONFLICT DO NOTHING
"""
"""It does not wait for the disk: the commit that accepts a receipt comes later in the same log and takes it
along.
"""

LIVE_ATTEMPT: Final = """
SELECT e.tenant_id, e.template_digest, e.module_digest, e.policy_digest, e.input_body_id, e.input_bytes
FROM attempts a JOIN executions e USING (execution_id)
WHERE a.execution_id = $1 AND a.fencing_token = $2 AND a.attempt_number = $3 AND a.node_id = $4
    AND a.state IN ('leased', 'running') AND a.lease_expires_at > now()
"""

CANCEL_REQUESTS: Final = """
SELECT a.execution_id, a.attempt_number, a.fencing_token, a.node_id, e.reason
FROM attempts a JOIN executions e USING (execution_id)
WHERE a.node_id = ANY($1::text[]) AND a.state IN ('leased', 'running') AND e.cancel_requested
    AND e.fencing_token = a.fencing_token
ORDER BY a.execution_id
"""

EXPIRED_LEASES: Final = """
SELECT a.execution_id FROM attempts a JOIN executions e USING (execution_id)
WHERE a.state IN ('leased', 'running') AND a.lease_expires_at < now()
    AND now() - pg_postmaster_start_time() >= $2
ORDER BY a.execution_id LIMIT $1
"""
"""None before Postgres has been up for a while: a restart between two sweeps shows nowhere else (rule 9)."""

OTHER_BOOTS: Final = """
SELECT a.execution_id FROM attempts a JOIN executions e USING (execution_id)
WHERE a.node_id = $1 AND a.boot_id <> $2 AND a.state IN ('leased', 'running')
ORDER BY a.execution_id FOR UPDATE OF e
"""

PAST_DEADLINE: Final = """
SELECT e.execution_id FROM executions e
WHERE e.state IN ('pending', 'running') AND e.run_deadline_at <= now() AND NOT e.cancel_requested
ORDER BY e.execution_id LIMIT $1
"""

LOCKED: Final = "FOR UPDATE OF e SKIP LOCKED"
"""Behind one of the two above: take what nobody else is about to change."""


def attempt_arguments(attempts: Sequence[AttemptRef]) -> tuple[list[Any], list[Any]]:
    """Return the arrays by which statements name attempts, in key order."""
    ordered = sorted(attempts, key=lambda one: (one.execution_id, one.fencing_token))
    return [one.execution_id for one in ordered], [one.fencing_token for one in ordered]


def claim_arguments(placements: Sequence[Placement], audit_ids: Sequence[str]) -> list[Sequence[Any]]:
    """Return the arrays of `STORE_CLAIM`."""
    rows = (
        (
            one.execution_id,
            one.attempt_number,
            one.fencing_token,
            one.node_id,
            one.boot_id,
            one.session_epoch,
            one.order_id,
            one.order_content,
            one.order_digest,
            one.batch.batch_id,
            one.batch.leaf_index,
            b"".join(one.batch.path),
            one.lease,
            audit_id,
        )
        for one, audit_id in zip(placements, audit_ids, strict=True)
    )
    return list(zip(*rows, strict=True))

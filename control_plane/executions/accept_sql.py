"""The one statement that accepts a group of executions (design section 4.3, rules 3, 4 and 8).

Text and arrays only. One round trip and one implicit transaction: request ids, bodies, decisions, executions,
the attempts and orders of those that are placed at once, and audit entries. Every array has one element per
execution, in key order.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from control_plane.executions.domain import NewExecution, PendingReason, Placement
from control_plane.executions.halt_sql import NOT_STOPPED, STOPS
from control_plane.executions.rows import request_hmac
from shared.decisions import decision_digest

_COLUMNS: Final = (
    ("tenant_id", "text"),
    ("caller", "text"),
    ("method", "text"),
    ("request_id", "text"),
    ("hmac_key", "bytea"),
    ("request_hmac", "bytea"),
    ("execution_id", "text"),
    ("agent_id", "text"),
    ("agent_name", "text"),
    ("agent_revision", "bigint"),
    ("template_digest", "text"),
    ("module_digest", "text"),
    ("parameters", "bytea"),
    ("parameters_digest", "text"),
    ("body_id", "text"),
    ("salt", "bytea"),
    ("commitment", "text"),
    ("input_bytes", "bigint"),
    ("content", "bytea"),
    ("body_digest", "text"),
    ("media_type", "text"),
    ("profile", "text"),
    ("seed", "bytea"),
    ("clock_start_at", "timestamptz"),
    ("limits", "bytea"),
    ("capabilities", "bytea"),
    ("retry_is_safe", "boolean"),
    ("traceparent", "text"),
    ("max_attempts", "integer"),
    ("priority", "smallint"),
    ("run_deadline_at", "timestamptz"),
    ("created_at", "timestamptz"),
    ("decision_id", "text"),
    ("question", "text"),
    ("decision_reason", "text"),
    ("decision_input", "bytea"),
    ("policy_digest", "text"),
    ("decision_input_digest", "text"),
    ("decision_result_digest", "text"),
    ("decision_duration_us", "integer"),
    ("decision_engine", "text"),
    ("engine_decision_id", "text"),
    ("audit_entry_id", "text"),
    ("details", "jsonb"),
    ("order_id", "text"),
    ("node_id", "text"),
    ("boot_id", "text"),
    ("session_epoch", "bigint"),
    ("order_content", "bytea"),
    ("order_digest", "text"),
    ("batch_id", "text"),
    ("leaf_index", "integer"),
    ("proof", "bytea"),
    ("lease", "interval"),
)

_ITEM: Final = ", ".join(f"(${n}::{kind}[])[n] AS {name}" for n, (name, kind) in enumerate(_COLUMNS, 1))
_NODES: Final = 1 + [name for name, _ in _COLUMNS].index("node_id")

_UPLOADED_THERE: Final = """
    WHERE i.content IS NOT NULL
        OR (SELECT count(*) FROM bodies b WHERE b.body_id = i.body_id AND b.tenant_id = i.tenant_id) = 1"""
# Not EXISTS: that one may be answered from a hash of the whole table.
_USE_UPLOADED: Final = """
), used_body AS (
    UPDATE bodies b SET expires_at = NULL FROM chosen c
    WHERE c.content IS NULL AND b.body_id = c.body_id AND b.expires_at IS NOT NULL"""


def _statement(*, bodies_there: str, use_bodies: str) -> str:
    return f"""
WITH item AS MATERIALIZED (
    -- By subscript: unnest makes a tuple store for every array, 7 % of the statement.
    SELECT {_ITEM} FROM generate_subscripts($1::text[], 1) AS n
), live AS MATERIALIZED (
    -- Locked: a Hello that moves the epoch waits for us, or we see it (rule 3).
    SELECT node_id, session_epoch, boot_id FROM sessions
    WHERE node_id = ANY(${_NODES}::text[]) ORDER BY node_id FOR SHARE
), allowed AS MATERIALIZED (
    SELECT i.* FROM item i
    JOIN agents a ON a.agent_id = i.agent_id AND a.tenant_id = i.tenant_id
        AND a.revision = i.agent_revision AND a.deleted_at IS NULL
    JOIN template_versions v ON v.tenant_id = i.tenant_id AND v.digest = i.template_digest
        AND v.state = 'active' AND {NOT_STOPPED}{bodies_there}
), fresh AS (
    INSERT INTO idempotency_keys
        (tenant_id, caller, method, request_id, hmac_key, request_hmac, execution_id)
    SELECT tenant_id, caller, method, request_id, hmac_key, request_hmac, execution_id FROM allowed
    ORDER BY tenant_id, caller, method, request_id  -- so that two groups never wait in a circle
    ON CONFLICT DO NOTHING
    RETURNING execution_id
), chosen AS MATERIALIZED (
    SELECT i.*, l.node_id IS NOT NULL AS placed FROM allowed i
    JOIN fresh USING (execution_id)
    LEFT JOIN live l ON l.node_id = i.node_id AND l.session_epoch = i.session_epoch AND l.boot_id = i.boot_id
), new_body AS (
    INSERT INTO bodies (body_id, tenant_id, salt, commitment, size_bytes, content, digest)
    SELECT body_id, tenant_id, salt, commitment, input_bytes, content, body_digest FROM chosen
    WHERE content IS NOT NULL{use_bodies}
), new_decision AS (
    INSERT INTO decisions (decision_id, tenant_id, question, allowed, reason, input, policy_digest,
        input_digest, result_digest, duration_us, engine, engine_decision_id)
    SELECT decision_id, tenant_id, question, true, decision_reason, decision_input, policy_digest,
        decision_input_digest, decision_result_digest, decision_duration_us, decision_engine,
        engine_decision_id
    FROM chosen
), new_execution AS (
    INSERT INTO executions (
        execution_id, tenant_id, agent_id, agent_name, caller, template_digest, module_digest, parameters,
        parameters_digest, input_body_id, input_commitment, input_bytes, media_type, profile, seed,
        clock_start_at, limits, capabilities, retry_is_safe, decision_id, policy_digest, traceparent,
        max_attempts, priority, run_deadline_at, created_at,
        attempt_number, fencing_token, pending_reason, claimable_at)
    SELECT
        execution_id, tenant_id, agent_id, agent_name, caller, template_digest, module_digest, parameters,
        parameters_digest, body_id, commitment, input_bytes, media_type, profile, seed,
        clock_start_at, limits, capabilities, retry_is_safe, decision_id, policy_digest, traceparent,
        max_attempts, priority, run_deadline_at, created_at,
        placed::int, placed::int, CASE WHEN placed THEN '' ELSE '{PendingReason.QUEUED}' END,
        CASE WHEN NOT placed THEN now() END
    FROM chosen
), new_attempt AS (
    INSERT INTO attempts (
        tenant_id, execution_id, attempt_number, fencing_token, node_id, boot_id, session_epoch, order_id,
        order_digest, lease_expires_at)
    SELECT tenant_id, execution_id, 1, 1, node_id, boot_id, session_epoch, order_id, order_digest,
        now() + lease
    FROM chosen WHERE placed
), new_order AS (
    INSERT INTO orders (order_id, tenant_id, execution_id, fencing_token, node_id, content, digest, batch_id,
        leaf_index, proof)
    SELECT order_id, tenant_id, execution_id, 1, node_id, order_content, order_digest, batch_id, leaf_index,
        proof
    FROM chosen WHERE placed
), new_audit_entry AS (
    INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
    SELECT audit_entry_id, tenant_id, caller, 'execution.submitted', execution_id,
        CASE WHEN placed THEN details || jsonb_build_object('order_id', order_id, 'node_id', node_id)
            ELSE details END
    FROM chosen
)
SELECT execution_id, placed FROM chosen
"""  # noqa: S608 - names of our own; values are parameters


ACCEPT: Final = _statement(bodies_there="", use_bodies="")
"""For groups whose inputs all come inline: nearly every one, and the shorter statement costs less."""

ACCEPT_UPLOADED: Final = _statement(bodies_there=_UPLOADED_THERE, use_bodies=_USE_UPLOADED)
"""For groups with an input that was uploaded before."""

RESOLVE: Final = f"""
SELECT i.n, k.execution_id, k.hmac_key, k.request_hmac, a.order_id, b.body_id,
    (SELECT s.reason {STOPS}
        ORDER BY s.stop_id LIMIT 1) AS stop_reason
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) WITH ORDINALITY
    AS i (tenant_id, caller, method, request_id, body_id, template_digest, n)
LEFT JOIN idempotency_keys k ON k.tenant_id = i.tenant_id AND k.caller = i.caller AND k.method = i.method
    AND k.request_id = i.request_id
LEFT JOIN attempts a ON a.execution_id = k.execution_id AND a.fencing_token = 1
LEFT JOIN bodies b ON b.tenant_id = i.tenant_id AND b.body_id = i.body_id
LEFT JOIN template_versions v ON v.tenant_id = i.tenant_id AND v.digest = i.template_digest
ORDER BY i.n
"""  # noqa: S608 - names of our own; values are parameters
"""What became of requests that the statement above did not insert."""


def key_of(item: NewExecution) -> tuple[str, str, str, str]:
    """Return the key by which a group is ordered: two groups never wait for each other in a circle."""
    return (item.run.tenant_id, item.run.caller, item.idempotency.method, item.idempotency.request_id)


def accept_statement(items: Sequence[NewExecution]) -> str:
    """Return the statement that these items need."""
    return ACCEPT_UPLOADED if any(item.run.input.content is None for item in items) else ACCEPT


def accept_arguments(
    items: Sequence[NewExecution], placements: Sequence[Placement | None]
) -> list[Sequence[Any]]:
    """Return the arrays of the statement, one value per item and column."""
    return list(zip(*(_values(item, at) for item, at in zip(items, placements, strict=True)), strict=True))


def _values(item: NewExecution, placement: Placement | None) -> tuple[Any, ...]:
    run, key, body, decision = item.run, item.idempotency, item.run.input, item.decision
    return (
        run.tenant_id,
        run.caller,
        key.method,
        key.request_id,
        key.hmac_key,
        request_hmac(key.hmac_key, key.fingerprint),
        run.execution_id,
        run.agent_id,
        run.agent_name,
        item.agent_revision,
        run.template_digest,
        run.module_digest,
        run.parameters,
        run.parameters_digest,
        body.body_id,
        body.salt,
        body.commitment,
        body.size_bytes,
        body.stored,
        body.digest,
        run.media_type,
        run.profile,
        run.seed,
        run.clock_start_at,
        run.limits,
        run.capabilities,
        run.retry_is_safe,
        run.traceparent,
        item.max_attempts,
        int(item.priority),
        run.run_deadline_at,
        item.created_at,
        decision.decision_id,
        decision.question,
        decision.reason,
        decision.input,
        decision.policy_digest,
        decision.input_digest,
        decision.result_digest,
        decision.duration_us,
        decision.engine,
        decision.engine_decision_id,
        item.audit_entry_id,
        _details(item),
        *_place(placement),
    )


def _details(item: NewExecution) -> str:
    """Return what the audit entry says; by it the decision is in the transparency log, input and all."""
    decision = item.decision
    return json.dumps(
        {
            "agent": item.run.agent_name,
            "template_digest": item.run.template_digest,
            "input_commitment": item.run.input.commitment,
            "decision_id": decision.decision_id,
            "decision_digest": decision_digest(
                decision_id=decision.decision_id,
                question=decision.question,
                policy_digest=decision.policy_digest,
                input_digest=decision.input_digest,
                result_digest=decision.result_digest,
            ),
        }
    )


def _place(placement: Placement | None) -> tuple[Any, ...]:
    if placement is None:
        return (None,) * 10
    return (
        placement.order_id,
        placement.node_id,
        placement.boot_id,
        placement.session_epoch,
        placement.order_content,
        placement.order_digest,
        placement.batch.batch_id,
        placement.batch.leaf_index,
        b"".join(placement.batch.path),
        placement.lease,
    )

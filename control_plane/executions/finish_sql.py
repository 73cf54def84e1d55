"""The one statement that records a group of receipts (design section 4.8, rules 1, 2, 5 and 7).

Text and arrays only. One round trip and one implicit transaction: rows are locked in key order; a receipt is
stored once per node and sequence; it decides its execution when its token is the newest and nothing has ended
it before.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from control_plane.executions.domain import (
    REJECTION_BACKOFF,
    AttemptResult,
    EndReason,
    ExecutionState,
    PendingReason,
    StoredBody,
)
from control_plane.executions.rows import EXECUTION_COLUMN_NAMES, resources_bytes
from shared.errors import RejectionReason

_COLUMNS: Final = (
    ("receipt_id", "text"),
    ("audit_entry_id", "text"),
    ("node_id", "text"),
    ("sequence", "bigint"),
    ("hash", "bytea"),
    ("order_id", "text"),
    ("order_digest", "text"),
    ("execution_id", "text"),
    ("fencing_token", "bigint"),
    ("envelope", "bytea"),
    ("outcome", "text"),
    ("exit_code", "bigint"),
    ("limit_name", "text"),
    ("trap", "text"),
    ("reason", "text"),
    ("counts", "boolean"),
    ("resources_used", "bytea"),
    ("output_body_id", "text"),
    ("output_salt", "bytea"),
    ("output_commitment", "text"),
    ("output_digest", "text"),
    ("output_bytes", "bigint"),
    ("output_content", "bytea"),
    ("log_body_id", "text"),
    ("log_salt", "bytea"),
    ("log_commitment", "text"),
    ("log_digest", "text"),
    ("log_bytes", "bigint"),
    ("log_content", "bytea"),
    ("started_at", "timestamptz"),
    ("batch_id", "text"),
    ("batch_envelope", "bytea"),
    ("batch_key_id", "text"),
)
_RECORDING_COLUMNS: Final = (
    ("recording_body_id", "text"),
    ("recording_salt", "bytea"),
    ("recording_commitment", "text"),
    ("recording_digest", "text"),
    ("recording_bytes", "bigint"),
    ("recording_content", "bytea"),
)


def _item(columns: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"(${n}::{kind}[])[n] AS {name}" for n, (name, kind) in enumerate(columns, 1))


_RETURNED: Final = ", ".join(f"e.{name}" for name in EXECUTION_COLUMN_NAMES)
_BACKOFF: Final = f"interval '{REJECTION_BACKOFF.total_seconds()} seconds'"


def _there(body: str) -> str:
    # Not EXISTS: that one may be answered from a hash of the whole table.
    return f"""(i.{body}_body_id IS NULL OR i.{body}_content IS NOT NULL
            OR (SELECT count(*) FROM bodies b
                WHERE b.body_id = i.{body}_body_id AND b.tenant_id = h.tenant_id) = 1)"""  # noqa: S608 - names of our own


def _uploaded_there(*bodies: str) -> str:
    return " AND ".join(_there(body) for body in bodies)


def _use_uploaded(*bodies: str) -> str:
    used = " OR ".join(f"(b.body_id = w.{body}_body_id AND w.{body}_content IS NULL)" for body in bodies)
    return f"""
), used_body AS (
    UPDATE bodies b SET expires_at = NULL FROM won w
    WHERE b.expires_at IS NOT NULL AND NOT w.requeued AND ({used})"""  # noqa: S608 - the same


_RECORDING_BODY: Final = """
    UNION ALL
    SELECT recording_body_id, tenant_id, recording_salt, recording_commitment, recording_digest,
        recording_bytes, recording_content
    FROM won WHERE recording_content IS NOT NULL AND NOT requeued"""
_SET_RECORDING: Final = """
        recording_body_id = CASE WHEN NOT w.requeued THEN w.recording_body_id END,
        recording_bytes = CASE WHEN NOT w.requeued THEN w.recording_bytes END,"""


def _statement(
    *,
    bodies_there: str,
    use_bodies: str,
    columns: Sequence[tuple[str, str]] = _COLUMNS,
    recording_body: str = "",
    set_recording: str = "",
) -> str:
    return f"""
WITH item AS MATERIALIZED (
    -- By subscript: unnest makes a tuple store for every array, 7 % of the statement.
    SELECT n, {_item(columns)} FROM generate_subscripts($1::text[], 1) AS n
), held AS MATERIALIZED (
    SELECT i.n, e.tenant_id, e.state, e.fencing_token AS newest_token, e.cancel_requested,
        e.reason AS cancel_reason, a.state AS attempt_state, a.order_id, a.order_digest,
        a.node_id AS leased_to, a.unsafe_call_at IS NOT NULL AND NOT e.retry_is_safe AS retry_is_unsafe
    FROM item i
    JOIN executions e ON e.execution_id = i.execution_id
    JOIN attempts a ON a.execution_id = i.execution_id AND a.fencing_token = i.fencing_token
    ORDER BY e.execution_id, a.fencing_token
    FOR UPDATE OF e, a
), matched AS MATERIALIZED (
    SELECT i.*, h.tenant_id, h.cancel_requested, h.cancel_reason,
        h.newest_token = i.fencing_token AND h.state IN ('pending', 'running')
            AND h.attempt_state <> 'finished'
            AND NOT (i.outcome = 'rejected' AND i.reason IS NOT DISTINCT FROM '{RejectionReason.REPLAY}')
            AS decides,
        NOT i.counts AND NOT h.cancel_requested AND NOT h.retry_is_unsafe AS requeued,
        CASE WHEN NOT (h.cancel_requested AND i.stopped)
            THEN CASE WHEN i.counts THEN i.outcome ELSE '{ExecutionState.LOST}' END
            WHEN h.cancel_reason = '{EndReason.RUN_DEADLINE}' THEN 'expired' ELSE 'cancelled'
            END AS end_state,
        {bodies_there} AS bodies_there,
        -- A receipt that comes twice meets itself in its partition. Another one of the same number may be in
        -- any: only for a number that is not ahead of the node's head is it worth a look into all of them.
        CASE WHEN i.sequence > (SELECT d.last_sequence FROM nodes d WHERE d.node_id = i.node_id) THEN true
            ELSE NOT receipt_is_stored(i.node_id, i.sequence) END AS number_is_new
    FROM (SELECT *, outcome = 'cancelled' OR NOT counts AS stopped FROM item) i
    JOIN held h ON h.n = i.n AND h.order_id = i.order_id AND h.order_digest = i.order_digest
        AND h.leased_to = i.node_id
), stored AS (
    INSERT INTO receipts (receipt_id, tenant_id, node_id, sequence, hash, order_id, execution_id,
        fencing_token, envelope, accepted)
    SELECT receipt_id, tenant_id, node_id, sequence, hash, order_id, execution_id,
        fencing_token, envelope, decides
    FROM matched WHERE bodies_there AND number_is_new
    ON CONFLICT DO NOTHING
    RETURNING receipt_id
), fresh AS MATERIALIZED (
    SELECT m.* FROM matched m JOIN stored USING (receipt_id)
), won AS MATERIALIZED (
    SELECT * FROM fresh WHERE decides
), new_body AS (
    INSERT INTO bodies (body_id, tenant_id, salt, commitment, digest, size_bytes, content)
    SELECT output_body_id, tenant_id, output_salt, output_commitment, output_digest, output_bytes,
        output_content
    FROM won WHERE output_content IS NOT NULL
    UNION ALL
    SELECT log_body_id, tenant_id, log_salt, log_commitment, log_digest, log_bytes, log_content
    FROM won WHERE log_content IS NOT NULL{recording_body}
{use_bodies}
), ended_attempt AS (
    UPDATE attempts a SET state = 'finished', receipt_id = w.receipt_id, reason = w.reason,
        started_at = coalesce(a.started_at, w.started_at), ended_at = now()
    FROM won w WHERE a.execution_id = w.execution_id AND a.fencing_token = w.fencing_token
    RETURNING a.*
), changed AS (
    UPDATE executions e SET
        state = CASE WHEN w.requeued THEN 'pending' ELSE w.end_state END,
        pending_reason = CASE WHEN w.requeued THEN '{PendingReason.RETRYING}' ELSE '' END,
        claimable_at = CASE WHEN w.requeued THEN now() + {_BACKOFF} END,
        excluded_nodes = CASE WHEN w.requeued AND NOT w.node_id = ANY(e.excluded_nodes)
            THEN e.excluded_nodes || w.node_id ELSE e.excluded_nodes END,
        reason = CASE WHEN w.requeued THEN e.reason
            WHEN w.cancel_requested AND w.stopped
                THEN coalesce(w.cancel_reason, '{EndReason.CANCEL_REQUESTED}')
            WHEN NOT w.counts THEN '{EndReason.RETRY_UNSAFE}'
            ELSE w.reason END,
        exit_code = CASE WHEN NOT w.requeued THEN w.exit_code END,
        limit_name = CASE WHEN NOT w.requeued THEN w.limit_name END,
        trap = CASE WHEN NOT w.requeued THEN w.trap END,
        resources_used = CASE WHEN NOT w.requeued THEN w.resources_used END,
        receipt_id = CASE WHEN NOT w.requeued THEN w.receipt_id END,
        output_body_id = CASE WHEN NOT w.requeued THEN w.output_body_id END,
        output_commitment = CASE WHEN NOT w.requeued THEN w.output_commitment END,
        output_bytes = CASE WHEN NOT w.requeued THEN w.output_bytes END,
        log_body_id = CASE WHEN NOT w.requeued THEN w.log_body_id END,
        log_bytes = CASE WHEN NOT w.requeued THEN w.log_bytes END,{set_recording}
        started_at = CASE WHEN NOT w.requeued THEN coalesce(e.started_at, w.started_at) END,
        ended_at = CASE WHEN NOT w.requeued THEN now() END
    FROM won w WHERE e.execution_id = w.execution_id
    RETURNING {_RETURNED}
), new_batch AS (
    INSERT INTO order_batches (batch_id, envelope, key_id)
    SELECT DISTINCT ON (batch_id) batch_id, batch_envelope, batch_key_id FROM item
    WHERE batch_id IS NOT NULL ORDER BY batch_id
    ON CONFLICT DO NOTHING
), moved_head AS (
    UPDATE nodes d SET last_sequence = t.sequence, last_hash = t.hash
    FROM (SELECT DISTINCT ON (node_id) node_id, sequence, hash FROM fresh ORDER BY node_id, sequence DESC) t
    WHERE d.node_id = t.node_id AND d.last_sequence < t.sequence
), new_audit_entry AS (
    INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
    SELECT audit_entry_id, tenant_id, 'node:' || node_id,
        CASE WHEN NOT decides THEN 'receipt.late' WHEN requeued THEN 'attempt.rejected'
            ELSE 'execution.' || end_state END,
        execution_id,
        jsonb_strip_nulls(jsonb_build_object(
            'receipt_id', receipt_id, 'order_id', order_id, 'fencing_token', fencing_token,
            'exit_code', exit_code, 'limit', limit_name, 'trap', trap, 'reason', reason))
    FROM fresh
)
SELECT i.n, m.n IS NOT NULL AS order_matches, m.bodies_there, f.decides, a.attempt_number,
    a.node_id AS ran_on, a.boot_id, a.order_id, a.leased_at, a.lease_expires_at,
    a.started_at AS attempt_started_at,
    a.ended_at AS attempt_ended_at, a.reason AS attempt_reason, a.receipt_id AS attempt_receipt_id,
    a.unsafe_call_at, {_RETURNED}
FROM item i
LEFT JOIN matched m ON m.n = i.n
LEFT JOIN fresh f ON f.n = i.n
LEFT JOIN changed e ON f.decides AND e.execution_id = i.execution_id
LEFT JOIN ended_attempt a ON f.decides AND a.execution_id = i.execution_id
    AND a.fencing_token = i.fencing_token
"""  # noqa: S608 - names of our own; values are parameters


FINISH: Final = _statement(bodies_there="true", use_bodies="")
"""For groups whose bodies all come inline: nearly every one, and the shorter statement costs less."""

FINISH_UPLOADED: Final = _statement(
    bodies_there=_uploaded_there("output", "log"), use_bodies=_use_uploaded("output", "log")
)
"""For groups with an output or a log that was uploaded before."""

FINISH_RECORDED: Final = _statement(
    bodies_there=_uploaded_there("output", "log", "recording"),
    use_bodies=_use_uploaded("output", "log", "recording"),
    columns=(*_COLUMNS, *_RECORDING_COLUMNS),
    recording_body=_RECORDING_BODY,
    set_recording=_SET_RECORDING,
)
"""For groups with a recording of host calls, all bodies uploaded or not."""

STORED_RECEIPTS: Final = """
SELECT i.n, r.receipt_id, r.hash, r.accepted, r.tenant_id
FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS i (node_id, sequence, n)
LEFT JOIN LATERAL (
    SELECT * FROM receipts WHERE node_id = i.node_id AND sequence = i.sequence ORDER BY received_at LIMIT 1
) r ON true
ORDER BY i.n
"""
"""What is stored already under the sequences that the statement above did not insert."""


def finish_statement(results: Sequence[AttemptResult]) -> str:
    """Return the statement that these results need."""
    if _any_recorded(results):
        return FINISH_RECORDED
    uploaded = any(body.content is None for result in results for body in result.bodies)
    return FINISH_UPLOADED if uploaded else FINISH


def finish_arguments(results: Sequence[AttemptResult]) -> list[Sequence[Any]]:
    """Return the arrays of the statement, one value per result and column."""
    rows: Iterable[tuple[Any, ...]] = map(_values, results)
    if _any_recorded(results):
        rows = ((*row, *_body_values(result.recording)) for row, result in zip(rows, results, strict=True))
    return list(zip(*rows, strict=True))


def _any_recorded(results: Sequence[AttemptResult]) -> bool:
    return any(result.recording is not None for result in results)


def in_rounds(results: Sequence[AttemptResult]) -> list[list[int]]:
    """Return the places of results in rounds that name each attempt once: the statement decides it once.

    Nearly always there is one round; a second receipt for an attempt waits for the next.
    """
    rounds: list[list[int]] = []
    seen: Counter[tuple[str, int]] = Counter()
    for n in sorted(range(len(results)), key=lambda n: results[n].sequence):
        attempt = (results[n].execution_id, results[n].fencing_token)
        if seen[attempt] == len(rounds):
            rounds.append([])
        rounds[seen[attempt]].append(n)
        seen[attempt] += 1
    return rounds


def _values(result: AttemptResult) -> tuple[Any, ...]:
    return (
        result.receipt_id,
        result.audit_entry_id,
        result.node_id,
        result.sequence,
        result.hash,
        result.order_id,
        result.order_digest,
        result.execution_id,
        result.fencing_token,
        result.envelope,
        str(result.outcome),
        result.exit_code,
        result.limit,
        result.trap,
        result.reason,
        result.counts,
        resources_bytes(result.resources_used),
        *_body_values(result.output),
        *_body_values(result.log),
        result.started_at,
        *(
            (None,) * 3
            if result.batch is None
            else (result.batch.batch_id, result.batch.envelope, result.batch.key_id)
        ),
    )


def _body_values(body: StoredBody | None) -> tuple[Any, ...]:
    if body is None:
        return (None,) * 6
    return (body.body_id, body.salt, body.commitment, body.digest, body.size_bytes, body.stored)

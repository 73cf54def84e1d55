"""The statements of values that agents keep. Text and arrays only.

Writes of one agent are settled under the lock of its row in `agents`, whose sums spare counting; a fresh
statement after the lock sees what its last holder has committed.
"""

from typing import Final

READ: Final = """
SELECT i.n, e.execution_id IS NOT NULL AS held, e.capabilities, k.value
FROM unnest($1::text[], $2::text[], $3::integer[], $4::bigint[], $5::text[]) WITH ORDINALITY
    AS i (node_id, execution_id, attempt_number, fencing_token, key, n)
LEFT JOIN attempts a ON a.execution_id = i.execution_id AND a.fencing_token = i.fencing_token
    AND a.attempt_number = i.attempt_number AND a.node_id = i.node_id
    AND a.state IN ('leased', 'running') AND a.lease_expires_at > now()
LEFT JOIN executions e ON e.execution_id = a.execution_id
LEFT JOIN kv_entries k ON k.tenant_id = e.tenant_id AND k.agent_id = e.agent_id AND k.key = i.key
ORDER BY i.n
"""

LOCK_DECIDED: Final = """
SELECT i.n, e.tenant_id, e.agent_id, e.capabilities,
    a.order_id = i.order_id AND a.order_digest = i.order_digest AND a.node_id = i.node_id
        AND a.state <> 'finished' AND e.fencing_token = i.fencing_token AND e.state IN ('pending', 'running')
        AND NOT receipt_is_stored(i.node_id, i.sequence) AS decides
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[]) WITH ORDINALITY
    AS i (execution_id, fencing_token, order_id, order_digest, node_id, sequence, n)
JOIN executions e ON e.execution_id = i.execution_id
JOIN attempts a ON a.execution_id = i.execution_id AND a.fencing_token = i.fencing_token
ORDER BY e.execution_id, a.fencing_token
FOR UPDATE OF e, a
"""
"""Locks what finishing will lock, in the same order, and says which receipts will decide their execution."""

LOCK_AGENTS: Final = """
SELECT agent_id, kv_keys, kv_bytes FROM agents
WHERE agent_id = ANY($1::text[]) AND deleted_at IS NULL
ORDER BY agent_id FOR NO KEY UPDATE
"""

SIZES: Final = """
SELECT k.agent_id, k.key, k.size_bytes
FROM unnest($1::text[], $2::text[], $3::text[]) AS i (tenant_id, agent_id, key)
JOIN kv_entries k ON k.tenant_id = i.tenant_id AND k.agent_id = i.agent_id AND k.key = i.key
"""

WRITE: Final = """
WITH item AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::text[])
        AS i (tenant_id, agent_id, key, value, size_bytes, written_by)
), gone AS (
    DELETE FROM kv_entries k USING item i
    WHERE i.value IS NULL AND k.tenant_id = i.tenant_id AND k.agent_id = i.agent_id AND k.key = i.key
), sums AS (
    UPDATE agents a SET kv_keys = s.keys, kv_bytes = s.size_bytes
    FROM unnest($7::text[], $8::integer[], $9::bigint[]) AS s (agent_id, keys, size_bytes)
    WHERE a.agent_id = s.agent_id
)
INSERT INTO kv_entries (tenant_id, agent_id, key, value, size_bytes, written_by)
SELECT tenant_id, agent_id, key, value, size_bytes, written_by FROM item WHERE value IS NOT NULL
ON CONFLICT (tenant_id, agent_id, key) DO UPDATE SET value = excluded.value,
    size_bytes = excluded.size_bytes, written_by = excluded.written_by, updated_at = now()
"""

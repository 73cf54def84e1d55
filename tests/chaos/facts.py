"""What the database and the spools of the nodes say after a fault, as plain values. Judges nothing."""

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from data_plane.receipts.spool import Spool
from data_plane.settings import GIBIBYTE
from shared.digests import digest_to_raw
from shared.key_files import read_private_key
from shared.merkle import HASH_BYTES
from shared.orders import VerifiedOrderRoot, verify_batch, verify_order_inclusion
from shared.receipt_codec import verify_receipt
from shared.signatures import PublicKey
from tests.chaos.world import ChaosNode, World

ENDED_STATES = frozenset(
    {"succeeded", "failed", "trapped", "killed", "rejected", "cancelled", "expired", "lost"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFact:
    """One row of executions."""

    execution_id: str
    request_id: str
    state: str
    fencing_token: int
    receipt_id: str | None
    ended_at: datetime | None
    endings: int = 1
    """Audit entries that say that it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFact:
    """One row of attempts."""

    execution_id: str
    fencing_token: int
    node_id: str
    state: str
    receipt_id: str | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptFact:
    """One row of receipts."""

    receipt_id: str
    node_id: str
    sequence: int
    hash: bytes
    execution_id: str
    fencing_token: int
    accepted: bool
    outcome: str
    """What the node signed."""
    previous: bytes | None
    """Hash of the receipt before, as the node signed it."""
    order_is_signed: bool = True
    """Whether a signature of the order key is on record that covers the stored order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFact:
    """The newest receipt that a node itself has on its disk."""

    node_id: str
    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the judge looks at beside the client's ledger."""

    executions: tuple[ExecutionFact, ...]
    attempts: tuple[AttemptFact, ...]
    receipts: tuple[ReceiptFact, ...]
    spools: tuple[SpoolFact, ...]


_EXECUTIONS = """
SELECT e.execution_id, k.request_id, e.state, e.fencing_token, e.receipt_id, e.ended_at,
       (SELECT count(*) FROM audit_entries a
        WHERE a.tenant_id = e.tenant_id AND a.subject = e.execution_id
          AND a.action = ANY ($1::text[]))::int AS endings
FROM idempotency_keys k LEFT JOIN executions e USING (execution_id)
"""
_ATTEMPTS = """
SELECT execution_id, fencing_token, node_id, state, receipt_id, ended_at FROM attempts
"""
_RECEIPTS = """
SELECT r.receipt_id, r.node_id, r.sequence, r.hash, r.execution_id, r.fencing_token, r.accepted, r.envelope,
    n.receipt_public_key, o.content, o.leaf_index, o.proof, b.envelope AS order_envelope
FROM receipts r JOIN nodes n USING (node_id) LEFT JOIN orders o USING (order_id)
LEFT JOIN order_batches b USING (batch_id)
"""
_OPEN = "SELECT count(*) FROM executions WHERE state IN ('pending', 'running')"


async def open_executions(world: World) -> int:
    """Return how many executions have not ended."""
    async with world.sql() as sql:
        return int(await sql.fetchval(_OPEN))


async def read_facts(world: World) -> Facts:
    """Read everything. The nodes must have stopped: their spools are opened."""
    async with world.sql() as sql:
        executions = await _rows(sql, _EXECUTIONS, [f"execution.{state}" for state in ENDED_STATES])
        attempts, receipts = await _rows(sql, _ATTEMPTS), await _rows(sql, _RECEIPTS)
    order_key = read_private_key(world.paths.order_key).public
    return Facts(
        executions=tuple(ExecutionFact(**row) for row in executions if row["execution_id"] is not None),
        attempts=tuple(AttemptFact(**row) for row in attempts),
        receipts=tuple(_receipt(order_key, **row) for row in receipts),
        spools=tuple([await _spool(node) for node in world.nodes]),
    )


async def _rows(sql: Any, query: str, *values: object) -> list[Any]:
    return list(await sql.fetch(query, *values))


def _receipt(
    order_key: PublicKey,
    *,
    envelope: bytes,
    receipt_public_key: bytes,
    content: bytes,
    leaf_index: int,
    proof: bytes,
    order_envelope: bytes | None,
    **row: Any,
) -> ReceiptFact:
    """Verify a receipt as anybody outside could; raises VerificationError when it is none of its node's."""
    key = PublicKey.from_spki_der(receipt_public_key)
    said = verify_receipt(envelope, node_id=row["node_id"], node_key=key).predicate
    previous = None if said.previous is None else digest_to_raw(said.previous)
    if order_envelope is not None:
        root = _root(order_key, order_envelope, installation=said.installation)
        path = [proof[at : at + HASH_BYTES] for at in range(0, len(proof), HASH_BYTES)]
        verify_order_inclusion(content, index=leaf_index, path=path, verified_root=root)
    return ReceiptFact(
        **row, outcome=said.outcome, previous=previous, order_is_signed=order_envelope is not None
    )


@cache
def _root(order_key: PublicKey, envelope: bytes, *, installation: str) -> VerifiedOrderRoot:
    return verify_batch(
        envelope, keys={order_key.key_id: order_key}, installation=installation, minimum_epoch=1
    )


async def _spool(node: ChaosNode) -> SpoolFact:
    spool = Spool.open(node.paths.spool, bound_bytes=GIBIBYTE)
    await spool.close()
    return SpoolFact(node_id=node.node_id, sequence=spool.head.sequence, hash=spool.head.hash)

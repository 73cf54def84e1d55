"""What the database and the spools of the nodes say after a fault, as plain values. Judges nothing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from data_plane.receipts.spool import Spool
from data_plane.settings import GIBIBYTE
from shared.digests import digest_to_raw
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
SELECT receipt_id, node_id, sequence, hash, execution_id, fencing_token, accepted, envelope, receipt_public_key
FROM receipts JOIN nodes USING (node_id)
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
    return Facts(
        executions=tuple(ExecutionFact(**row) for row in executions if row["execution_id"] is not None),
        attempts=tuple(AttemptFact(**row) for row in attempts),
        receipts=tuple(_receipt(**row) for row in receipts),
        spools=tuple([await _spool(node) for node in world.nodes]),
    )


async def _rows(sql: Any, query: str, *values: object) -> list[Any]:
    return list(await sql.fetch(query, *values))


def _receipt(*, envelope: bytes, receipt_public_key: bytes, **row: Any) -> ReceiptFact:
    """Verify a receipt as anybody outside could; raises VerificationError when it is none of its node's."""
    key = PublicKey.from_spki_der(receipt_public_key)
    said = verify_receipt(envelope, node_id=row["node_id"], node_key=key).predicate
    previous = None if said.previous is None else digest_to_raw(said.previous)
    return ReceiptFact(**row, outcome=said.outcome, previous=previous)


async def _spool(node: ChaosNode) -> SpoolFact:
    spool = Spool.open(node.paths.spool, bound_bytes=GIBIBYTE)
    await spool.close()
    return SpoolFact(node_id=node.node_id, sequence=spool.head.sequence, hash=spool.head.hash)

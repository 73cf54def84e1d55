"""The receipt: a node's signed report of one order's outcome, as an in-toto statement. Pure.

Owns its format and the checks that need nothing but the receipt, the node's key and the order that it
answers. The spool that numbers and keeps receipts is the node's; what an accepted one changes is the control
plane's.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from shared.canonical import MAX_SAFE_INTEGER
from shared.digests import Digest, digest_from_raw
from shared.errors import InvalidInputError, ReceiptInvalidError, RejectionReason
from shared.ids import BootId, ExecutionId, NodeId, OrderId
from shared.outcomes import LimitName, Outcome

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://agentfactory.dev/receipt/v1"
MAX_RECEIPT_ENVELOPE_BYTES: Final = 64 * 1024
MAX_DETAIL_CHARS: Final = 512

NODE_OUTCOMES: Final = frozenset(
    {
        Outcome.SUCCEEDED,
        Outcome.FAILED,
        Outcome.TRAPPED,
        Outcome.KILLED,
        Outcome.REJECTED,
        Outcome.CANCELLED,
    }
)
"""What a node can report; expired and lost are said by the control plane about nodes that did not report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptIdentity:
    """Which attempt a receipt is about."""

    order_id: OrderId
    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """The engine that ran the module."""

    name: str
    version: str
    config_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesUsed:
    """What one run used, as its worker measured it."""

    wall: timedelta = timedelta(0)
    cpu: timedelta = timedelta(0)
    """CPU time of the guest thread. Both are kept to the microsecond."""
    peak_memory_bytes: int = 0
    output_bytes: int = 0
    log_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Which numbered check refused the order, and why."""

    check: int
    reason: RejectionReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPredicate:
    """All that a node says about one order. Which fields go with which outcome: `check_predicate`."""

    installation: str
    node_id: NodeId
    boot_id: BootId
    sequence: int
    """1 for a node's first receipt, then without a gap."""
    previous: Digest | None
    """SHA-256 of the envelope of the receipt before; None for the first."""
    order_digest: Digest
    attempt: AttemptIdentity | None
    """None only when the order was refused before it could be believed."""
    template_digest: Digest | None = None
    module_digest: Digest | None = None
    input_commitment: Digest | None = None
    output_commitment: Digest | None = None
    log_commitment: Digest | None = None
    outcome: Outcome
    exit_code: int | None = None
    limit: LimitName | None = None
    trap: str | None = None
    rejection: Rejection | None = None
    resources: ResourcesUsed = ResourcesUsed()
    engine: EngineIdentity | None = None
    received_at: datetime
    started_at: datetime | None = None
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedReceipt:
    """What the control plane stored about the order that a receipt claims to answer."""

    installation: str
    node_id: NodeId
    boot_id: BootId
    order_digest: Digest
    attempt: AttemptIdentity
    template_digest: Digest
    module_digest: Digest
    input_commitment: Digest


def receipt_hash(envelope: bytes) -> Digest:
    """Return the hash by which the next receipt names this one: SHA-256 of the envelope's exact bytes."""
    return digest_from_raw(hashlib.sha256(envelope).digest())


def check_predicate(predicate: ReceiptPredicate) -> None:
    """Refuse a predicate that contradicts itself, at both ends.

    1. The outcome is one that a node can report.
    2. The first receipt has no predecessor, every later one has.
    3. Exit code goes with succeeded (0) and failed (not 0), limit with killed, trap with trapped, rejection
    with
       rejected, and with nothing else.
    4. Whatever ran names attempt, template, module, input, engine and start. A rejection names no output.
    5. Output and log that were committed to belong to something that ran.
    6. Times are aware and in order: received, started, finished.

    Raises:
        ReceiptInvalidError: One of them does not hold.
    """
    outcome, ran = predicate.outcome, predicate.outcome is not Outcome.REJECTED
    if outcome not in NODE_OUTCOMES:
        raise ReceiptInvalidError(f"check 1: a node cannot report outcome {outcome}")
    if not 1 <= predicate.sequence <= MAX_SAFE_INTEGER or (predicate.sequence == 1) != (
        predicate.previous is None
    ):
        raise ReceiptInvalidError(f"check 2: receipt {predicate.sequence} and its predecessor do not fit")
    _check_companions(predicate)
    started = predicate.started_at
    needed = (
        predicate.attempt,
        predicate.template_digest,
        predicate.module_digest,
        predicate.input_commitment,
    )
    if ran and outcome is not Outcome.CANCELLED and None in (*needed, predicate.engine, started):
        raise ReceiptInvalidError(f"check 4: a receipt of outcome {outcome} lacks what ran")
    if ran and None in needed:
        raise ReceiptInvalidError(f"check 4: a receipt of outcome {outcome} lacks what it is about")
    if started is None and (predicate.output_commitment or predicate.log_commitment):
        raise ReceiptInvalidError("check 5: output or log of something that did not start")
    _check_times(predicate)


def _check_companions(predicate: ReceiptPredicate) -> None:
    outcome, exit_code = predicate.outcome, predicate.exit_code
    fits = {
        "exit_code": (exit_code is not None) == (outcome in {Outcome.SUCCEEDED, Outcome.FAILED})
        and (exit_code == 0 if outcome is Outcome.SUCCEEDED else exit_code != 0),
        "limit": (predicate.limit is not None) == (outcome is Outcome.KILLED),
        "trap": (predicate.trap is not None) == (outcome is Outcome.TRAPPED),
        "rejection": (predicate.rejection is not None) == (outcome is Outcome.REJECTED),
    }
    for name, fit in fits.items():
        if not fit:
            raise ReceiptInvalidError(f"check 3: field {name!r} does not go with outcome {outcome}")


def _check_times(predicate: ReceiptPredicate) -> None:
    times = [predicate.received_at, predicate.started_at, predicate.finished_at]
    known = [at for at in times if at is not None]
    if any(at.tzinfo is None for at in known):
        raise ReceiptInvalidError("check 6: a time in the receipt is naive")
    if known != sorted(known):
        raise ReceiptInvalidError("check 6: the receipt's times run backwards")


def check_matches(predicate: ReceiptPredicate, expected: ExpectedReceipt) -> None:
    """Return if, and only if, a verified receipt answers exactly the order that was sent.

    1. Installation, node and boot are those of the order.
    2. The order's digest is the stored one.
    3. The attempt (order, execution, number, fencing token) is the stored one, if it is named.
    4. Template, module and input are the ordered ones, if they are named.

    `verify_receipt` has made sure that only a rejection may leave them out.

    Raises:
        ReceiptInvalidError: One of them does not hold.
    """
    said = (predicate.installation, predicate.node_id, predicate.boot_id)
    if said != (expected.installation, expected.node_id, expected.boot_id):
        raise ReceiptInvalidError(f"check 1: receipt is by node {predicate.node_id} boot {predicate.boot_id}")
    if predicate.order_digest != expected.order_digest:
        raise ReceiptInvalidError(f"check 2: receipt answers order {predicate.order_digest}")
    if predicate.attempt not in {None, expected.attempt}:
        raise ReceiptInvalidError(f"check 3: receipt is about attempt {predicate.attempt}")
    pairs = {
        "template_digest": (predicate.template_digest, expected.template_digest),
        "module_digest": (predicate.module_digest, expected.module_digest),
        "input_commitment": (predicate.input_commitment, expected.input_commitment),
    }
    for name, (found, ordered) in pairs.items():
        if found not in {None, ordered}:
            raise ReceiptInvalidError(f"check 4: {name} is {found}, ordered was {ordered}")


def check_follows(predicate: ReceiptPredicate, *, last_sequence: int, last_hash: Digest | None) -> None:
    """Return if, and only if, this receipt is the next one of its node's chain.

    Raises:
        ReceiptInvalidError: Its number is not the next, or it names another predecessor.
    """
    if (last_sequence == 0) != (last_hash is None):
        raise InvalidInputError(f"a chain at {last_sequence} cannot have hash {last_hash}")
    if predicate.sequence != last_sequence + 1:
        raise ReceiptInvalidError(f"receipt {predicate.sequence} does not follow {last_sequence}")
    if predicate.previous != last_hash:
        raise ReceiptInvalidError(f"receipt {predicate.sequence} names another predecessor than {last_hash}")

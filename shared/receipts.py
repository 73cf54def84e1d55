"""The receipt: a node's signed report of one order's outcome, as an in-toto statement. Pure.

Owns its format and the checks that need nothing but the receipt, the node's key and the order that it
answers. The spool that numbers and keeps receipts is the node's; what an accepted one changes is the control
plane's.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

from shared.canonical import MAX_SAFE_INTEGER
from shared.digests import Digest, digest_from_raw
from shared.errors import InvalidInputError, ReceiptInvalidError, RejectionReason
from shared.ids import BootId, ExecutionId, NodeId, OrderId
from shared.orders import LLM_ORDER_FORMAT, ORDER_FORMAT
from shared.outcomes import LimitName, Outcome
from shared.resources import NO_RESOURCES, ResourcesUsed

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://agentfactory.dev/receipt/v2"
LLM_PREDICATE_TYPE: Final = "https://agentfactory.dev/receipt/v3"
"""Of what answers an order that grants language models: it names tokens and cost."""
OLDER_PREDICATE_TYPE: Final = "https://agentfactory.dev/receipt/v1"
"""Without what came with host calls; answers orders of the older format, and what was never believed."""
PREDICATE_TYPES: Final = frozenset({LLM_PREDICATE_TYPE, PREDICATE_TYPE, OLDER_PREDICATE_TYPE})

MAX_RECEIPT_ENVELOPE_BYTES: Final = 64 * 1024
MAX_DETAIL_CHARS: Final = 512
MAX_RECORDING_BYTES: Final = 4 * 1024 * 1024
"""What a run's host calls leave behind; nodes deny further ones before it is more."""
MAX_DENIALS: Final = 16
DENIAL_WORD: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}")
OTHER: Final = "other"
"""Method and reason of the denials beyond the first 15 of different ones."""

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
EXITED: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED})
"""What a guest ended itself."""
LATER_LIMIT_NAMES: Final = frozenset(
    {LimitName.FUEL, LimitName.HOST_CALLS, LimitName.HOST_CALL_BYTES, LimitName.HOST_CALL_MS}
)
"""Limits that version 1 of receipts has no word for."""


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
class Rejection:
    """Which numbered check refused the order, and why."""

    check: int
    reason: RejectionReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Host calls that were denied for one reason."""

    method: str
    """Of a method that nobody knows: a word of the node's own, never the guest's text."""
    reason: str
    count: int = 1

    @property
    def kind(self) -> tuple[str, str]:
        return self.method, self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPredicate:
    """All that a node says about one order. Which fields go with which outcome: `check_predicate`."""

    type: str = PREDICATE_TYPE
    """One of `PREDICATE_TYPES`; `predicate_type_for` says which answers what."""
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
    recording_commitment: Digest | None = None
    """Of what the guest's host calls asked and were answered."""
    kv_writes_digest: Digest | None = None
    """SHA-256 of the deterministic encoding of `KvWrites`; None: nothing was written."""
    denials: tuple[Denial, ...] = ()
    """Merged by `merge_denials`."""
    outcome: Outcome
    exit_code: int | None = None
    limit: LimitName | None = None
    trap: str | None = None
    rejection: Rejection | None = None
    resources: ResourcesUsed = NO_RESOURCES
    engine: EngineIdentity | None = None
    received_at: datetime
    started_at: datetime | None = None
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedReceipt:
    """What the control plane stored about the order that a receipt claims to answer."""

    type: str
    """`predicate_type_for` its format."""
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


def predicate_type_for(order_format: str | None) -> str:
    """Return the type of the receipt that answers an order of a format; None: it was never believed."""
    types = {LLM_ORDER_FORMAT: LLM_PREDICATE_TYPE, ORDER_FORMAT: PREDICATE_TYPE}
    return types.get(order_format or "", OLDER_PREDICATE_TYPE)


def merge_denials(denials: Iterable[Denial]) -> tuple[Denial, ...]:
    """Return denials as receipts carry them: one of each method and reason, at most 16, in their order.

    A guest may be denied in more ways than that: the first 15 ways are kept, all others are counted as one.
    """
    counts: dict[tuple[str, str], int] = {}
    rest = 0
    for denial in denials:
        if denial.kind == (OTHER, OTHER):
            rest += denial.count  # of an earlier merge: it takes the place of no other
        elif denial.kind in counts or len(counts) < MAX_DENIALS - 1:
            counts[denial.kind] = counts.get(denial.kind, 0) + denial.count
        else:
            rest += denial.count
    if rest:
        counts[OTHER, OTHER] = rest
    return tuple(
        Denial(method=kind[0], reason=kind[1], count=count) for kind, count in sorted(counts.items())
    )


def check_predicate(predicate: ReceiptPredicate) -> None:
    """Refuse a predicate that contradicts itself, at both ends.

    1. The outcome is one that a node can report.
    2. The first receipt has no predecessor, every later one has.
    3. Exit code goes with succeeded (0) and failed (not 0), limit with killed, trap with trapped, rejection
    with
       rejected, and with nothing else.
    4. Whatever ran names attempt, template, module, input, engine and start. A rejection names no output.
    5. Output, log, recording, writes and denials belong to something that ran, writes to what ended itself.
    6. Times are aware and in order: received, started, finished.
    7. Version 1 says nothing that came later, and only version 3 tells of language models.
    8. At most 16 denials, different ones, in the order of method and reason, each of words and a number.

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
    if started is None and any((predicate.output_commitment, predicate.log_commitment, *_later(predicate))):
        raise ReceiptInvalidError("check 5: output or log of something that did not start")
    if predicate.kv_writes_digest is not None and outcome not in EXITED:
        raise ReceiptInvalidError(f"check 5: writes of something whose outcome is {outcome}")
    _check_times(predicate)
    _check_version(predicate)
    _check_denials(predicate.denials)


def _later(predicate: ReceiptPredicate) -> tuple[object, ...]:
    return predicate.recording_commitment, predicate.kv_writes_digest, predicate.denials


def _check_version(predicate: ReceiptPredicate) -> None:
    if predicate.type not in PREDICATE_TYPES:
        raise ReceiptInvalidError(f"check 7: receipt is of type {predicate.type[:80]!r}")
    used = predicate.resources
    if predicate.type == LLM_PREDICATE_TYPE:
        return
    if used != used.without_llm:
        raise ReceiptInvalidError("check 7: tokens of language models are of receipts of version 3")
    if predicate.type == PREDICATE_TYPE:
        return
    if any(_later(predicate)) or predicate.limit in LATER_LIMIT_NAMES or used != used.first_ones:
        raise ReceiptInvalidError("check 7: receipt of version 1 says what came later")


def _check_denials(denials: tuple[Denial, ...]) -> None:
    if not isinstance(denials, tuple) or len(denials) > MAX_DENIALS:
        raise ReceiptInvalidError(f"check 8: denials are not up to {MAX_DENIALS} ones")
    for denial in denials:
        words = all(DENIAL_WORD.fullmatch(word) for word in denial.kind)
        if not words or type(denial.count) is not int or not 1 <= denial.count <= MAX_SAFE_INTEGER:
            raise ReceiptInvalidError(f"check 8: a denial of {denial.method[:64]!r} is malformed")
    if any(before.kind >= after.kind for before, after in pairwise(denials)):
        raise ReceiptInvalidError("check 8: denials are not different ones in their order")


def _check_companions(predicate: ReceiptPredicate) -> None:
    outcome, exit_code = predicate.outcome, predicate.exit_code
    fits = {
        "exit_code": (exit_code is not None) == (outcome in EXITED)
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
    5. It is of the version that goes with the order, once the order was believed: nothing that happened is
       left unsaid for want of words.

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
    if predicate.attempt is not None and predicate.type != expected.type:
        raise ReceiptInvalidError(f"check 5: receipt is of {predicate.type}, due is {expected.type}")


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

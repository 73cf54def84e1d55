"""Turns what happened to an order into a signed receipt in the spool. Decides nothing about what happened."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from data_plane.host_calls.domain import NO_CALLS, CallSummary
from data_plane.host_calls.kv import encode_writes
from data_plane.orders.domain import attempt_of
from data_plane.orders.verifier import NodeFacts
from data_plane.receipts.domain import Body, SpooledReceipt, SpoolHead
from data_plane.receipts.ports import ReceiptDraft, ReceiptSpool, Reservation
from data_plane.sandbox.domain import RunResult
from shared.clock import Random
from shared.digests import SALT_BYTES, Digest, digest_from_raw, sha256_digest
from shared.dsse import IN_TOTO_TYPE, encode_envelope, envelope_of, pae
from shared.errors import OrderRejectedError
from shared.orders import Order
from shared.outcomes import Outcome
from shared.receipt_codec import encode_readable_receipt
from shared.receipts import (
    EXITED,
    LATER_LIMIT_NAMES,
    MAX_DETAIL_CHARS,
    OLDER_PREDICATE_TYPE,
    AttemptIdentity,
    EngineIdentity,
    ReceiptPredicate,
    Rejection,
    merge_denials,
    predicate_type_for,
)
from shared.resources import NO_RESOURCES
from shared.signatures import PrivateKey, Signature

_HEAD_DOMAIN: Final = b"agentfactory-spool-head-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened to one order, without its place in the chain."""

    order_digest: Digest
    order: Order | None
    """None: refused before it could be believed, so nothing in it is repeated."""
    outcome: Outcome
    received_at: datetime
    started_at: datetime | None = None
    finished_at: datetime
    result: RunResult | None = field(default=None, repr=False)
    """What the sandbox said, if anything ran to an end."""
    trap: str | None = None
    """Set when the outcome is trapped and the sandbox itself had no result."""
    rejection: Rejection | None = None
    order_envelope: bytes = field(default=b"", repr=False)
    """The signed root that the order came under, once the order was believed."""
    calls: CallSummary = field(default=NO_CALLS, repr=False)
    """What the run asked its node by `agentfactory.call`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What goes into the spool beside the receipt, which commits to it."""

    output: Body | None
    log: Body | None
    recording: Body | None
    kv_writes: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """Where the chain stands, signed by the node: what heartbeats carry, so that a missing tail shows."""

    head: SpoolHead
    signature: bytes


class ReceiptIssuer:
    """Signs with the node's receipt key; one per node."""

    def __init__(self, *, spool: ReceiptSpool, key: PrivateKey, facts: NodeFacts, random: Random) -> None:
        self._spool = spool
        self._key = key
        self._facts = facts
        self._random = random
        self._signed_head: SignedHead | None = None

    async def issue(self, report: Report, *, reservation: Reservation | None = None) -> SpooledReceipt:
        """Sign the report as the next receipt of this node; returns once it is on the disk.

        Raises:
            SpoolFullError, DiskFullError, SpoolCorruptError: As `ReceiptSpool.append`.
            InternalError: The report makes no receipt that a control plane could read.
        """
        kept = self._kept(report)

        def build(head: SpoolHead) -> bytes:
            return self._sign(_predicate(report, head, self._facts, kept))

        attempt = None if report.order is None else attempt_of(report.order)
        draft = ReceiptDraft(
            build=build,
            attempt=attempt,
            output=kept.output,
            log=kept.log,
            recording=kept.recording,
            kv_writes=kept.kv_writes,
            order_envelope=b"" if report.order is None else report.order_envelope,
            reservation=reservation,
        )
        return await self._spool.append(draft)

    def signed_head(self) -> SignedHead:
        """Return the chain's head as heartbeats carry it; signed once per head."""
        head = self._spool.head
        if self._signed_head is None or self._signed_head.head != head:
            facts = self._facts
            data = b"".join(
                (
                    _HEAD_DOMAIN,
                    facts.node_id.encode(),
                    facts.boot_id.encode(),
                    head.sequence.to_bytes(8, "big"),
                    head.hash,
                )
            )
            self._signed_head = SignedHead(head=head, signature=self._key.sign(data))
        return self._signed_head

    def _kept(self, report: Report) -> _Kept:
        result, calls = report.result, report.calls
        return _Kept(
            output=None if result is None else self._body(result.stdout),
            log=self._body(result.stderr) if result is not None and result.stderr else None,
            recording=self._body(calls.recording) if calls.recording else None,
            # What was stopped from outside has no writes: they are part of a result.
            kv_writes=encode_writes(calls.kv_writes) if report.outcome in EXITED else b"",
        )

    def _body(self, content: bytes) -> Body:
        return Body.of(content, self._random.token_bytes(SALT_BYTES))

    def _sign(self, predicate: ReceiptPredicate) -> bytes:
        payload = encode_readable_receipt(predicate)
        made = Signature(
            key_id=self._key.key_id, key_version=1, value=self._key.sign(pae(IN_TOTO_TYPE, payload))
        )
        return encode_envelope(envelope_of(IN_TOTO_TYPE, payload, [made]))


def rejection_of(error: OrderRejectedError) -> Rejection:
    """Return a failed check as receipts carry it."""
    return Rejection(
        check=error.check, reason=error.rejection, message=_printable(str(error))[:MAX_DETAIL_CHARS]
    )


def _predicate(report: Report, head: SpoolHead, facts: NodeFacts, kept: _Kept) -> ReceiptPredicate:
    order, result = report.order, report.result
    predicate = ReceiptPredicate(
        type=predicate_type_for(None if order is None else order.format),
        installation=facts.installation,
        node_id=facts.node_id,
        boot_id=facts.boot_id,
        sequence=head.sequence + 1,
        previous=digest_from_raw(head.hash) if head.sequence else None,
        order_digest=report.order_digest,
        attempt=None if order is None else _attempt(order),
        template_digest=None if order is None else order.template_digest,
        module_digest=None if order is None else order.module_digest,
        input_commitment=None if order is None else order.input_commitment,
        output_commitment=_commitment(kept.output),
        log_commitment=_commitment(kept.log),
        recording_commitment=_commitment(kept.recording),
        kv_writes_digest=sha256_digest(kept.kv_writes) if kept.kv_writes else None,
        denials=merge_denials(report.calls.denials),
        outcome=report.outcome,
        exit_code=result.exit_code if result is not None and report.outcome in EXITED else None,
        limit=None if result is None else result.limit,
        trap=_trap(report),
        rejection=report.rejection,
        resources=replace(
            NO_RESOURCES if result is None else result.resources,
            llm_tokens=report.calls.llm_tokens,
            llm_cost_micros=report.calls.llm_cost_micros,
        ),
        engine=_engine(report, facts),
        received_at=report.received_at,
        started_at=report.started_at,
        finished_at=report.finished_at,
    )
    return _older(predicate) if predicate.type == OLDER_PREDICATE_TYPE else predicate


def _older(predicate: ReceiptPredicate) -> ReceiptPredicate:
    """Return as much of it as version 1 can say; a limit that it has no word for is told as a trap."""
    older = replace(predicate, resources=predicate.resources.first_ones, denials=())
    if older.limit in LATER_LIMIT_NAMES:
        return replace(
            older, outcome=Outcome.TRAPPED, limit=None, trap=f"{older.limit}: the limit was passed"
        )
    return older


def _commitment(body: Body | None) -> Digest | None:
    return None if body is None else body.commitment


def _attempt(order: Order) -> AttemptIdentity:
    return AttemptIdentity(
        order_id=order.id,
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        fencing_token=order.fencing_token,
    )


def _engine(report: Report, facts: NodeFacts) -> EngineIdentity | None:
    """Return the engine that ran the order; of one that ran nowhere, the one that would have."""
    engine = facts.engines.get(report.order.profile) if report.order is not None else None
    if report.result is not None:
        engine = report.result.engine
    if engine is None:
        return None
    return EngineIdentity(
        name=engine.name, version=engine.version, config_digest=Digest(engine.config_digest)
    )


def _trap(report: Report) -> str | None:
    if report.result is None or report.result.trap is None:
        return report.trap
    trap = report.result.trap
    return _printable(f"{trap.name}: {trap.message}")[:MAX_DETAIL_CHARS]


def _printable(text: str) -> str:
    # A trap's message may quote the guest; a lone surrogate has no canonical JSON form, and a NUL none in
    # the databases that keep receipts.
    return "".join(char if char.isprintable() else "?" for char in text)

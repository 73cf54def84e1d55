"""Makes a receipt file of what `GetReceipt` answers. Verifies nothing: `shared.verification` does."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from agentfactory.v1 import audit_pb2, policy_pb2

from shared.canonical import parse_canonical
from shared.checkpoints import key_id, parse_checkpoint
from shared.decisions import GRANTING, DecisionResult
from shared.digests import parse_digest
from shared.dsse import decode_envelope
from shared.errors import MalformedError
from shared.fields import Fields
from shared.ids import AUDIT_ENTRY, DECISION, RECEIPT, KeyId, parse_id
from shared.keyset import KeyPurpose, Keyset, decode_keyset
from shared.order_codec import decode_order
from shared.receipt_file import (
    FiledDecision,
    FiledEntry,
    FiledLeaf,
    FiledLog,
    FiledOrder,
    ReceiptFile,
    keys_by_id,
)
from shared.signatures import PublicKey

if TYPE_CHECKING:
    from datetime import datetime

    from shared.limits import Limits


def file_of(answer: audit_pb2.GetReceiptResponse) -> ReceiptFile:
    """Return the answer as a file, with the keys that its signatures name.

    Raises:
        MalformedError, UnknownFieldError, UnsupportedVersionError: A part of it cannot be read.
    """
    if not answer.HasField("decision"):
        raise MalformedError("the control plane no longer has the decision that allowed the execution")
    order = FiledOrder(
        content=answer.order.order,
        batch=answer.order.batch_envelope,
        index=answer.order.index,
        path=tuple(answer.order.path),
    )
    templates = (answer.template_envelope, *answer.ancestor_envelopes)
    log = _log_of(answer) if answer.HasField("log") else None
    node_key = PublicKey.from_spki_der(answer.receipt_public_key)
    return ReceiptFile(
        receipt_id=parse_id(RECEIPT, answer.receipt_id),
        keyset=answer.keyset,
        order=order,
        templates=templates,
        decision=_decision_of(answer.decision, decode_order(order.content).limits),
        receipt=answer.envelope,
        node_key_id=node_key.key_id,
        log=log,
        keys=keys_by_id([node_key, *_signers(answer.keyset, order, templates, log)]),
    )


def is_complete(answer: audit_pb2.GetReceiptResponse) -> bool:
    """Return whether the log covers the receipt, and all that goes with it."""
    entries = (answer.submission, answer.enrollment)
    return answer.HasField("log") and all(entry.HasField("log") for entry in entries)


def is_cosigned(answer: audit_pb2.GetReceiptResponse, witnesses: Collection[str], quorum: int) -> bool:
    """Return whether so many of these sign its checkpoint; the signatures are not looked at."""
    if quorum == 0:
        return True
    lines = parse_checkpoint(answer.log.checkpoint).signatures
    return len({line.name for line in lines} & set(witnesses)) >= quorum


def _decision_of(said: policy_pb2.Decision, limits: "Limits") -> FiledDecision:
    # Limits are kept with the order alone: they are those that were granted, or the log's digest differs.
    result = DecisionResult(
        allowed=said.allowed,
        reason=said.reason,
        reasons=() if said.allowed else tuple(said.reasons),
        limits=limits if said.question in GRANTING else None,
    )
    return FiledDecision(
        decision_id=parse_id(DECISION, said.decision_id),
        question=said.question,
        policy_digest=parse_digest(said.policy_digest),
        input=said.input,
        result=result,
    )


def _log_of(answer: audit_pb2.GetReceiptResponse) -> FiledLog:
    return FiledLog(
        checkpoint=answer.log.checkpoint,
        receipt=_leaf_of(answer.log),
        submission=_entry_of(answer.submission),
        enrollment=_entry_of(answer.enrollment),
    )


def _leaf_of(log: audit_pb2.LogInclusion) -> FiledLeaf:
    return FiledLeaf(index=log.log_index, salt=log.salt, path=tuple(log.path))


def _entry_of(logged: audit_pb2.LoggedEntry) -> FiledEntry | None:
    if not logged.HasField("log"):
        return None
    entry = logged.audit_entry
    return FiledEntry(
        audit_entry_id=parse_id(AUDIT_ENTRY, entry.audit_entry_id),
        tenant_id=logged.tenant_id,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        result=entry.result,
        recorded_at=_time_of(entry),
        details=entry.details,
        leaf=_leaf_of(logged.log),
    )


def _time_of(entry: audit_pb2.AuditEntry) -> "datetime":
    from datetime import UTC

    return entry.recorded_at.ToDatetime(UTC)


def _signers(
    keyset: bytes, order: FiledOrder, templates: tuple[bytes, ...], log: FiledLog | None
) -> list[PublicKey]:
    """Return the keys of the keyset that the signatures name, as far as they count at the time of signing."""
    listed = decode_keyset(decode_envelope(keyset).payload)
    batch = decode_envelope(order.batch)
    issued_at = Fields(parse_canonical(batch.payload), "order root").time("issued_at")
    publishers = listed.keys_for(KeyPurpose.PUBLISHER, issued_at)
    order_keys = {one.key_id: one.key for one in listed.entries if one.purpose is KeyPurpose.ORDER}
    named = [order_keys.get(one.key_id) for one in batch.signatures]
    for template in templates:
        named += [publishers.get(KeyId(one.key_id)) for one in decode_envelope(template).signatures]
    if log is not None:
        named += _log_signers(listed, log.checkpoint)
    return [key for key in named if key is not None]


def _log_signers(listed: Keyset, checkpoint: bytes) -> list[PublicKey]:
    signed = parse_checkpoint(checkpoint)
    origin = signed.checkpoint.origin
    named = {line.key_id for line in signed.signatures if line.name == origin}
    keys = [one.key for one in listed.entries if one.purpose is KeyPurpose.LOG]
    return [key for key in keys if key_id(origin, key) in named]

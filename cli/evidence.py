"""Verifies, offline, what one execution left behind: keyset, order, template and receipt. Asks nobody.

Who uses it must still decide by other means that the root key is the right one, and that the node's receipt
key is the one that the node was enrolled with (the keyset lists no node keys).
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from shared.checkpoints import log_origin, parse_checkpoint, verify_log_signature
from shared.digests import Digest
from shared.errors import VerificationError
from shared.keyset import KeyPurpose, Keyset, verify_keyset
from shared.log_leaf import LeafKind, commitment
from shared.merkle import leaf_hash, verify_inclusion
from shared.order_codec import decode_order
from shared.orders import Order, VerifiedOrderRoot, verify_batch, verify_order_inclusion
from shared.packages import verify_manifest
from shared.receipt_codec import verify_receipt
from shared.receipts import (
    AttemptIdentity,
    ExpectedReceipt,
    ReceiptPredicate,
    check_matches,
    predicate_type_for,
)
from shared.signatures import PublicKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentfactory.v1 import audit_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One execution as it can be proved."""

    order: Order
    receipt: ReceiptPredicate
    keyset: Keyset
    order_digest: Digest
    receipt_hash: Digest
    signed_at: datetime
    checks: tuple[str, ...]
    """What held, one sentence a check, in order."""


def verify_evidence(answer: "audit_pb2.GetReceiptResponse", *, root_keys: "Sequence[PublicKey]") -> Evidence:
    """Return the evidence if, and only if, every check passes.

    1. The keyset is signed by a pinned root key.
    2. The batch's Merkle root is signed by an order key that the keyset lists as valid when it was signed.
    3. The exact bytes of the order are a leaf of that tree, and decode without unknown fields.
    4. The template is signed by a publisher of the keyset and is the one that the order names.
    5. The receipt is signed by the node's receipt key.
    6. The receipt answers exactly this order: installation, node, boot, attempt, template, module, input.
    7. If a checkpoint of the transparency log covers the receipt: it is signed by a log key that the keyset
       lists, and the receipt is a leaf below its root.

    Raises:
        VerificationError: A check failed; the message begins with what was being verified.
    """
    keyset = verify_keyset(answer.keyset, root_keys={key.key_id: key for key in root_keys}, minimum_version=1)
    root = _verify_root(answer.order.batch_envelope, keyset)
    digest = verify_order_inclusion(
        answer.order.order, index=answer.order.index, path=list(answer.order.path), verified_root=root
    )
    order = decode_order(answer.order.order)
    publishers = keyset.keys_for(KeyPurpose.PUBLISHER, root.issued_at)
    template = verify_manifest(answer.template_envelope, publisher_keys=publishers)
    if template.digest != order.template_digest:
        raise VerificationError(
            f"check 4: order names template {order.template_digest}, got {template.digest}"
        )
    node_key = PublicKey.from_spki_der(answer.receipt_public_key)
    receipt = verify_receipt(answer.envelope, node_id=order.node_id, node_key=node_key)
    check_matches(receipt.predicate, expected_of(order, digest))
    publisher = min(template.publisher_key_ids)
    logged = (_verify_log(answer, order=order, keyset=keyset),) if answer.HasField("log") else ()
    return Evidence(
        order=order,
        receipt=receipt.predicate,
        keyset=keyset,
        order_digest=digest,
        receipt_hash=receipt.hash,
        signed_at=root.issued_at,
        checks=(
            f"keyset {keyset.version} is signed by root key {short(keyset.root_key_id)}",
            f"order batch of {root.tree_size} is signed by order key {short(min(root.key_ids))}",
            f"order {order.id} is leaf {answer.order.index} of that batch",
            f"template {short(template.digest)} is signed by publisher {short(publisher)}",
            f"receipt {receipt.predicate.sequence} is signed by the key of node {order.node_id}",
            "the receipt answers exactly this order",
            *logged,
        ),
    )


def _verify_log(answer: "audit_pb2.GetReceiptResponse", *, order: Order, keyset: Keyset) -> str:
    """Check 7. By any log key that is listed: what it signed was public from then on."""
    log = answer.log
    if (log.kind, log.subject) != (LeafKind.RECEIPT, answer.receipt_id):
        raise VerificationError(f"check 7: the log's entry is about {log.kind} {log.subject[:80]!r}")
    listed = [entry.key for entry in keyset.entries if entry.purpose is KeyPurpose.LOG]
    checkpoint = verify_log_signature(
        parse_checkpoint(log.checkpoint), origin=log_origin(order.installation, order.epoch), keys=listed
    )
    leaf = commitment(
        kind=log.kind,
        subject=log.subject,
        salt=log.salt,
        content=hashlib.sha256(answer.envelope).digest(),
    )
    verify_inclusion(
        leaf=leaf_hash(leaf),
        index=log.log_index,
        size=checkpoint.size,
        path=list(log.path),
        root=checkpoint.root,
    )
    return (
        f"the receipt is leaf {log.log_index} of log {checkpoint.origin}, signed at {checkpoint.size} leaves"
    )


def _verify_root(envelope: bytes, keyset: Keyset) -> VerifiedOrderRoot:
    """Check 2: any listed order key first, then its validity at the time that the signed root names."""
    listed = {entry.key_id: entry.key for entry in keyset.entries if entry.purpose is KeyPurpose.ORDER}
    root = verify_batch(envelope, keys=listed, installation=keyset.installation, minimum_epoch=1)
    for key_id in root.key_ids:
        keyset.require(KeyPurpose.ORDER, key_id, root.issued_at)
    return root


def expected_of(order: Order, digest: Digest) -> ExpectedReceipt:
    """Return what a receipt must say to answer ``order``."""
    return ExpectedReceipt(
        type=predicate_type_for(order.format),
        installation=order.installation,
        node_id=order.node_id,
        boot_id=order.boot_id,
        order_digest=digest,
        attempt=AttemptIdentity(
            order_id=order.id,
            execution_id=order.execution_id,
            attempt_number=order.attempt_number,
            fencing_token=order.fencing_token,
        ),
        template_digest=order.template_digest,
        module_digest=order.module_digest,
        input_commitment=order.input_commitment,
    )


def short(digest: str) -> str:
    """Return a digest as people compare it: its first 12 hex digits."""
    return digest[:19]

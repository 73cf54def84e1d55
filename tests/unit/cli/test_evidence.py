"""Offline verification of evidence: whole evidence passes, and each forgery is refused by the check it breaks."""

from dataclasses import replace
from datetime import timedelta

import pytest
from agentfactory.v1 import audit_pb2

from cli.evidence import verify_evidence
from shared.digests import sha256_digest
from shared.dsse import TEMPLATE_TYPE, sign_envelope
from shared.errors import (
    KeyRevokedError,
    ProofInvalidError,
    ReceiptInvalidError,
    SignatureInvalidError,
    UnknownKeyError,
    UnknownPublisherError,
    VerificationError,
)
from shared.keyset import KeyPurpose, Keyset, sign_keyset
from shared.manifest import encode_manifest
from shared.order_codec import encode_order
from shared.orders import Order
from shared.receipt_codec import sign_receipt
from shared.receipts import AttemptIdentity, ReceiptPredicate
from tests.fakes.clock import START
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.fixtures.order_batches import sign_batch
from tests.unit.shared.builders import INSTALLATION, a_keyset, a_manifest, a_receipt, an_entry, an_order

ROOT = ed25519_key("root")
ORDER_KEY, PUBLISHER, NODE_KEY = rsa_key("order"), rsa_key("publisher"), ed25519_key("node")


def the_keyset(**order_key_changes: object) -> Keyset:
    before = START - timedelta(hours=1)
    return a_keyset(
        ROOT,
        an_entry(key=ORDER_KEY.public, not_before=before, **order_key_changes),
        an_entry(purpose=KeyPurpose.PUBLISHER, key=PUBLISHER.public, not_before=before),
    )


def the_order(**changes: object) -> Order:
    return an_order(template_digest=sha256_digest(encode_manifest(a_manifest())), **changes)


def answer_to(order: Order, **changes: object) -> ReceiptPredicate:
    receipt = a_receipt(
        order_digest=sha256_digest(encode_order(order)),
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
    return replace(receipt, **changes)


async def evidence_of(
    order: Order | None = None,
    receipt: ReceiptPredicate | None = None,
    keyset: Keyset | None = None,
    publisher: str = "publisher",
) -> audit_pb2.GetReceiptResponse:
    order = order or the_order()
    others = [encode_order(the_order()) for _ in range(2)]
    leaves = [others[0], encode_order(order), others[1]]
    batch = await sign_batch(leaves, signer(ORDER_KEY), installation=INSTALLATION, epoch=1, issued_at=START)
    template = await sign_envelope(TEMPLATE_TYPE, encode_manifest(a_manifest()), [signer(rsa_key(publisher))])
    return audit_pb2.GetReceiptResponse(
        receipt_id="rcp_1",
        envelope=await sign_receipt(receipt or answer_to(order), signer(NODE_KEY)),
        order=audit_pb2.SignedOrder(
            order=leaves[1], index=1, path=batch.paths[1], batch_envelope=batch.envelope
        ),
        receipt_public_key=NODE_KEY.public.spki_der,
        keyset=await sign_keyset(keyset or the_keyset(), [signer(ROOT)]),
        template_envelope=template,
    )


def verify(answer: audit_pb2.GetReceiptResponse):
    return verify_evidence(answer, root_keys=[ROOT.public])


async def test_whole_evidence_is_verified_and_says_what_held() -> None:
    order = the_order()
    evidence = verify(await evidence_of(order))
    assert evidence.order == order
    assert evidence.receipt.outcome == "succeeded"
    assert len(evidence.checks) == 6


async def test_another_root_key_is_not_trusted() -> None:
    answer = await evidence_of()
    with pytest.raises(UnknownKeyError):
        verify_evidence(answer, root_keys=[ed25519_key("mallory").public])


async def test_an_order_key_that_the_keyset_does_not_list() -> None:
    keyset = a_keyset(ROOT, an_entry(purpose=KeyPurpose.PUBLISHER, key=PUBLISHER.public))
    with pytest.raises(UnknownKeyError):
        verify(await evidence_of(keyset=keyset))


async def test_an_order_key_revoked_before_it_signed() -> None:
    with pytest.raises(KeyRevokedError):
        verify(await evidence_of(keyset=the_keyset(revoked_at=START)))


async def test_an_order_key_revoked_after_it_signed_still_proves() -> None:
    assert verify(await evidence_of(keyset=the_keyset(revoked_at=START + timedelta(seconds=1))))


async def test_an_order_key_that_was_not_valid_yet() -> None:
    answer = await evidence_of()
    late = the_keyset()
    entries = (replace(late.entries[0], not_before=START + timedelta(seconds=1)), late.entries[1])
    answer.keyset = await sign_keyset(replace(late, entries=entries), [signer(ROOT)])
    with pytest.raises(UnknownKeyError):
        verify(answer)


async def test_an_order_that_is_not_in_the_signed_batch() -> None:
    answer = await evidence_of()
    answer.order.order = encode_order(the_order())
    with pytest.raises(ProofInvalidError):
        verify(answer)


async def test_an_order_at_another_place_of_the_batch() -> None:
    answer = await evidence_of()
    answer.order.index = 0
    with pytest.raises(ProofInvalidError):
        verify(answer)


async def test_a_template_of_a_foreign_publisher() -> None:
    with pytest.raises(UnknownPublisherError):
        verify(await evidence_of(publisher="mallory"))


async def test_a_template_that_the_order_does_not_name() -> None:
    order = an_order(template_digest=sha256_digest(b"another"))
    with pytest.raises(VerificationError, match="check 4"):
        verify(await evidence_of(order))


async def test_a_receipt_of_another_key() -> None:
    answer = await evidence_of()
    answer.envelope = await sign_receipt(answer_to(the_order()), signer(ed25519_key("mallory")))
    with pytest.raises(UnknownKeyError):
        verify(answer)


async def test_a_receipt_for_another_order() -> None:
    order = the_order()
    with pytest.raises(ReceiptInvalidError, match="check 2"):
        verify(await evidence_of(order, answer_to(order, order_digest=sha256_digest(b"another"))))


async def test_an_altered_receipt() -> None:
    answer = await evidence_of()
    answer.envelope = answer.envelope.replace(b'"sig":"', b'"sig":"A', 1).replace(b'=="', b'="', 1)
    with pytest.raises((SignatureInvalidError, VerificationError)):
        verify(answer)

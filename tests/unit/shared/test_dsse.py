import base64
import json

import pytest
from securesystemslib.dsse import Envelope as OracleEnvelope

from shared import dsse, signatures
from shared.dsse import KEYSET_TYPE, TEMPLATE_TYPE, sign_envelope, verify_envelope
from shared.errors import (
    MalformedError,
    PayloadTypeError,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownKeyError,
    UnsignedError,
)
from tests.fixtures.keys import ed25519_key, rsa_key, signer, trusting

PAYLOAD = b'{"a":1}'
ALICE, BOB = rsa_key("alice"), ed25519_key("bob")


async def signed(*keys, payload=PAYLOAD, payload_type=TEMPLATE_TYPE) -> bytes:
    return await sign_envelope(payload_type, payload, [signer(key) for key in keys])


def verify(envelope, *keys, **options):
    return verify_envelope(envelope, payload_type=TEMPLATE_TYPE, keys=trusting(*keys), **options)


async def changed(change, *keys) -> bytes:
    document = json.loads(await signed(*keys or (ALICE,)))
    change(document)
    return json.dumps(document).encode()


def test_pae_is_the_example_of_the_specification():
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_signature_of_the_largest_key_fits():
    assert dsse.MAX_SIGNATURE_BYTES == signatures.MAX_SIGNATURE_BYTES


async def test_payload_comes_back_when_the_signature_holds():
    verified = verify(await signed(ALICE), ALICE, BOB)
    assert (verified.payload, verified.key_ids) == (PAYLOAD, {ALICE.key_id})


async def test_envelope_is_what_an_independent_implementation_reads():
    oracle = OracleEnvelope.from_dict(json.loads(await signed(ALICE, BOB)))
    assert (oracle.payload, oracle.payload_type) == (PAYLOAD, TEMPLATE_TYPE)
    assert oracle.pae() == dsse.pae(TEMPLATE_TYPE, PAYLOAD)
    verify(json.dumps(oracle.to_dict()).encode(), ALICE, BOB, threshold=2)


async def test_unsigned_envelope_is_refused():
    with pytest.raises(UnsignedError, match="check 2"):
        verify(await changed(lambda d: d.update(signatures=[])), ALICE)
    with pytest.raises(UnsignedError):
        await signed()


async def test_payload_of_another_type_is_refused_though_well_signed():
    with pytest.raises(PayloadTypeError, match="check 3"):
        verify(await signed(ALICE, payload_type=KEYSET_TYPE), ALICE)


async def test_payload_cannot_be_moved_to_another_type():
    moved = await changed(lambda d: d.update(payloadType=KEYSET_TYPE))
    with pytest.raises(SignatureInvalidError):
        verify_envelope(moved, payload_type=KEYSET_TYPE, keys=trusting(ALICE))


async def test_signature_of_an_unknown_key_is_refused():
    with pytest.raises(UnknownKeyError, match="check 4"):
        verify(await signed(ALICE), BOB)
    with pytest.raises(UnknownKeyError):
        verify(await signed(ALICE))


async def test_key_id_of_a_trusted_key_on_a_foreign_signature_is_refused():
    forged = await changed(lambda d: d["signatures"][0].update(keyid=BOB.key_id))
    with pytest.raises(SignatureInvalidError, match="check 5"):
        verify(forged, BOB)


async def test_altered_payload_is_refused():
    other = base64.b64encode(b'{"a":2}').decode()
    with pytest.raises(SignatureInvalidError, match="check 5"):
        verify(await changed(lambda d: d.update(payload=other)), ALICE)


async def test_threshold_counts_trusted_keys_only():
    both = await signed(ALICE, BOB)
    assert verify(both, ALICE, BOB, threshold=2).key_ids == {ALICE.key_id, BOB.key_id}
    with pytest.raises(SignatureInvalidError, match="1 trusted keys signed, 2 are needed"):
        verify(both, ALICE, threshold=2)
    with pytest.raises(ValueError, match="threshold"):
        verify(both, ALICE, threshold=0)


async def test_one_key_signing_twice_does_not_reach_a_threshold_of_two():
    twice = await changed(lambda d: d["signatures"].append(d["signatures"][0]))
    with pytest.raises(MalformedError, match="two signatures by one key"):
        verify(twice, ALICE, threshold=2)


async def test_good_signature_does_not_excuse_a_bad_one_by_a_trusted_key():
    bad = await changed(lambda d: d["signatures"][1].update(sig=d["signatures"][0]["sig"]), ALICE, BOB)
    with pytest.raises(SignatureInvalidError, match="check 5"):
        verify(bad, ALICE, BOB)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(comment="hello"),
        lambda d: d["signatures"][0].update(cert="x"),
    ],
)
async def test_unknown_field_in_the_envelope_is_refused(change):
    with pytest.raises(UnknownFieldError):
        verify(await changed(change), ALICE)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("payload"),
        lambda d: d.pop("signatures"),
        lambda d: d["signatures"][0].pop("keyid"),
        lambda d: d.update(payload=1),
        lambda d: d.update(payload="!!!!"),
        lambda d: d.update(payload=d["payload"].rstrip("=") + "\n"),
        lambda d: d.update(payload="YR=="),
        lambda d: d.update(payload="YQ"),
        lambda d: d.update(payload="_-8="),
        lambda d: d.update(payloadType=None),
        lambda d: d.update(payloadType="x" * 300),
        lambda d: d.update(signatures={}),
        lambda d: d.update(signatures=[1]),
        lambda d: d.update(signatures=d["signatures"] * 17),
        lambda d: d["signatures"][0].update(keyid="k" * 300),
        lambda d: d["signatures"][0].update(sig=base64.b64encode(bytes(1025)).decode()),
    ],
)
async def test_malformed_envelope_is_refused(change):
    with pytest.raises(MalformedError):
        verify(await changed(change), ALICE)


async def test_size_is_bounded_to_the_byte():
    envelope = await signed(ALICE)
    verify(envelope, ALICE, max_bytes=len(envelope))
    with pytest.raises(MalformedError, match="the bound is"):
        verify(envelope, ALICE, max_bytes=len(envelope) - 1)

"""Signed formats: what is signed comes back, and no altered byte of what travels is accepted."""

import asyncio
import contextlib
import json
from datetime import UTC
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.canonical import canonical_json, parse_canonical
from shared.dsse import sign_envelope, verify_envelope
from shared.errors import InvalidInputError, MalformedError, VerificationError
from shared.fields import Fields, time_to_text
from shared.order_codec import decode_order, encode_order
from shared.packages import SignedPackage, make_package, sign_package, verify_package
from shared.receipt_codec import sign_receipt, verify_receipt
from tests.fixtures.keys import ed25519_key, rsa_key, signer, trusting
from tests.unit.shared.builders import MODULE, NODE, a_manifest, a_receipt, an_order

PUBLISHER = rsa_key("publisher")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), json_values, max_size=4)
)
@example({"a": float(2**53), "b": -1e20})
@example({"a": 1e21, "b": -1e-7, "c": 5e-324, "d": 1.7976931348623157e308})
def test_canonical_json_has_one_encoding_that_reads_back(document):
    encoded = canonical_json(document)
    assert canonical_json(parse_canonical(encoded)) == encoded


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4), st.booleans())
def test_document_reads_as_canonical_exactly_when_rfc_8785_would_write_it_so(document, ascii_only):
    data = json.dumps(document, ensure_ascii=ascii_only, separators=(",", ":"), sort_keys=True)
    try:
        canonical = canonical_json(document) == data.encode()
    except (InvalidInputError, UnicodeEncodeError):
        canonical = False
    try:
        parse_canonical(data.encode("utf-8", "surrogatepass"))
        accepted = True
    except MalformedError:
        accepted = False
    assert accepted is canonical


@given(st.binary(max_size=64))
def test_strict_reading_ends_in_an_object_or_a_typed_error(data):
    with contextlib.suppress(MalformedError):
        assert isinstance(parse_canonical(data), dict)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_keep_their_microseconds(at):
    assert Fields({"at": time_to_text(at)}, "test").time("at") == at


@cache
def signed_package() -> SignedPackage:
    return asyncio.run(sign_package(make_package(a_manifest(), MODULE), [signer(PUBLISHER)]))


@cache
def signed_receipt() -> bytes:
    return asyncio.run(sign_receipt(a_receipt(), signer(ed25519_key("node"))))


@given(st.data())
@settings(max_examples=300)
def test_package_with_any_altered_byte_is_refused(data):
    package = signed_package()
    digest, module = next(iter(package.blobs.items()))
    place = data.draw(st.integers(0, len(package.envelope) + len(module) - 1))
    mask = data.draw(st.integers(1, 255))
    altered = bytearray(package.envelope + module)
    altered[place] ^= mask
    envelope, blob = bytes(altered[: len(package.envelope)]), bytes(altered[len(package.envelope) :])
    with pytest.raises(VerificationError):
        verify_package(envelope, {digest: blob}, publisher_keys=trusting(PUBLISHER))


@given(st.data())
@settings(max_examples=200)
def test_receipt_with_any_altered_byte_is_refused(data):
    envelope = bytearray(signed_receipt())
    envelope[data.draw(st.integers(0, len(envelope) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(VerificationError):
        verify_receipt(bytes(envelope), node_id=NODE, node_key=ed25519_key("node").public)


@given(st.binary(max_size=256))
@settings(max_examples=50)
def test_any_payload_survives_signing(payload):
    envelope = asyncio.run(sign_envelope("text/plain", payload, [signer(ed25519_key())]))
    verified = verify_envelope(envelope, payload_type="text/plain", keys=trusting(ed25519_key()))
    assert verified.payload == payload


@given(
    st.builds(
        an_order,
        epoch=st.integers(1, 2**53 - 1),
        fencing_token=st.integers(1, 2**53 - 1),
        attempt_number=st.integers(1, 3),
        caller=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
        input_bytes=st.integers(0, 2**40),
        seed=st.binary(min_size=32, max_size=32),
        nonce=st.binary(min_size=16, max_size=16),
        retry_is_safe=st.booleans(),
    )
)
def test_order_survives_its_encoding(order):
    assert decode_order(encode_order(order)) == order


@given(st.data())
@settings(max_examples=300)
def test_order_bytes_decode_to_their_own_order_or_to_a_typed_error(data):
    encoded = bytearray(encode_order(an_order()))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(VerificationError):
        # Whatever an altered order decodes to, it has these bytes and no others.
        assert encode_order(decode_order(bytes(encoded))) == bytes(encoded)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_never_a_package_or_a_receipt(data):
    with pytest.raises(VerificationError):
        verify_package(data, {}, publisher_keys=trusting(PUBLISHER))
    with pytest.raises(VerificationError):
        verify_receipt(data, node_id=NODE, node_key=ed25519_key("node").public)

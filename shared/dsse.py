"""DSSE v1 envelopes: sign bytes under a payload type, and give them back only when the signatures hold.

Never looks into a payload: who calls decodes it after `verify_envelope` has returned. The format is a dozen
lines on top of `signatures`. The securesystemslib envelope is an oracle in the tests and not used here: it
parses without bounds, takes loose base64 and unknown fields, and signs synchronously through its own key
classes.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shared.canonical import canonical_json, parse_strict
from shared.errors import (
    MalformedError,
    PayloadTypeError,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownKeyError,
    UnsignedError,
)
from shared.ids import KeyId

if TYPE_CHECKING:
    # Building a package signs and verifies nothing: it must not wait for cryptography.
    from shared.signatures import PublicKey, Signature, Signer

TEMPLATE_TYPE: Final = "application/vnd.agentfactory.template.v1+json"
ORDERS_TYPE: Final = "application/vnd.agentfactory.orders.v1+json"
KEYSET_TYPE: Final = "application/vnd.agentfactory.keyset.v1+json"
POLICY_TYPE: Final = "application/vnd.agentfactory.policy.v1+json"
IN_TOTO_TYPE: Final = "application/vnd.in-toto+json"

MAX_ENVELOPE_BYTES: Final = 512 * 1024
"""A 256 KiB payload in base64, its signatures and some room."""

MAX_SIGNATURES: Final = 16
MAX_SIGNATURE_BYTES: Final = 1024
"""Of RSA with 8,192 bits, the largest key there may be."""
MAX_PAYLOAD_TYPE_BYTES: Final = 256

_ENVELOPE_DEPTH: Final = 3
_ENVELOPE_FIELDS: Final = frozenset({"payload", "payloadType", "signatures"})
_SIGNATURE_FIELDS: Final = frozenset({"keyid", "sig"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeSignature:
    """One signature as the envelope carries it."""

    key_id: KeyId
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A decoded envelope. Decoded is not verified: `payload` is for `verify_envelope` and for display."""

    payload_type: str
    payload: bytes
    signatures: tuple[EnvelopeSignature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPayload:
    """Bytes that at least the threshold of trusted keys signed under the expected type."""

    payload: bytes
    key_ids: frozenset[KeyId]
    """The trusted keys whose signatures hold."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE v1 pre-authentication encoding (protocol.md, "PAE")."""
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


async def sign_envelope(payload_type: str, payload: bytes, signers: Sequence["Signer"]) -> bytes:
    """Return the encoded envelope over exactly `payload`, signed by every signer in turn.

    Raises:
        KeyUnavailableError: A signer's custodian does not answer.
        UnsignedError: `signers` is empty.
    """
    if not signers:
        raise UnsignedError("an envelope needs at least one signer")
    to_sign = pae(payload_type, payload)
    signatures = [await signer.sign(to_sign) for signer in signers]
    return encode_envelope(envelope_of(payload_type, payload, signatures))


def envelope_of(payload_type: str, payload: bytes, signatures: Sequence["Signature"]) -> Envelope:
    """Join a payload and signatures over its `pae` that were made elsewhere."""
    made = tuple(EnvelopeSignature(key_id=made.key_id, value=made.value) for made in signatures)
    return Envelope(payload_type=payload_type, payload=payload, signatures=made)


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the envelope as canonical JSON with standard base64."""
    return canonical_json(
        {
            "payload": base64.b64encode(envelope.payload).decode("ascii"),
            "payloadType": envelope.payload_type,
            "signatures": [
                {"keyid": signature.key_id, "sig": base64.b64encode(signature.value).decode("ascii")}
                for signature in envelope.signatures
            ],
        }
    )


def decode_envelope(data: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> Envelope:
    """Return the envelope in `data`, verifying nothing.

    Raises:
        MalformedError: It is larger than `max_bytes`, not strict JSON of an envelope's shape; a base64 text
            is not canonical; there are more than 16 signatures or two by one key id.
        UnknownFieldError: It carries a field that DSSE v1 does not name.
    """
    document = parse_strict(data, max_bytes=max_bytes, max_depth=_ENVELOPE_DEPTH)
    _exact_fields(document, _ENVELOPE_FIELDS, "envelope")
    payload_type, entries = document["payloadType"], document["signatures"]
    if not isinstance(payload_type, str) or len(payload_type) > MAX_PAYLOAD_TYPE_BYTES:
        raise MalformedError("envelope field 'payloadType' is not a short string")
    if not isinstance(entries, list) or len(entries) > MAX_SIGNATURES:
        raise MalformedError(f"envelope field 'signatures' is not a list of at most {MAX_SIGNATURES}")
    signatures = tuple(_decode_signature(entry) for entry in entries)
    if len({signature.key_id for signature in signatures}) != len(signatures):
        raise MalformedError("envelope carries two signatures by one key id")
    payload = _decode_base64(document["payload"], "payload")
    return Envelope(payload_type=payload_type, payload=payload, signatures=signatures)


def verify_envelope(
    data: bytes,
    *,
    payload_type: str,
    keys: Mapping[KeyId, "PublicKey"],
    threshold: int = 1,
    max_bytes: int = MAX_ENVELOPE_BYTES,
) -> VerifiedPayload:
    """Return the payload if, and only if, every check passes. The payload itself is not decoded.

    1. The envelope decodes within its bounds (`decode_envelope`).
    2. It carries at least one signature.
    3. Its payload type is the expected one.
    4. At least `threshold` signatures name keys in `keys`; signatures by other keys count for nothing.
    5. Every signature that names a key in `keys` holds over the exact payload and type.

    What the payload says (who, when, which version) is still the caller's to check.

    Raises:
        MalformedError: Check 1.
        UnknownFieldError: Check 1.
        UnsignedError: Check 2.
        PayloadTypeError: Check 3.
        UnknownKeyError: Check 4, none of the signatures names a known key.
        SignatureInvalidError: Check 4, some but too few do; or check 5.
    """
    if threshold < 1:
        raise ValueError(f"threshold must be at least 1, not {threshold}")
    envelope = decode_envelope(data, max_bytes=max_bytes)
    if not envelope.signatures:
        raise UnsignedError("check 2: the envelope carries no signature")
    if envelope.payload_type != payload_type:
        raise PayloadTypeError(
            f"check 3: payload type is {envelope.payload_type!r}, expected {payload_type!r}"
        )
    known = [signature for signature in envelope.signatures if signature.key_id in keys]
    if not known:
        named = ", ".join(signature.key_id for signature in envelope.signatures)
        raise UnknownKeyError(f"check 4: no trusted key among the signers: {named}")
    if len(known) < threshold:
        raise SignatureInvalidError(f"check 4: {len(known)} trusted keys signed, {threshold} are needed")
    signed = pae(envelope.payload_type, envelope.payload)
    for signature in known:
        _verify_one(signature, keys[signature.key_id], signed)
    return VerifiedPayload(
        payload=envelope.payload, key_ids=frozenset(signature.key_id for signature in known)
    )


def _verify_one(signature: EnvelopeSignature, key: "PublicKey", signed: bytes) -> None:
    try:
        key.verify(signature.value, signed)
    except SignatureInvalidError as error:
        raise SignatureInvalidError(f"check 5: {error}") from error


def _decode_signature(entry: Any) -> EnvelopeSignature:
    if not isinstance(entry, dict):
        raise MalformedError("envelope field 'signatures' holds something else than objects")
    _exact_fields(entry, _SIGNATURE_FIELDS, "signature")
    key_id = entry["keyid"]
    if not isinstance(key_id, str) or len(key_id) > MAX_PAYLOAD_TYPE_BYTES:
        raise MalformedError("signature field 'keyid' is not a short string")
    value = _decode_base64(entry["sig"], "sig")
    if len(value) > MAX_SIGNATURE_BYTES:
        raise MalformedError(f"a signature has {len(value)} bytes, the bound is {MAX_SIGNATURE_BYTES}")
    return EnvelopeSignature(key_id=KeyId(key_id), value=value)


def _exact_fields(document: dict[str, Any], fields: frozenset[str], what: str) -> None:
    unknown = document.keys() - fields
    if unknown:
        raise UnknownFieldError(f"{what} carries the unknown field {min(unknown)[:64]!r}")
    missing = fields - document.keys()
    if missing:
        raise MalformedError(f"{what} lacks the field {min(missing)!r}")


def _decode_base64(text: Any, name: str) -> bytes:
    if not isinstance(text, str):
        raise MalformedError(f"field {name!r} is not a string")
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"field {name!r} is not base64: {error}") from error
    # Stray bits in the last character decode alike: one payload would have several envelopes.
    if base64.b64encode(value).decode("ascii") != text:
        raise MalformedError(f"field {name!r} is not canonical base64")
    return value

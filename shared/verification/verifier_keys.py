"""Ed25519 keys of logs and witnesses as one line of text (C2SP signed-note, "Verifier keys"). Pure."""

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from shared.checkpoints import COSIGNATURE, ED25519, key_id
from shared.errors import InvalidInputError, KeyFormatError, MalformedError
from shared.signatures import Algorithm, PublicKey

MAX_VERIFIER_KEY_CHARS: Final = 512

_SPKI_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")
"""A SubjectPublicKeyInfo of Ed25519 (RFC 8410 section 4) before the 32 bytes of the key."""
_RAW_BYTES: Final = 32
_PARTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierKey:
    """A log's or a witness' key and the name it signs under."""

    name: str
    key: PublicKey


def encode_verifier_key(verifier: VerifierKey, kind: int) -> str:
    """Return ``<name>+<4 bytes in hex>+<base64 of kind and key>``.

    Raises:
        InvalidInputError: The key is not Ed25519.
    """
    named = key_id(verifier.name, verifier.key, kind).hex()
    raw = bytes([kind]) + verifier.key.spki_der[-_RAW_BYTES:]
    return f"{verifier.name}+{named}+{base64.b64encode(raw).decode()}"


def parse_verifier_key(text: str, kind: int) -> VerifierKey:
    """Return the key in a line. `kind`: `ED25519` of a log, `COSIGNATURE` of a witness.

    Raises:
        MalformedError: It is no such line, of another kind, or its hash is not that of name and key.
    """
    parts = text.split("+", _PARTS - 1)
    what = {ED25519: "a log's", COSIGNATURE: "a witness'"}[kind]
    if len(text) > MAX_VERIFIER_KEY_CHARS or len(parts) != _PARTS:
        raise MalformedError(f"{text[:80]!r} is not {what} verifier key: <name>+<hash>+<base64>")
    try:
        raw = base64.b64decode(parts[2], validate=True)
        if raw[:1] != bytes([kind]) or len(raw) != 1 + _RAW_BYTES:
            raise MalformedError(f"{text[:80]!r} is not {what} verifier key: of another kind or length")
        found = VerifierKey(name=parts[0], key=PublicKey.from_spki_der(_SPKI_PREFIX + raw[1:]))
        is_same = encode_verifier_key(found, kind) == text
    except (binascii.Error, KeyFormatError, InvalidInputError) as error:
        raise MalformedError(f"{text[:80]!r} is not {what} verifier key: {error}") from error
    if not is_same or found.key.algorithm is not Algorithm.ED25519:
        raise MalformedError(f"{text[:80]!r} is not {what} verifier key: its hash is of another one")
    return found

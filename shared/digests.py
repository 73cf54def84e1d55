"""SHA-256 digests, salted commitments to bodies, and keyed digests. Owns their text form; signs nothing."""

import hashlib
import hmac
import re
from typing import Final, NewType

from shared.errors import InvalidInputError

Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hexadecimal digits."""

DIGEST_BYTES: Final = 32
SALT_BYTES: Final = 32

_PREFIX: Final = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BODY_DOMAIN: Final = b"af-body-v1"


def sha256_digest(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of exactly these bytes."""
    return Digest(_PREFIX + hashlib.sha256(data).hexdigest())


def digest_from_raw(raw: bytes) -> Digest:
    """Return the text form of a 32-byte hash.

    Raises:
        InvalidInputError: It has another length.
    """
    if len(raw) != DIGEST_BYTES:
        raise InvalidInputError(f"a sha-256 hash has {DIGEST_BYTES} bytes, not {len(raw)}")
    return Digest(_PREFIX + raw.hex())


def digest_to_raw(digest: Digest) -> bytes:
    """Return the 32 bytes of a valid digest."""
    return bytes.fromhex(digest[len(_PREFIX) :])


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest.

    Raises:
        InvalidInputError: It is not ``sha256:`` and 64 lower-case hexadecimal digits.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidInputError(f"{text[:80]!r} is not a digest of the form sha256:<64 hex digits>")
    return Digest(text)


def commit_body(body: bytes | memoryview, salt: bytes) -> Digest:
    """Return the salted commitment to a body: ``sha256("af-body-v1" || salt || sha256(body))``.

    Who holds body and salt can check it; once the salt is erased nobody can confirm a guess of the body.

    Raises:
        InvalidInputError: The salt does not have 32 bytes.
    """
    return commit_body_hash(hashlib.sha256(body).digest(), salt)


def commit_body_hash(body_sha256: bytes, salt: bytes) -> Digest:
    """Like `commit_body`, for a body that was hashed while it streamed by.

    Raises:
        InvalidInputError: Salt or hash do not have 32 bytes.
    """
    if len(salt) != SALT_BYTES or len(body_sha256) != DIGEST_BYTES:
        raise InvalidInputError(f"salt and hash have {len(salt)} and {len(body_sha256)} bytes, not 32 each")
    return Digest(_PREFIX + hashlib.sha256(_BODY_DOMAIN + salt + body_sha256).hexdigest())


def keyed_digest(key: bytes, data: bytes) -> Digest:
    """Return HMAC-SHA-256 in the text form of a digest: useless to whoever lacks the key.

    Raises:
        InvalidInputError: The key is shorter than 32 bytes.
    """
    if len(key) < DIGEST_BYTES:
        raise InvalidInputError(f"the key of a keyed digest has {len(key)} bytes, at least 32 are needed")
    return Digest(_PREFIX + hmac.new(key, data, hashlib.sha256).hexdigest())


def same_digest(left: Digest, right: Digest) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)

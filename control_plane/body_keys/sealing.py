"""How a body is stored encrypted: segments of AES-256-GCM, so that a piece is read without the whole.

A stored body is sealed exactly if it is longer than its size says: a plain one never is, whatever it holds.

    version (1) || id of the data key (40, ASCII) || salt (16) || segments of 64 KiB, each with its tag (16)

Each body has a key of its own, HKDF-SHA-256 (RFC 5869) of the data key with the salt: no nonce can come
twice. A segment's nonce is its number. Tenant, body, data key, size and number are bound to each segment, so
none can be moved, left out or given to another body.
"""

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from control_plane.body_keys.domain import BODY_KEY, KEY_BYTES, BodyKeyId
from shared.errors import InternalError, InvalidInputError
from shared.ids import BodyId, TenantId, parse_id

VERSION: Final = 1
KEY_ID_BYTES: Final = 40
SALT_BYTES: Final = 16
HEADER_BYTES: Final = 1 + KEY_ID_BYTES + SALT_BYTES
SEGMENT_BYTES: Final = 64 * 1024
TAG_BYTES: Final = 16
SEALED_SEGMENT_BYTES: Final = SEGMENT_BYTES + TAG_BYTES
_CONTEXT: Final = b"af-sealed-body-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyPlace:
    """What a sealed body is bound to."""

    tenant_id: TenantId
    body_id: BodyId
    size_bytes: int
    """Of the plain body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Whole segments that hold a piece of a body."""

    first: int
    """Number of the first."""
    start_bytes: int
    """Where they begin in what is stored."""
    length_bytes: int


def seal(content: bytes, *, place: BodyPlace, key_id: BodyKeyId, key: bytes, salt: bytes) -> bytes:
    """Return a body as it is stored. `salt` is 16 random bytes, fresh for each call."""
    header = bytes([VERSION]) + key_id.encode("ascii") + salt
    if len(header) != HEADER_BYTES or place.size_bytes != len(content):
        raise InternalError(f"body {place.body_id} cannot be sealed as it is")
    cipher, bound = _cipher(key, salt, place), _bound(place, key_id)
    parts = [header]
    for number, start in enumerate(range(0, max(len(content), 1), SEGMENT_BYTES)):
        piece = content[start : start + SEGMENT_BYTES]
        parts.append(cipher.encrypt(_nonce(number), piece, bound + struct.pack(">I", number)))
    return b"".join(parts)


def key_of(header: bytes) -> BodyKeyId:
    """Return which data key a sealed body needs.

    Raises:
        InternalError: It is no header of ours.
    """
    try:
        if len(header) < HEADER_BYTES or header[0] != VERSION:
            raise InternalError("a stored body is sealed in a way that this build does not know")
        return parse_id(BODY_KEY, header[1 : 1 + KEY_ID_BYTES].decode("ascii"))
    except (UnicodeDecodeError, InvalidInputError) as error:
        raise InternalError("a stored body names no key") from error


def span_of(offset_bytes: int, max_bytes: int) -> Span:
    """Return the segments that hold a piece."""
    first = offset_bytes // SEGMENT_BYTES
    last = (offset_bytes + max(max_bytes, 1) - 1) // SEGMENT_BYTES
    return Span(
        first=first,
        start_bytes=HEADER_BYTES + first * SEALED_SEGMENT_BYTES,
        length_bytes=(last - first + 1) * SEALED_SEGMENT_BYTES,
    )


def open_segments(header: bytes, segments: bytes, *, first: int, place: BodyPlace, key: bytes) -> bytes:
    """Return the plain bytes of whole segments, from number `first` on.

    Raises:
        InternalError: They are not what was sealed: altered, moved, cut short, or under another key.
    """
    cipher = _cipher(key, header[1 + KEY_ID_BYTES : HEADER_BYTES], place)
    bound = _bound(place, key_of(header))
    found = []
    for position, start in enumerate(range(0, len(segments), SEALED_SEGMENT_BYTES)):
        number = first + position
        piece = segments[start : start + SEALED_SEGMENT_BYTES]
        if len(piece) != _sealed_bytes(place, number):
            raise InternalError(f"body {place.body_id} is not as it was stored")
        try:
            found.append(cipher.decrypt(_nonce(number), piece, bound + struct.pack(">I", number)))
        except InvalidTag as error:
            raise InternalError(f"body {place.body_id} is not as it was stored") from error
    return b"".join(found)


def open_whole(sealed: bytes, *, place: BodyPlace, key: bytes) -> bytes:
    """Return a plain body.

    Raises:
        InternalError: As `open_segments`.
    """
    plain = open_segments(sealed[:HEADER_BYTES], sealed[HEADER_BYTES:], first=0, place=place, key=key)
    if len(plain) != place.size_bytes or len(sealed) == HEADER_BYTES:
        raise InternalError(f"body {place.body_id} is not as it was stored")
    return plain


def _sealed_bytes(place: BodyPlace, number: int) -> int:
    left = place.size_bytes - number * SEGMENT_BYTES
    return min(max(left, 0), SEGMENT_BYTES) + TAG_BYTES


def _cipher(key: bytes, salt: bytes, place: BodyPlace) -> AESGCM:
    info = _CONTEXT + _text(place.tenant_id) + _text(place.body_id)
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key))


def _bound(place: BodyPlace, key_id: BodyKeyId) -> bytes:
    names = _text(place.tenant_id) + _text(place.body_id) + _text(key_id)
    return _CONTEXT + names + struct.pack(">Q", place.size_bytes)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">I", len(data)) + data


def _nonce(number: int) -> bytes:
    return struct.pack(">QI", 0, number)

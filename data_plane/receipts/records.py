"""The spool's bytes: segment headers and records. Pure; opens no file.

A segment is a 64-byte header and records behind each other, padded with zeros to its full size. Every record
names its sequence number and carries a checksum over everything, so a torn write is told from a whole one.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from data_plane.orders.domain import AttemptRef
from data_plane.receipts.domain import (
    EMPTY_HEAD,
    HASH_BYTES,
    INLINE_BODY_BYTES,
    MAX_ENVELOPE_BYTES,
    SpooledBody,
    SpooledReceipt,
    SpoolHead,
)
from shared.canonical import parse_strict
from shared.digests import parse_digest
from shared.errors import AgentFactoryError, SpoolCorruptError
from shared.ids import ExecutionId
from shared.orders import MAX_BATCH_ENVELOPE_BYTES

MAX_META_BYTES: Final = 4 * 1024
MAX_KV_WRITES_BYTES: Final = 320 * 1024
"""What the writes of one run are at most, encoded."""
MAX_RECORD_BYTES: Final = (
    MAX_META_BYTES
    + MAX_ENVELOPE_BYTES
    + MAX_BATCH_ENVELOPE_BYTES
    + 3 * INLINE_BODY_BYTES
    + MAX_KV_WRITES_BYTES
    + 64
)

_CHECKSUM_BYTES: Final = 16
_SEGMENT_MAGIC: Final = b"AFSPOOL1"
_SEGMENT: Final = struct.Struct(f">8sQ{HASH_BYTES}s")
_RECORD_MAGIC: Final = b"AFRC"
_RECORD: Final = struct.Struct(">4sIQ")
_PART: Final = struct.Struct(">I")

SEGMENT_HEADER_BYTES: Final = _SEGMENT.size + _CHECKSUM_BYTES
RECORD_HEADER_BYTES: Final = _RECORD.size + _CHECKSUM_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A record and where its segment holds it."""

    receipt: SpooledReceipt
    offset: int
    length: int


def encode_segment_header(before: SpoolHead) -> bytes:
    """Return the header of a segment whose first record follows `before`."""
    head = _SEGMENT.pack(_SEGMENT_MAGIC, before.sequence, before.hash.ljust(HASH_BYTES, b"\0"))
    return head + _checksum(head)


def decode_segment_header(data: bytes) -> SpoolHead:
    """Return the head that the segment's first record follows.

    Raises:
        SpoolCorruptError: It is not a whole header.
    """
    head, checksum = data[: _SEGMENT.size], data[_SEGMENT.size : SEGMENT_HEADER_BYTES]
    if len(data) < SEGMENT_HEADER_BYTES or _checksum(head) != checksum:
        raise SpoolCorruptError("a spool segment has no valid header")
    magic, sequence, previous = _SEGMENT.unpack(head)
    if magic != _SEGMENT_MAGIC:
        raise SpoolCorruptError("a spool segment is of an unknown format")
    return SpoolHead(sequence=sequence, hash=previous) if sequence else EMPTY_HEAD


def encode_record(receipt: SpooledReceipt) -> bytes:
    """Return the record of one receipt, checksum included."""
    parts = (
        json.dumps(_meta(receipt), separators=(",", ":")).encode(),
        receipt.envelope,
        *(body.inline for body in receipt.bodies if body.inline is not None),
        *((receipt.order_envelope,) if receipt.order_envelope else ()),
        *((receipt.kv_writes,) if receipt.kv_writes else ()),
    )
    payload = b"".join(_PART.pack(len(part)) + part for part in parts)
    head = _RECORD.pack(_RECORD_MAGIC, len(payload), receipt.sequence)
    return head + _checksum(head, payload) + payload


def decode_record(data: bytes | memoryview, *, sequence: int) -> SpooledReceipt | None:
    """Return the receipt at the start of `data`, or None when there is no whole record of that number."""
    found = _whole_record(memoryview(data), sequence)
    return None if found is None else _decode_payload(bytes(found), sequence)


def read_records(segment: bytes | memoryview) -> Iterator[Located]:
    """Yield the records of a segment up to its end or its torn tail.

    Raises:
        SpoolCorruptError: The header is not whole, or a record with a right checksum does not decode.
    """
    view = memoryview(segment)
    sequence = decode_segment_header(bytes(view[:SEGMENT_HEADER_BYTES])).sequence + 1
    offset = SEGMENT_HEADER_BYTES
    while (payload := _whole_record(view[offset:], sequence)) is not None:
        length = RECORD_HEADER_BYTES + len(payload)
        yield Located(receipt=_decode_payload(bytes(payload), sequence), offset=offset, length=length)
        offset += length
        sequence += 1


def _whole_record(data: memoryview, sequence: int) -> memoryview | None:
    if len(data) < RECORD_HEADER_BYTES:
        return None
    head = data[: _RECORD.size]
    magic, length, number = _RECORD.unpack(head)
    payload = data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + length]
    if magic != _RECORD_MAGIC or number != sequence or length > MAX_RECORD_BYTES or len(payload) != length:
        return None
    if _checksum(head, payload) != data[_RECORD.size : RECORD_HEADER_BYTES]:
        return None
    return payload


def _decode_payload(payload: bytes, sequence: int) -> SpooledReceipt:
    try:
        parts = list(_parts(payload))
        meta = parse_strict(parts[0], max_bytes=MAX_META_BYTES)
        inlined = iter(parts[2:])
        output, log, recording = (
            _body_from_meta(meta.get(name), inlined) for name in ("output", "log", "recording")
        )
        return SpooledReceipt(
            sequence=sequence,
            envelope=parts[1],
            attempt=_attempt_from_meta(meta["attempt"]),
            output=output,
            log=log,
            recording=recording,
            # Absent, like the recording and the writes, from what a build before these fields wrote.
            order_envelope=next(inlined) if meta.get("order_envelope") else b"",
            kv_writes=next(inlined) if meta.get("kv_writes") else b"",
        )
    except (
        AgentFactoryError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        StopIteration,
        struct.error,
    ) as error:
        raise SpoolCorruptError(f"spool record {sequence} is whole but does not decode") from error


def _parts(payload: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(payload):
        (length,) = _PART.unpack_from(payload, offset)
        offset += _PART.size
        if offset + length > len(payload):
            raise ValueError("a part ends behind its record")
        yield payload[offset : offset + length]
        offset += length


def _meta(receipt: SpooledReceipt) -> dict[str, Any]:
    attempt = receipt.attempt
    return {
        "attempt": None
        if attempt is None
        # Tokens are 64-bit; JSON numbers are exact up to 2^53 only.
        else [attempt.execution_id, attempt.attempt_number, str(attempt.fencing_token)],
        "output": _body_meta(receipt.output),
        "log": _body_meta(receipt.log),
        "recording": _body_meta(receipt.recording),
        "order_envelope": bool(receipt.order_envelope),
        "kv_writes": bool(receipt.kv_writes),
    }


def _body_meta(body: SpooledBody | None) -> list[Any] | None:
    if body is None:
        return None
    return [body.salt.hex(), body.size_bytes, body.commitment, body.inline is not None]


def _body_from_meta(meta: Any, inlined: Iterator[bytes]) -> SpooledBody | None:
    if meta is None:
        return None
    salt, size_bytes, commitment, inline = meta
    return SpooledBody(
        salt=bytes.fromhex(salt),
        size_bytes=int(size_bytes),
        commitment=parse_digest(commitment),
        inline=next(inlined) if inline else None,
    )


def _attempt_from_meta(meta: Any) -> AttemptRef | None:
    if meta is None:
        return None
    execution_id, number, token = meta
    return AttemptRef(
        execution_id=ExecutionId(execution_id), attempt_number=int(number), fencing_token=int(token)
    )


def _checksum(*parts: bytes | memoryview) -> bytes:
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.digest()[:_CHECKSUM_BYTES]

"""What a leaf of the transparency log is: a commitment to one fact, silent to whoever lacks its salt.

    commitment = sha256("af-log-leaf-v1" || 0 || kind || 0 || subject || 0 || salt || content)

`content` is a SHA-256: of a receipt's envelope, or of an audit entry's fields as `audit_content` puts them.
"""

import hashlib
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from shared.errors import ProofInvalidError

SALT_BYTES: Final = 16
CONTENT_BYTES: Final = 32

_PREFIX: Final = b"af-log-leaf-v1"


class LeafKind(StrEnum):
    """What a leaf is about."""

    RECEIPT = "receipt"
    AUDIT_ENTRY = "audit_entry"


def commitment(*, kind: str, subject: str, salt: bytes, content: bytes) -> bytes:
    """Return the leaf's data, 32 bytes. No kind or subject of ours has a zero byte in it.

    Raises:
        ProofInvalidError: Salt or content have another length.
    """
    if (len(salt), len(content)) != (SALT_BYTES, CONTENT_BYTES):
        raise ProofInvalidError(f"a leaf with {len(salt)} bytes of salt and {len(content)} of content")
    return hashlib.sha256(b"\0".join((_PREFIX, kind.encode(), subject.encode(), salt + content))).digest()


def audit_content(
    *,
    audit_entry_id: str,
    tenant_id: str,
    actor: str,
    action: str,
    subject: str,
    result: str,
    recorded_at: datetime,
    details: str,
) -> bytes:
    """Return the digest of an audit entry's fields, a line each; `details` is its JSON text as served.

    No field but the last can hold a line break. Postgres computes the same as it records the entry.
    """
    at = recorded_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lines = (audit_entry_id, tenant_id, actor, action, subject, result, at, details)
    return hashlib.sha256("\n".join(lines).encode()).digest()

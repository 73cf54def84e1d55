"""What a leaf of the transparency log is: a commitment to one fact, silent to whoever lacks its salt.

    commitment = sha256("af-log-leaf-v1" || 0 || kind || 0 || subject || 0 || salt || content)

`content` is a SHA-256: of a receipt's or keyset's envelope, of a template or policy what its digest says, of
everything else its fields, a line each. Subjects are unique in a log. docs/log.md has the table.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from shared.digests import Digest, digest_to_raw
from shared.errors import ProofInvalidError
from shared.ids import TenantId

SALT_BYTES: Final = 16
CONTENT_BYTES: Final = 32

_PREFIX: Final = b"af-log-leaf-v1"


class LeafKind(StrEnum):
    """What a leaf is about."""

    RECEIPT = "receipt"
    AUDIT_ENTRY = "audit_entry"
    TEMPLATE = "template"
    """A version was published."""
    TEMPLATE_STATE = "template_state"
    """A version was retired or revoked."""
    POLICY = "policy"
    """A policy has decided here, or was put in force."""
    POLICY_ACTIVATION = "policy_activation"
    KEYSET = "keyset"
    NODE = "node"
    """A node was enrolled."""
    NODE_STATE = "node_state"
    """A node was quarantined or evicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What a leaf says, as far as whoever asks for it knows by himself: all but place and salt."""

    kind: LeafKind
    subject: str
    content: bytes

    def commitment(self, salt: bytes) -> bytes:
        """Return the leaf's data; see `commitment`."""
        return commitment(kind=self.kind, subject=self.subject, salt=salt, content=self.content)


def template_fact(tenant_id: TenantId, digest: Digest) -> Fact:
    """Return the fact that a tenant has published the template of a digest."""
    return Fact(kind=LeafKind.TEMPLATE, subject=f"{tenant_id}/{digest}", content=digest_to_raw(digest))


def policy_fact(digest: Digest) -> Fact:
    """Return the fact that the policy of a digest decides, or has decided, in this installation."""
    return Fact(kind=LeafKind.POLICY, subject=digest, content=digest_to_raw(digest))


def activation_subject(number: int) -> str:
    """Return the subject of the leaf about the n-th activation of a policy."""
    return f"activation/{number}"


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

"""Keys under which bodies of a tenant are stored: their names and states. No I/O and no key material."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NewType

from shared.errors import InvalidInputError
from shared.ids import IdKind, TenantId

BodyKeyId = NewType("BodyKeyId", str)
BODY_KEY: Final = IdKind(prefix="bky", type=BodyKeyId)

KEY_BYTES: Final = 32
"""AES-256."""

RESULT_GRACE: Final = timedelta(minutes=15)
"""After its life a key goes on to seal results and to open bodies while its custodian is away, but seals no
new input: what was promised can end."""

_TENANT: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyKey:
    """One data key, wrapped by its tenant's key-encryption key."""

    body_key_id: BodyKeyId
    tenant_id: TenantId
    generation: int
    """Of the key-encryption key: each erasure of the tenant's keys begins another."""
    wrapped: bytes
    """Empty once it is destroyed."""
    created_at: datetime | None = None
    destroyed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What an erasure of a tenant's keys did; earlier generations of its key-encryption key may go."""

    keys: tuple[BodyKeyId, ...]
    generation: int
    """The one that begins: all below it are over."""


def wrapping_name(tenant_id: TenantId, generation: int) -> str:
    """Return the name of a tenant's key-encryption key, at its custodian.

    Raises:
        InvalidInputError: The tenant's name is none that may be part of a path.
    """
    if not _TENANT.fullmatch(tenant_id):
        raise InvalidInputError(f"tenant {tenant_id[:64]!r} can have no keys of its own")
    return f"body-{tenant_id}-{generation}"

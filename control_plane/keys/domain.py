"""Keys in custody, and which of them signs. Pure: asks no custodian, no database and no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared.errors import InvalidInputError
from shared.ids import KeyId
from shared.keyset import KeyPurpose, KeysetEntry
from shared.signatures import Algorithm, PublicKey

CUSTODY: Final[Mapping[KeyPurpose, Algorithm]] = {
    KeyPurpose.ORDER: Algorithm.RSA_PKCS1_SHA256,
    KeyPurpose.POLICY: Algorithm.ED25519,
    KeyPurpose.LOG: Algorithm.ED25519,
}
"""What the control plane's custody keeps, and of which kind it makes new ones.

Not freshness: its key must be out of reach of whoever holds the order key (design rule 12). Not publishers:
they are other people.
"""


class KeyState(StrEnum):
    """Where a key is on its way."""

    PENDING = "pending"
    """In custody and not in the keyset: the root has not named it yet."""
    LISTED = "listed"
    """In the keyset and valid; of keys in custody: signs nothing now."""
    SIGNING = "signing"
    """What this replica signs with."""
    ENDED = "ended"
    """In the keyset, its time is over."""
    FUTURE = "future"
    """In the keyset, its time has not come."""
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodyKey:
    """One key that a custodian keeps: its public half and what the custodian calls it."""

    purpose: KeyPurpose
    name: str
    """The custodian's name of the key: a file, a key of a transit engine."""
    version: int
    """The custodian's number of it, from 1."""
    public: PublicKey

    @property
    def key_id(self) -> KeyId:
        return self.public.key_id


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """One key as operators see it: from the keyset, from custody, or both."""

    key_id: KeyId
    purpose: KeyPurpose
    state: KeyState
    public: PublicKey
    custody_name: str
    """Empty for a key that is not in custody here."""
    custody_version: int
    entry: KeysetEntry | None
    """None for a key that is not in the keyset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyListing:
    """All keys, and how far the newest keyset has come."""

    keys: tuple[KeyReport, ...]
    keyset_version: int
    acknowledged_version: int
    """The lowest that a live session of this replica has in force; 0 without sessions."""
    custody_problem: str
    """Why the custodian could not be asked; empty when it could."""
    fresh_at: datetime | None
    """When the newest statement of freshness was made; None: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestKeyset:
    """What is relayed, as it was signed."""

    version: int
    envelope: bytes
    freshness: bytes
    """Empty when there is none."""


def require_custody(purpose: KeyPurpose) -> Algorithm:
    """Return the algorithm of a purpose's keys.

    Raises:
        InvalidInputError: Keys of this purpose are not kept by the control plane.
    """
    algorithm = CUSTODY.get(purpose)
    if algorithm is None:
        raise InvalidInputError(
            f"keys of purpose {purpose} are not kept by the control plane",
            hint="make it where it is used, and add its public half to the keyset",
        )
    return algorithm


def best_key(keys: Sequence[CustodyKey], listed: Mapping[KeyId, PublicKey]) -> CustodyKey | None:
    """Return the newest key of custody that the keyset lists as valid; None when it lists none."""
    return next((key for key in reversed(keys) if key.key_id in listed), None)

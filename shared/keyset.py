"""The root-signed list of keys: which key may sign what, from when until when. Holds public keys only.

Who holds a keyset decides with it and with the time passed in; where it is kept and relayed is others'
business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared.canonical import JsonObject, canonical_json, parse_canonical
from shared.dsse import KEYSET_TYPE, MAX_ENVELOPE_BYTES, sign_envelope, verify_envelope
from shared.errors import (
    InvalidInputError,
    KeyFormatError,
    KeyRevokedError,
    MalformedError,
    RollbackError,
    UnknownKeyError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.fields import Fields, time_to_text
from shared.ids import KeyId
from shared.signatures import Algorithm, PublicKey, Signer

FORMAT: Final = "agentfactory.keyset.v1"
MAX_ENTRIES: Final = 256
MAX_INSTALLATION_CHARS: Final = 64


class KeyPurpose(StrEnum):
    """What a key of the keyset may sign. A key listed for one purpose is unknown for every other."""

    ORDER = "order"
    PUBLISHER = "publisher"
    POLICY = "policy"
    LOG = "log"
    COMPILER = "compiler"
    FRESHNESS = "freshness"


_ALGORITHMS: Final[Mapping[KeyPurpose, frozenset[Algorithm]]] = {
    KeyPurpose.ORDER: frozenset({Algorithm.RSA_PKCS1_SHA256}),
    KeyPurpose.PUBLISHER: frozenset({Algorithm.RSA_PKCS1_SHA256}),
    KeyPurpose.POLICY: frozenset(Algorithm),
    KeyPurpose.LOG: frozenset({Algorithm.ED25519}),
    KeyPurpose.COMPILER: frozenset(Algorithm),
    KeyPurpose.FRESHNESS: frozenset(Algorithm),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysetEntry:
    """One key for one purpose."""

    purpose: KeyPurpose
    key: PublicKey
    not_before: datetime
    not_after: datetime
    """First moment at which it is no longer valid."""
    revoked_at: datetime | None = None
    revoked_log_position: int | None = None
    """Signatures integrated into the log before this position stay valid."""

    def __post_init__(self) -> None:
        if self.key.algorithm not in _ALGORITHMS[self.purpose]:
            raise InvalidInputError(f"a {self.key.algorithm} key is not accepted for purpose {self.purpose}")
        if self.not_before >= self.not_after:
            raise InvalidInputError(f"key {self.key.key_id} ends before it begins")
        if self.revoked_log_position is not None and self.revoked_at is None:
            raise InvalidInputError(f"key {self.key.key_id} has a revocation position and no revocation")

    @property
    def key_id(self) -> KeyId:
        """Id of the key."""
        return self.key.key_id

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm of the key."""
        return self.key.algorithm

    def is_valid(self, at: datetime) -> bool:
        """Whether a signature made at this time counts."""
        return self.not_before <= at < self.not_after and not self.is_revoked(at)

    def is_revoked(self, at: datetime) -> bool:
        """Whether the key is revoked at this time."""
        return self.revoked_at is not None and at >= self.revoked_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyset:
    """All keys of one installation, as of one version. Versions only grow."""

    version: int
    installation: str
    epoch: int
    root_key_id: KeyId
    """The root key that signs this keyset."""
    issued_at: datetime
    entries: tuple[KeysetEntry, ...]

    def __post_init__(self) -> None:
        if self.version < 1 or self.epoch < 1:
            raise InvalidInputError(f"keyset version {self.version} and epoch {self.epoch} start at 1")
        if not 1 <= len(self.installation) <= MAX_INSTALLATION_CHARS:
            raise InvalidInputError(f"installation name has {len(self.installation)} characters")
        if len(self.entries) > MAX_ENTRIES:
            raise InvalidInputError(f"keyset has {len(self.entries)} keys, the bound is {MAX_ENTRIES}")
        if len({(entry.purpose, entry.key_id) for entry in self.entries}) != len(self.entries):
            raise InvalidInputError("keyset lists a key twice for one purpose")

    def keys_for(self, purpose: KeyPurpose, at: datetime) -> dict[KeyId, PublicKey]:
        """Return the keys whose signature of this kind, made at this time, counts."""
        return {
            entry.key_id: entry.key
            for entry in self.entries
            if entry.purpose is purpose and entry.is_valid(at)
        }

    def require(self, purpose: KeyPurpose, key_id: KeyId, at: datetime) -> PublicKey:
        """Return one key, or say why its signatures do not count.

        Raises:
            UnknownKeyError: It is not listed for this purpose, not valid yet or not valid any more.
            KeyRevokedError: It is revoked.
        """
        entry = next(
            (entry for entry in self.entries if entry.purpose is purpose and entry.key_id == key_id), None
        )
        if entry is None:
            raise UnknownKeyError(f"key {key_id} is not in keyset {self.version} for purpose {purpose}")
        if entry.is_revoked(at):
            raise KeyRevokedError(f"key {key_id} ({purpose}) is revoked since {entry.revoked_at}")
        if not entry.is_valid(at):
            raise UnknownKeyError(
                f"key {key_id} ({purpose}) is valid {entry.not_before} to {entry.not_after}"
            )
        return entry.key


def encode_keyset(keyset: Keyset) -> bytes:
    """Return the canonical JSON that the root key signs."""
    return canonical_json(
        {
            "type": FORMAT,
            "version": keyset.version,
            "installation": keyset.installation,
            "epoch": keyset.epoch,
            "root_key_id": keyset.root_key_id,
            "issued_at": time_to_text(keyset.issued_at),
            "keys": [_encode_entry(entry) for entry in keyset.entries],
        }
    )


async def sign_keyset(keyset: Keyset, root_signers: Sequence[Signer]) -> bytes:
    """Return the DSSE envelope of a keyset. The key named by `root_key_id` must be among the signers.

    Raises:
        KeyUnavailableError: A custodian does not answer.
    """
    return await sign_envelope(KEYSET_TYPE, encode_keyset(keyset), root_signers)


def verify_keyset(
    envelope: bytes,
    *,
    root_keys: Mapping[KeyId, PublicKey],
    minimum_version: int,
    installation: str | None = None,
) -> Keyset:
    """Return the keyset if, and only if, every check passes.

    1. A pinned root key signed the exact bytes (`verify_envelope`).
    2. The bytes are a canonical keyset of this format, without unknown fields.
    3. The root key that it names is one that signed it.
    4. It is of this installation; None, at first contact, takes any.
    5. Its version is not below `minimum_version`, the highest one seen.
    6. Every key is well formed, of an algorithm allowed for its purpose, and has the id of its own bytes.

    A second keyset of the *same* version must be byte-equal to the first; only the caller holds the first.

    Raises:
        MalformedError: Checks 1, 2 and 6.
        UnsignedError: Check 1, as do UnknownKeyError, SignatureInvalidError and PayloadTypeError.
        UnknownFieldError: Checks 1 and 2.
        UnsupportedVersionError: Check 2, the format is of another version.
        VerificationError: Checks 3 and 4.
        RollbackError: Check 5.
    """
    verified = verify_envelope(envelope, payload_type=KEYSET_TYPE, keys=root_keys)
    keyset = decode_keyset(verified.payload)
    if keyset.root_key_id not in verified.key_ids:
        raise VerificationError(f"check 3: keyset names root key {keyset.root_key_id}, which did not sign it")
    if installation is not None and keyset.installation != installation:
        raise VerificationError(
            f"check 4: keyset is of installation {keyset.installation!r}, expected {installation!r}"
        )
    if keyset.version < minimum_version:
        raise RollbackError(f"check 5: keyset version {keyset.version} is older than {minimum_version}")
    return keyset


def _encode_entry(entry: KeysetEntry) -> JsonObject:
    encoded: JsonObject = {
        "key_id": entry.key_id,
        "purpose": entry.purpose,
        "algorithm": entry.algorithm,
        "spki_pem": entry.key.to_pem().decode("ascii"),
        "not_before": time_to_text(entry.not_before),
        "not_after": time_to_text(entry.not_after),
    }
    if entry.revoked_at is not None:
        encoded["revoked_at"] = time_to_text(entry.revoked_at)
    if entry.revoked_log_position is not None:
        encoded["revoked_log_position"] = entry.revoked_log_position
    return encoded


def decode_keyset(payload: bytes) -> Keyset:
    """Return what a payload says, verifying no signature: for `verify_keyset`, and before the root signs it.

    Raises:
        MalformedError, UnknownFieldError, UnsupportedVersionError: As checks 2 and 6 of `verify_keyset`.
    """
    fields = Fields(parse_canonical(payload, max_bytes=MAX_ENVELOPE_BYTES), "keyset")
    found = fields.text("type")
    if found != FORMAT:
        raise UnsupportedVersionError(
            f"check 2: keyset format is {found[:64]!r}, this build reads {FORMAT!r}"
        )
    try:
        keyset = Keyset(
            version=fields.integer("version", minimum=1),
            installation=fields.text("installation", max_chars=MAX_INSTALLATION_CHARS),
            epoch=fields.integer("epoch", minimum=1),
            root_key_id=KeyId(fields.digest("root_key_id")),
            issued_at=fields.time("issued_at"),
            entries=tuple(_decode_entry(entry) for entry in fields.children("keys", max_items=MAX_ENTRIES)),
        )
    except (InvalidInputError, KeyFormatError) as error:
        raise MalformedError(f"check 6: {error}") from error
    fields.end()
    return keyset


def _decode_entry(fields: Fields) -> KeysetEntry:
    key_id = KeyId(fields.digest("key_id"))
    try:
        purpose = KeyPurpose(fields.text("purpose"))
        algorithm = Algorithm(fields.text("algorithm"))
    except ValueError as error:
        raise MalformedError(f"check 6: key {key_id}: {error}") from error
    key = PublicKey.from_pem(fields.text("spki_pem", max_chars=16 * 1024).encode())
    if (key.key_id, key.algorithm) != (key_id, algorithm):
        raise MalformedError(
            f"check 6: key listed as {key_id} ({algorithm}) is {key.key_id} ({key.algorithm})"
        )
    entry = KeysetEntry(
        purpose=purpose,
        key=key,
        not_before=fields.time("not_before"),
        not_after=fields.time("not_after"),
        revoked_at=fields.time("revoked_at") if fields.has("revoked_at") else None,
        revoked_log_position=fields.integer("revoked_log_position")
        if fields.has("revoked_log_position")
        else None,
    )
    fields.end()
    return entry

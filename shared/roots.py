"""How root key N hands over to root key N+1, and how a keyset travels with that chain (design rule 12).

Owns the statement of the handover and the form in which a keyset is relayed. Pins nothing and keeps nothing:
who verifies holds the root that it believes, and keeps what it has followed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shared.canonical import canonical_json, parse_canonical, parse_strict
from shared.dsse import MAX_ENVELOPE_BYTES, decode_envelope, sign_envelope, verify_envelope
from shared.errors import (
    InvalidInputError,
    KeyFormatError,
    MalformedError,
    RollbackError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.fields import Fields, time_to_text
from shared.ids import KeyId
from shared.keyset import MAX_INSTALLATION_CHARS, Keyset, verify_keyset
from shared.signatures import MAX_PEM_BYTES, PublicKey, Signer

HANDOVER_FORMAT: Final = "agentfactory.root-handover.v1"
HANDOVER_TYPE: Final = "application/vnd.agentfactory.root-handover.v1+json"
RELAYED_FORMAT: Final = "agentfactory.relayed-keyset.v1"
MAX_HANDOVER_BYTES: Final = 16 * 1024
MAX_HANDOVERS: Final = 16
"""After so many, nodes need a `trust.json` that pins a later root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """From now on this root key signs the installation's keysets, and the older one none any more."""

    installation: str
    old_root_key_id: KeyId
    new_root: PublicKey
    issued_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayedKeyset:
    """The envelope of a keyset, and the envelopes that lead to its root, the oldest first."""

    envelope: bytes
    handovers: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if len(self.handovers) > MAX_HANDOVERS:
            raise InvalidInputError(
                f"{len(self.handovers)} root keys in a row, the bound is {MAX_HANDOVERS}",
                hint="give every node a trust.json that pins the root in force, and replace the root",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RootedKeyset:
    """A keyset that verified, and from where."""

    keyset: Keyset
    root_keys: Mapping[KeyId, PublicKey]
    """What is believed from now on: the last root of the chain, or the same keys when none was followed."""
    relayed: RelayedKeyset
    """How it is kept and passed on: with every handover that led here, so that it can be verified again."""
    followed: tuple[bytes, ...]
    """The handovers from what was believed before to `root_keys`."""

    @property
    def root(self) -> PublicKey:
        """The root key that signed it."""
        return self.root_keys[self.keyset.root_key_id]


async def sign_handover(handover: Handover, *, old: Signer, new: Signer) -> bytes:
    """Return the envelope, signed by both: nobody hands over to a key that nobody has.

    Raises:
        KeyUnavailableError: A custodian does not answer.
    """
    payload = canonical_json(
        {
            "type": HANDOVER_FORMAT,
            "installation": handover.installation,
            "old_root_key_id": handover.old_root_key_id,
            "new_root_key_id": handover.new_root.key_id,
            "new_root_key_pem": handover.new_root.to_pem().decode("ascii"),
            "issued_at": time_to_text(handover.issued_at),
        }
    )
    return await sign_envelope(HANDOVER_TYPE, payload, [old, new])


def encode_relayed(relayed: RelayedKeyset) -> bytes:
    """Return the bytes that travel; without a handover they are the keyset's envelope itself."""
    if not relayed.handovers:
        return relayed.envelope
    return canonical_json(
        {
            "type": RELAYED_FORMAT,
            "handovers": [one.decode("ascii") for one in relayed.handovers],
            "keyset": relayed.envelope.decode("ascii"),
        }
    )


def decode_relayed(data: bytes) -> RelayedKeyset:
    """Return the parts, verifying nothing.

    Raises:
        MalformedError: It is no JSON object within the bound of a keyset, or not in its one form.
        UnknownFieldError: It carries a field that is not known.
        UnsupportedVersionError: It is of another version.
    """
    document = parse_strict(data, max_bytes=MAX_ENVELOPE_BYTES)
    if "payloadType" in document:
        return RelayedKeyset(envelope=data)
    fields = Fields(document, "relayed keyset")
    if (found := fields.text("type")) != RELAYED_FORMAT:
        raise UnsupportedVersionError(f"{found[:64]!r} is neither a keyset nor {RELAYED_FORMAT!r}")
    handovers = fields.texts("handovers", max_items=MAX_HANDOVERS, max_chars=MAX_HANDOVER_BYTES)
    envelope = fields.text("keyset", max_chars=MAX_ENVELOPE_BYTES)
    fields.end()
    try:
        relayed = RelayedKeyset(
            envelope=envelope.encode("ascii"), handovers=tuple(one.encode("ascii") for one in handovers)
        )
    except UnicodeEncodeError as error:
        raise MalformedError("an envelope holds more than ASCII") from error
    if encode_relayed(relayed) != data:
        raise MalformedError("a relayed keyset is not in its one form")
    return relayed


def verify_relayed(
    data: bytes,
    *,
    root_keys: Mapping[KeyId, PublicKey],
    minimum_version: int,
    installation: str | None = None,
    held: Sequence[bytes] = (),
) -> RootedKeyset:
    """Return a keyset by a root that is believed, or by one to which such a root has handed over.

    `held` are the handovers that led to the believed root; the data need not repeat them.

    1. The parts are in their one form (`decode_relayed`).
    2. Handovers lead from a believed root to the next, none left out and none back (`_follow`). Those before
       the believed root are passed over: all that they say is which keys do not come back.
    3. The last root signed the keyset, and `verify_keyset` holds for it. An earlier one counts no more.
    4. The handovers are of the keyset's installation.

    Raises:
        VerificationError: Checks 2 to 4, as its kinds that `verify_keyset` names; MalformedError: check 1.
        RollbackError: A chain leads back to an earlier root, or the keyset is older than the newest one seen.
    """
    offered = decode_relayed(data)
    believed, followed = _follow(offered.handovers, root_keys, held)
    keyset = verify_keyset(
        offered.envelope, root_keys=believed, minimum_version=minimum_version, installation=installation
    )
    for handover in followed.values():
        if handover.installation != keyset.installation:
            raise VerificationError(
                f"check 4: a root key was handed over in installation {handover.installation!r},"
                f" the keyset is of {keyset.installation!r}"
            )
    try:
        chain = (*held, *followed) if held else offered.handovers
        relayed = RelayedKeyset(envelope=offered.envelope, handovers=chain)
    except InvalidInputError as error:
        raise VerificationError(f"check 2: {error}", hint=error.hint) from error
    return RootedKeyset(keyset=keyset, root_keys=believed, relayed=relayed, followed=tuple(followed))


def _follow(
    envelopes: Sequence[bytes], pinned: Mapping[KeyId, PublicKey], held: Sequence[bytes]
) -> tuple[Mapping[KeyId, PublicKey], dict[bytes, Handover]]:
    """Return the root that counts at the end, and the handovers by which it was reached."""
    believed, passed = dict(pinned), set(pinned).union(*map(_signers, held))
    followed: dict[bytes, Handover] = {}
    for envelope in envelopes:
        signers = _signers(envelope)
        if not followed and signers.isdisjoint(believed):
            passed |= signers
            continue
        handover = _verify_handover(envelope, believed)
        new = handover.new_root
        if not followed and new.key_id in believed:
            passed |= signers
            continue
        if new.key_id in passed:
            raise RollbackError(f"check 2: root key {new.key_id} has handed over, and does not come back")
        believed = {new.key_id: new}
        passed.add(new.key_id)
        followed[envelope] = handover
    return believed, followed


def _signers(envelope: bytes) -> set[KeyId]:
    """Return who claims to have signed: the root that hands over, and the one that takes over."""
    return {one.key_id for one in decode_envelope(envelope, max_bytes=MAX_HANDOVER_BYTES).signatures}


def _verify_handover(envelope: bytes, believed: Mapping[KeyId, PublicKey]) -> Handover:
    verified = verify_envelope(
        envelope, payload_type=HANDOVER_TYPE, keys=believed, max_bytes=MAX_HANDOVER_BYTES
    )
    handover = _decode_handover(verified.payload)
    new = handover.new_root
    if handover.old_root_key_id not in verified.key_ids and new.key_id not in verified.key_ids:
        raise VerificationError(
            f"check 2: a handover of root key {handover.old_root_key_id} is not signed by it"
        )
    # By the new one too: whoever hands over to a key that nobody has would end the installation.
    verify_envelope(
        envelope, payload_type=HANDOVER_TYPE, keys={new.key_id: new}, max_bytes=MAX_HANDOVER_BYTES
    )
    return handover


def _decode_handover(payload: bytes) -> Handover:
    fields = Fields(parse_canonical(payload, max_bytes=MAX_HANDOVER_BYTES), "root handover")
    if (found := fields.text("type")) != HANDOVER_FORMAT:
        raise UnsupportedVersionError(f"root handover is of format {found[:64]!r}, not {HANDOVER_FORMAT!r}")
    try:
        new_root = PublicKey.from_pem(fields.text("new_root_key_pem", max_chars=MAX_PEM_BYTES).encode())
    except KeyFormatError as error:
        raise MalformedError(f"root handover: {error}") from error
    handover = Handover(
        installation=fields.text("installation", max_chars=MAX_INSTALLATION_CHARS),
        old_root_key_id=KeyId(fields.digest("old_root_key_id")),
        new_root=new_root,
        issued_at=fields.time("issued_at"),
    )
    if KeyId(fields.digest("new_root_key_id")) != new_root.key_id:
        raise MalformedError("root handover: the new root's key is not the one of its id")
    fields.end()
    return handover

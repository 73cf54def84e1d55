"""Whom a verifier of receipts trusts: root keys, logs, witnesses. Owns the file that says so.

It must come by another way than the receipt: whoever made both could make both say anything.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.canonical import parse_strict
from shared.checkpoints import COSIGNATURE, ED25519, VerifierKey, parse_verifier_key
from shared.errors import InvalidInputError, KeyFormatError, MalformedError, NotFoundError
from shared.fields import Fields
from shared.ids import KeyId
from shared.keyset import MAX_INSTALLATION_CHARS
from shared.signatures import MAX_PEM_BYTES, PublicKey
from shared.trust import FORMAT as NODE_TRUST_FORMAT

FORMAT: Final = "agentfactory.receipt-trust.v1"
MAX_TRUST_BYTES: Final = 256 * 1024
MAX_ROOT_KEYS: Final = 8
MAX_LOGS: Final = 64
MAX_WITNESSES: Final = 32
MAX_VERIFIER_KEY_CHARS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptTrust:
    """What is believed before anything is read."""

    installation: str
    root_keys: tuple[PublicKey, ...]
    """Each alone may sign keysets."""
    minimum_keyset_version: int = 1
    """Older keysets are refused: they may lack a revocation that is known by now."""
    logs: tuple[VerifierKey, ...] = ()
    """Which logs, under which keys; none: the log keys of the keyset, for the installation's own log."""
    witnesses: tuple[VerifierKey, ...] = ()
    quorum: int = 0
    """So many witnesses must have cosigned the checkpoint."""

    def __post_init__(self) -> None:
        """Refuse what could never hold, or would hold too easily.

        Raises:
            InvalidInputError: There is no root key, a verifier key is of the wrong kind, one witness is named
                twice, or the quorum is more than there are witnesses.
        """
        names = {one.name for one in self.witnesses}
        keys = {one.public.key_id for one in self.witnesses}
        kinds = ({one.kind for one in self.logs}, {one.kind for one in self.witnesses})
        if not self.root_keys:
            raise InvalidInputError("no root key is trusted")
        if not kinds[0] <= {ED25519} or not kinds[1] <= {COSIGNATURE}:
            raise InvalidInputError("a log's verifier key is of type 0x01, a witness' of type 0x04")
        if len(names) != len(self.witnesses) or len(keys) != len(self.witnesses):
            raise InvalidInputError("a witness is named twice: two names or keys of one count once")
        if not 0 <= self.quorum <= len(self.witnesses) or self.minimum_keyset_version < 1:
            raise InvalidInputError(f"a quorum of {self.quorum} of {len(self.witnesses)} witnesses")

    @property
    def roots(self) -> Mapping[KeyId, PublicKey]:
        """As `verify_keyset` takes them."""
        return {key.key_id: key for key in self.root_keys}


def encode_receipt_trust(trust: ReceiptTrust) -> bytes:
    """Return the file's content, for people to read."""
    document = {
        "type": FORMAT,
        "installation": trust.installation,
        "root_keys": [key.to_pem().decode("ascii") for key in trust.root_keys],
        "minimum_keyset_version": trust.minimum_keyset_version,
        "logs": [one.text for one in trust.logs],
        "witnesses": [one.text for one in trust.witnesses],
        "quorum": trust.quorum,
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def parse_receipt_trust(data: bytes) -> ReceiptTrust:
    """Return what a trust file says.

    Raises:
        MalformedError: It is not a file of this format, or could trust nothing.
        UnknownFieldError: It carries a field that is not known.
    """
    said = Fields(parse_strict(data, max_bytes=MAX_TRUST_BYTES), "trust file")
    if (found := said.text("type")) != FORMAT:
        hint = "write one with: agentfactory trust export" if found == NODE_TRUST_FORMAT else None
        raise MalformedError(f"the trust file is of format {found[:64]!r}, not {FORMAT!r}", hint=hint)
    try:
        trust = ReceiptTrust(
            installation=said.text("installation", max_chars=MAX_INSTALLATION_CHARS),
            root_keys=tuple(
                PublicKey.from_pem(pem.encode())
                for pem in said.texts("root_keys", max_items=MAX_ROOT_KEYS, max_chars=MAX_PEM_BYTES)
            ),
            minimum_keyset_version=said.integer("minimum_keyset_version", minimum=1),
            logs=_verifiers(said, "logs", MAX_LOGS),
            witnesses=_verifiers(said, "witnesses", MAX_WITNESSES),
            quorum=said.integer("quorum", maximum=MAX_WITNESSES),
        )
    except (InvalidInputError, KeyFormatError) as error:
        raise MalformedError(f"trust file: {error}") from error
    said.end()
    return trust


def read_receipt_trust(path: Path) -> ReceiptTrust:
    """Return what the file at `path` says.

    Raises:
        NotFoundError: It cannot be read.
        MalformedError, UnknownFieldError: As `parse_receipt_trust`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_BYTES + 1)
    except OSError as error:
        raise NotFoundError(
            f"cannot read the trust file {path}: {error.strerror}",
            hint="get it from the operator by another way than the receipt: agentfactory trust export",
        ) from error
    return parse_receipt_trust(data)


def _verifiers(said: Fields, name: str, most: int) -> tuple[VerifierKey, ...]:
    texts = said.texts(name, max_items=most, max_chars=MAX_VERIFIER_KEY_CHARS)
    return tuple(parse_verifier_key(text) for text in texts)

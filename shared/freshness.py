"""A short-lived statement that a keyset is still the newest one, signed by a delegated key of the keyset.

Made where the order key is not: whoever holds the control plane cannot make a node go on with an old keyset
for longer than a statement lives. Knows no clock and keeps nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shared.canonical import canonical_json, parse_canonical
from shared.dsse import sign_envelope, verify_envelope
from shared.errors import UnsupportedVersionError, VerificationError
from shared.fields import Fields, time_to_text
from shared.ids import InstallationId, KeyId
from shared.signatures import PublicKey, Signer

FORMAT: Final = "agentfactory.freshness.v1"
FRESHNESS_TYPE: Final = "application/vnd.agentfactory.freshness.v1+json"
MAX_STATEMENT_BYTES: Final = 8 * 1024
MAX_INSTALLATION_CHARS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshnessStatement:
    """At this moment no keyset was newer than this version."""

    installation: InstallationId
    keyset_version: int
    issued_at: datetime


async def sign_statement(statement: FreshnessStatement, signer: Signer) -> bytes:
    """Return the envelope of a statement.

    Raises:
        KeyUnavailableError: The key's custodian does not answer.
    """
    payload = canonical_json(
        {
            "type": FORMAT,
            "installation": statement.installation,
            "keyset_version": statement.keyset_version,
            "issued_at": time_to_text(statement.issued_at),
        }
    )
    return await sign_envelope(FRESHNESS_TYPE, payload, [signer])


def verify_statement(
    envelope: bytes, *, keys: Mapping[KeyId, PublicKey], installation: str
) -> FreshnessStatement:
    """Return the statement if, and only if, every check passes.

    1. A freshness key of the keyset signed the exact bytes (`verify_envelope`), which are within the bound.
    2. They are a canonical statement of this format, without unknown fields.
    3. It is of this installation.

    Whether it is newer than the last one and new enough is the caller's to check.

    Raises:
        VerificationError: A check failed; the class says which kind, the message the number.
        UnsupportedVersionError: Check 2, the format is of another version.
    """
    verified = verify_envelope(
        envelope, payload_type=FRESHNESS_TYPE, keys=keys, max_bytes=MAX_STATEMENT_BYTES
    )
    fields = Fields(parse_canonical(verified.payload, max_bytes=MAX_STATEMENT_BYTES), "freshness statement")
    if (found := fields.text("type")) != FORMAT:
        raise UnsupportedVersionError(f"check 2: format is {found[:64]!r}, this build reads {FORMAT!r}")
    statement = FreshnessStatement(
        installation=InstallationId(fields.text("installation", max_chars=MAX_INSTALLATION_CHARS)),
        keyset_version=fields.integer("keyset_version", minimum=1),
        issued_at=fields.time("issued_at"),
    )
    fields.end()
    if statement.installation != installation:
        raise VerificationError(
            f"check 3: statement is of installation {statement.installation!r}, expected {installation!r}"
        )
    return statement

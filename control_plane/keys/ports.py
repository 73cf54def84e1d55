"""What the control plane needs from whoever keeps its keys, and from its database about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.installation.ports import SigningKey, StoredKeyset
from control_plane.keys.domain import CustodyKey
from shared.keyset import KeyPurpose
from shared.signatures import Signature


class KeyCustody(Protocol):
    """Keeps the private keys of the control plane and signs with them; gives none away.

    Two implementations, one contract: files for development, Vault or OpenBao for everything else.
    """

    async def keys(self, purpose: KeyPurpose) -> Sequence[CustodyKey]:
        """Return the keys of a purpose, oldest first; none when there is none.

        Raises:
            KeyUnavailableError: The custodian does not answer, or refuses.
            InvalidInputError: Keys of this purpose are not kept here.
        """

    async def create(self, purpose: KeyPurpose) -> CustodyKey:
        """Make one more key of a purpose, of an algorithm that its purpose allows.

        Raises:
            KeyUnavailableError, InvalidInputError: As `keys`.
        """

    async def sign(self, key: CustodyKey, data: bytes) -> Signature:
        """Sign exactly `data` with this key.

        Raises:
            KeyUnavailableError: The custodian does not answer, refuses, does not hold the key any more, or
                answered with what is no signature of this key.
        """

    async def check(self) -> None:
        """Return when the custodian would sign now.

        Raises:
            KeyUnavailableError: It would not; the message says why.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStatement:
    """The newest statement of freshness as it is stored: verified when it came."""

    envelope: bytes
    issued_at: datetime


class KeyStore(Protocol):
    """Keeps keysets, public keys and the newest statement of freshness, in the caller's transaction."""

    async def newest_keyset(self, tx: Transaction) -> StoredKeyset | None:
        """Return the keyset of the highest version."""

    async def add_keyset(self, tx: Transaction, keyset: StoredKeyset) -> None:
        """Store a keyset and tell every replica once it is committed.

        Raises:
            ConflictError: Its version exists: somebody else was first.
        """

    async def add_key(self, tx: Transaction, key: SigningKey) -> None:
        """Store a public key; what is there stays."""

    async def newest_statement(self, tx: Transaction) -> StoredStatement | None:
        """Return the newest statement of freshness."""

    async def put_statement(self, tx: Transaction, statement: StoredStatement) -> bool:
        """Store a statement, unless a newer one is there; returns whether it was stored."""


class Signing(Protocol):
    """What signs orders on this replica."""

    @property
    def key(self) -> CustodyKey | None:
        """The key; None: nothing may sign now."""


class Acknowledgements(Protocol):
    """What the live sessions of this replica have said about keysets."""

    def acknowledged(self) -> int | None:
        """Return the lowest keyset version that a live session has in force; None without sessions."""


class KeyObserver(Protocol):
    """Counts what happens with keys; implemented by the metrics. Every method is cheap and never raises."""

    def custody(self, operation: str, seconds: float, problem: str) -> None:
        """The custodian was asked to ``sign``, ``list``, ``create`` or ``check``; no `problem`: it did."""

    def signs_with(self, key: CustodyKey, since: datetime) -> None:
        """Orders are signed with this key from now on; it counts since then."""

    def keyset(self, version: int) -> None:
        """This keyset is the newest."""

    def statement(self, issued_at: datetime) -> None:
        """This is when the newest statement of freshness was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate this installation has issued."""

    spiffe_id: str
    serial: str
    """Lower-case hexadecimal."""
    chain_der: tuple[bytes, ...]
    """Leaf first; the authority itself is last."""
    expires_at: datetime


class CertificateAuthority(Protocol):
    """Issues the identities of nodes, services and callers."""

    async def issue(self, csr_der: bytes, *, spiffe_id: str, ttl: timedelta) -> IssuedCertificate:
        """Return a client certificate for the key in a PKCS#10 request; its names are ignored.

        Raises:
            InvalidInputError: The request does not decode, is not signed by its own key, or its key is
                refused.
            KeyUnavailableError: The authority does not answer.
        """

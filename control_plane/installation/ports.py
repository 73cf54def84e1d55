"""What the birth of an installation needs from the database."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from control_plane.database.ports import Transaction
from shared.ids import InstallationId, KeyId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKeyset:
    """A keyset as it is stored: not verified."""

    version: int
    envelope: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A public key that the installation signs or verifies with."""

    key_id: KeyId
    purpose: str
    spki_der: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundInstallation:
    """What the database says it belongs to."""

    installation: InstallationId
    epoch: int
    """Grows with every restore from a backup (rule 16)."""


class InstallationStore(Protocol):
    """Keeps what an installation is, in the caller's transaction; repeating a write is harmless."""

    async def found(self, tx: Transaction) -> FoundInstallation | None:
        """Return the installation in this database."""

    async def create(self, tx: Transaction, installation: InstallationId, tenant_id: TenantId) -> None:
        """Store the installation and its first tenant; what is there stays."""

    async def bind_role(self, tx: Transaction, *, tenant_id: TenantId, identity: str, role: str) -> None:
        """Give an identity a role; what is there stays."""

    async def add_bootstrap_secret(
        self, tx: Transaction, *, tenant_id: TenantId, secret_hash: str, expires_at: datetime
    ) -> None:
        """Store the hash of a one-time secret that makes its bearer an administrator."""

    async def add_key(self, tx: Transaction, key: SigningKey) -> None:
        """Store a public key; what is there stays."""

    async def newest_keyset(self, tx: Transaction) -> StoredKeyset | None:
        """Return the keyset of the highest version."""

    async def add_keyset(self, tx: Transaction, keyset: StoredKeyset) -> None:
        """Store a keyset.

        Raises:
            ConflictError: Its version exists: somebody else was first.
        """

    async def set_service_password(self, tx: Transaction, verifier: str) -> None:
        """Set the password of the service's role, given as what Postgres keeps of it (`scram.py`)."""

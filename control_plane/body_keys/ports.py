"""What keys of bodies need from their custodian and from the database."""

from collections.abc import Collection, Mapping
from typing import Protocol

from control_plane.body_keys.domain import BodyKey, BodyKeyId, Erasure
from control_plane.database.ports import Transaction
from shared.ids import TenantId


class KeyWrapping(Protocol):
    """Keeps a key-encryption key for each name and gives none away.

    Two implementations, one contract: files for development, transit of Vault or OpenBao for everything else.
    """

    async def prepare(self, name: str) -> None:
        """Make the key-encryption key unless it is there.

        Raises:
            KeyUnavailableError: The custodian does not answer, or refuses.
        """

    async def wrap(self, name: str, key_id: BodyKeyId, key: bytes) -> bytes:
        """Encrypt a data key, bound to its id.

        Raises:
            KeyUnavailableError: As `prepare`; or there is no such key-encryption key.
        """

    async def unwrap(self, name: str, key_id: BodyKeyId, wrapped: bytes) -> bytes:
        """Return a data key.

        Raises:
            KeyUnavailableError: As `wrap`; or what is wrapped is not the key of this id.
        """

    async def destroy(self, name: str) -> None:
        """Destroy the key-encryption key for good; one that is not there is destroyed.

        Raises:
            KeyUnavailableError: As `prepare`.
        """


class BodyKeyStore(Protocol):
    """The data keys, wrapped. Every method raises DatabaseUnavailableError when Postgres is away."""

    async def active(self) -> Mapping[TenantId, BodyKeyId | None]:
        """Return the tenants whose bodies are encrypted, each with its newest key; None: it has none."""

    async def destroyed(self, key_ids: Collection[BodyKeyId]) -> frozenset[BodyKeyId]:
        """Return those of these keys that are destroyed."""

    async def find(self, key_id: BodyKeyId) -> BodyKey | None:
        """Return a key, whoever's it is."""

    async def has_newest(self, tenant_id: TenantId) -> bool:
        """Whether the tenant has a key for new bodies."""

    async def generation(self, tenant_id: TenantId) -> int:
        """Return which generation of the tenant's key-encryption key is in use.

        Raises:
            NotFoundError: There is no such tenant.
        """

    async def add(self, tx: Transaction, key: BodyKey) -> None:
        """Make a key the tenant's newest; the one before seals nothing any more.

        Raises:
            ConflictError: The tenant's keys were erased meanwhile.
        """

    async def has_live_executions(self, tx: Transaction, tenant_id: TenantId) -> bool:
        """Whether an execution of the tenant has not ended."""

    async def destroy(self, tx: Transaction, tenant_id: TenantId) -> Erasure:
        """Forget all keys of a tenant and begin another generation; without keys nothing changes.

        Raises:
            NotFoundError: There is no such tenant.
        """

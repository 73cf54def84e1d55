"""What access needs from the outside."""

from collections.abc import Collection, Sequence
from typing import Protocol

from control_plane.access.domain import Bound, Grant, RoleBinding, Tenant
from control_plane.database.ports import Transaction
from shared.ids import TenantId
from shared.rpc.identity import Principal


class GrantStore(Protocol):
    """Knows what identities hold."""

    async def node(self, node_id: str) -> Grant | None:
        """Return what an enrolled node holds. None: it is unknown.

        Raises:
            DatabaseUnavailableError: It cannot be read now.
        """

    async def bound(self, subjects: Collection[str]) -> Bound:
        """Return the roles that an identity and its groups hold together, by tenant.

        Raises:
            DatabaseUnavailableError: It cannot be read now.
        """

    async def home(self, identity: str) -> TenantId | None:
        """Return where its calls count that choose no tenant. None: there was no such call yet.

        Raises:
            DatabaseUnavailableError: It cannot be read now.
        """

    async def settle(self, identity: str, tenant_id: TenantId) -> None:
        """Make a tenant the home of an identity that has none.

        Raises:
            DatabaseUnavailableError: It cannot be written now.
        """


class TokenVerifier(Protocol):
    """Knows whose tokens count."""

    async def verify(self, token: str) -> Principal:
        """Return who a token says that its bearer is.

        Raises:
            UnauthenticatedError: It does not verify, for whatever reason. The message holds nothing of it.
        """


class DenialLog(Protocol):
    """Where refusals go; the audit store of control_plane/audit behind it."""

    async def denied(self, *, actor: str, known: bool, tenant_id: TenantId, method: str, reason: str) -> None:
        """Record one refused call. `known` says that the identity is one of this installation's."""


class BreakGlassLog(Protocol):
    """Makes noise when somebody gets in without a binding."""

    async def used(self, principal: Principal, *, tenant_id: TenantId, method: str) -> None:
        """Record and announce one call.

        Raises:
            DatabaseUnavailableError: It could not be recorded; nobody gets in.
        """


class GrantMemory(Protocol):
    """What this replica remembers of who holds what."""

    def forget(self) -> None:
        """Look everybody up again: a binding changed here. Other replicas notice within a second."""


class BindingStore(Protocol):
    """Keeps role bindings, in the caller's transaction."""

    async def add_binding(self, tx: Transaction, binding: RoleBinding) -> bool:
        """Store a binding; False: it was there.

        Raises:
            NotFoundError: There is no such tenant.
        """

    async def bindings(
        self, tx: Transaction, tenant_id: TenantId, subjects: Collection[str]
    ) -> Sequence[RoleBinding]:
        """Return what these identities and groups hold in a tenant, by identity and role."""

    async def list_bindings(
        self, tx: Transaction, tenant_id: TenantId, *, identity: str, after: tuple[str, str], limit: int
    ) -> Sequence[RoleBinding]:
        """Return bindings behind `after` (identity, role), in this order; of one identity if it is named."""

    async def remove_binding(self, tx: Transaction, binding: RoleBinding) -> bool:
        """Remove a binding; False: there is none."""

    async def lock_administrators(self, tx: Transaction, tenant_id: TenantId) -> Collection[str]:
        """Return the identities, not groups, that are administrators; nobody else changes them meanwhile."""


class BodyKeys(Protocol):
    """The keys of tenants' bodies. Implemented by control_plane/body_keys."""

    async def ensure(self, tenant_id: TenantId, *, actor: str) -> None:
        """Make a key for new bodies unless there is one.

        Raises:
            NotFoundError: There is no such tenant.
            KeyUnavailableError: The custodian does not answer, or refuses.
        """

    async def rotate(self, tenant_id: TenantId, *, actor: str) -> str:
        """Make another key for new bodies; returns its id.

        Raises:
            NotFoundError, KeyUnavailableError: As `ensure`.
        """

    async def erase(self, tenant_id: TenantId, *, actor: str, reason: str) -> int:
        """Destroy all keys of a tenant; returns how many.

        Raises:
            NotFoundError: As `ensure`.
            InvalidInputError: The reason is blank.
            WrongStateError: Executions of the tenant have not ended.
            KeyUnavailableError: They are forgotten, and their custodian has not destroyed its own.
        """

    async def noticed(self) -> None:
        """Believe from now on what is stored of which tenants encrypt."""


class TenantStore(Protocol):
    """Keeps tenants, in the caller's transaction."""

    async def add_tenant(self, tx: Transaction, tenant: Tenant) -> bool:
        """Store a tenant; False: the name is taken."""

    async def find_tenant(self, tx: Transaction, tenant_id: TenantId) -> Tenant | None:
        """Return a tenant; it stays as it is until the transaction ends."""

    async def list_tenants(self, tx: Transaction, *, after: str, limit: int) -> Sequence[Tenant]:
        """Return tenants behind the id `after`, by id."""

    async def save_tenant(self, tx: Transaction, tenant: Tenant) -> None:
        """Store what changed of a tenant."""


class BootstrapStore(Protocol):
    """Keeps the secrets with which an installation gets its first administrator."""

    async def use_secret(self, tx: Transaction, secret_hash: str, identity: str) -> TenantId | None:
        """Use up a secret and return its tenant; None: it is unknown, used or expired. Of two, one wins."""

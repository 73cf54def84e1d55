"""What access needs from the outside."""

from collections.abc import Collection
from typing import Protocol

from control_plane.access.domain import Bound, Grant
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

"""What access needs from the outside."""

from typing import Protocol

from control_plane.access.domain import Grant
from shared.ids import TenantId
from shared.rpc.identity import SpiffeId


class GrantStore(Protocol):
    """Knows what identities hold."""

    async def find(self, identity: SpiffeId) -> Grant | None:
        """Return what the identity holds: role bindings, or for a node its enrollment. None: it is unknown.

        Raises:
            DatabaseUnavailableError: It cannot be read now.
        """


class DenialLog(Protocol):
    """Where refusals go; the audit store of control_plane/audit behind it."""

    async def denied(self, *, actor: str, known: bool, tenant_id: TenantId, method: str, reason: str) -> None:
        """Record one refused call. `known` says that the identity is one of this installation's."""

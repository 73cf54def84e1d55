"""What others need from agents."""

from typing import Protocol

from control_plane.agents.domain import ResolvedAgent
from shared.ids import TenantId


class AgentDirectory(Protocol):
    """Finds what a name stands for, from memory nearly always.

    It may be stale for a moment: whoever accepts an execution compares agent, revision and the template's
    state in the transaction that accepts, and asks `refresh` once when they moved.
    """

    async def resolve(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """Return the live agent of this name.

        Raises:
            NotFoundError: There is none.
            TemplateRevokedError: Its template version is revoked.
        """

    async def refresh(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """Like `resolve`, past the memory."""

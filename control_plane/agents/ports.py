"""What others need from agents."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from control_plane.agents.domain import Agent, ResolvedAgent
from control_plane.database.ports import Transaction
from control_plane.templates.domain import TemplateRef, TemplateVersion
from shared.digests import Digest
from shared.ids import AgentId, TenantId


class AgentDirectory(Protocol):
    """Finds what a name stands for, from memory nearly always.

    It may be stale for a moment: whoever accepts an execution compares agent, revision and the template's
    state in the transaction that accepts, and asks `refresh` once when they moved.
    """

    async def resolve(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """Return the live agent of this name.

        Raises:
            NotFoundError: There is none.
            TemplateRetiredError, TemplateRevokedError: Its template version is closed.
        """

    async def refresh(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        """Like `resolve`, past the memory."""


class AgentStore(Protocol):
    """Keeps agents. Every method runs in the caller's transaction."""

    async def add(self, tx: Transaction, agent: Agent) -> bool:
        """Store a new agent; False when a live one has its name."""

    async def find(self, tx: Transaction, tenant_id: TenantId, name: str) -> Agent | None:
        """Return the live agent of this name."""

    async def list(self, tx: Transaction, tenant_id: TenantId, *, after: str, limit: int) -> Sequence[Agent]:
        """Return up to `limit` live agents by name, behind the name `after`."""

    async def update(self, tx: Transaction, agent: Agent, *, revision: int) -> bool:
        """Write the agent if its revision still is `revision`; False when it moved or went."""

    async def followers(
        self, tx: Transaction, tenant_id: TenantId, template_name: str, channel: str, *, limit: int
    ) -> Sequence[Agent]:
        """Return up to `limit` live agents that follow a channel, locked, by name."""

    async def count_followers(
        self, tx: Transaction, tenant_id: TenantId, template_name: str, channel: str
    ) -> int:
        """Return how many live agents follow a channel."""

    async def outcomes(
        self, tx: Transaction, agent: Agent, *, newest: int
    ) -> Mapping[Digest, Mapping[str, int]]:
        """Count the newest executions of an agent by template digest and state."""

    async def delete(self, tx: Transaction, tenant_id: TenantId, name: str) -> AgentId | None:
        """End the live agent of this name; None when there is none."""


class Templates(Protocol):
    """What agents need of templates. Implemented by `TemplateCatalog`."""

    async def get(self, tenant_id: TenantId, ref: TemplateRef) -> TemplateVersion:
        """Return one version.

        Raises:
            NotFoundError: The tenant has no such version.
        """

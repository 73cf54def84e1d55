"""What channels need from the outside."""

from collections.abc import Sequence
from typing import Protocol

from control_plane.channels.domain import TemplateChannel
from control_plane.database.ports import Transaction
from shared.ids import TenantId


class ChannelStore(Protocol):
    """Keeps channels. Every method runs in the caller's transaction."""

    async def lock(
        self, tx: Transaction, tenant_id: TenantId, template_name: str, channel: str
    ) -> TemplateChannel | None:
        """Return a channel; until the transaction ends it does not move."""

    async def add(self, tx: Transaction, channel: TemplateChannel) -> bool:
        """Store a new channel; False when there is one of this name."""

    async def move(self, tx: Transaction, channel: TemplateChannel) -> None:
        """Write a channel that was locked."""

    async def count(self, tx: Transaction, tenant_id: TenantId, template_name: str) -> int:
        """Return how many channels a template has."""

    async def list(
        self, tx: Transaction, tenant_id: TenantId, *, template_name: str, after: tuple[str, str], limit: int
    ) -> Sequence[TemplateChannel]:
        """Return up to `limit` channels by template and name, behind `after`; an empty name means all."""

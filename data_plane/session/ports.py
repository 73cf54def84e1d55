"""What a session needs from the rest of the node."""

from collections.abc import Sequence
from typing import Protocol

from data_plane.orders.domain import AttemptRef, Delivery
from data_plane.receipts.domain import SpooledBody


class OrderTaker(Protocol):
    """Takes the orders of one message; returns at once."""

    def receive(self, envelope: bytes, deliveries: Sequence[Delivery]) -> None: ...

    def cancel(self, attempt: AttemptRef) -> None:
        """The control plane wants this attempt to end."""

    def keyset_changed(self) -> None:
        """A newer keyset is in force: what a revoked key has ordered has to stop."""

    def lease_lost(self, attempt: AttemptRef) -> None:
        """This attempt is not this node's any more."""


class OutputSink(Protocol):
    """Where bodies above 64 KiB go before their receipt does."""

    async def upload_body(self, attempt: AttemptRef, body: SpooledBody, content: bytes) -> None:
        """Send a body; sending it again is harmless.

        Raises:
            AgentFactoryError: It did not arrive, or is refused.
        """

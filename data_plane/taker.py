"""Hands what a session reads to the runner."""

from collections.abc import Sequence

from data_plane.attempt import StopReason
from data_plane.orders.domain import AttemptRef, Delivery
from data_plane.runner import OrderRunner


class RunnerTaker:
    """The `OrderTaker` of a node."""

    def __init__(self, runner: OrderRunner) -> None:
        self._runner = runner

    def receive(self, envelope: bytes, deliveries: Sequence[Delivery]) -> None:
        """Take the orders of one message."""
        self._runner.receive(envelope, deliveries)

    def cancel(self, attempt: AttemptRef) -> None:
        """Stop a run that the control plane wants to end."""
        self._runner.stop(attempt, StopReason.CANCELLED)

    def keyset_changed(self) -> None:
        """Stop what a revoked key has ordered."""
        self._runner.keyset_changed()

    def lease_lost(self, attempt: AttemptRef) -> None:
        """Stop a run that is not this node's any more."""
        self._runner.stop(attempt, StopReason.LEASE_LOST)

"""What stops need from the outside."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.executions.domain import EndReason, HaltScope
from control_plane.stops.domain import Stop, StopTarget
from shared.ids import StopId, TenantId


class StopStore(Protocol):
    """Keeps stops, lifted ones too. Every method runs in the caller's transaction."""

    async def has_target(self, tx: Transaction, target: StopTarget) -> bool:
        """Whether there is such a tenant, and such a template in it."""

    async def add(self, tx: Transaction, stop: Stop) -> bool:
        """Store a new stop; False when a live one holds the same."""

    async def find_live(self, tx: Transaction, target: StopTarget) -> Stop | None:
        """Return the live stop of exactly this."""

    async def count_live(self, tx: Transaction, tenant_id: TenantId) -> int:
        """Return how many stops hold something of a tenant."""

    async def get(self, tx: Transaction, stop_id: StopId) -> Stop | None:
        """Return one stop, and lock it."""

    async def evidence(self, tx: Transaction, stop_id: StopId) -> bytes:
        """Return what a quarantine was made for; empty: it is none. No other method reads it."""

    async def lift(self, tx: Transaction, stop: Stop) -> None:
        """Write by whom, why and when it was lifted."""

    async def list(
        self, tx: Transaction, *, tenant_id: TenantId | None, lifted: bool, before: StopId | None, limit: int
    ) -> Sequence[Stop]:
        """Return up to `limit` stops, newest first; of one tenant, or of all."""

    async def halts(
        self, tx: Transaction, *, changed_within: timedelta
    ) -> Sequence[tuple[HaltScope, EndReason]]:
        """Return what must not run: of every live stop, and of templates closed within this time."""


class StopObserver(Protocol):
    """Counts; implemented by the metrics."""

    def template_quarantined(self) -> None:
        """A template version was quarantined: an alert."""


class Halting(Protocol):
    """Ends executions. Implemented by `Halter`."""

    async def halt(self, scope: HaltScope, reason: EndReason, *, actor: str) -> int:
        """End what the reason does not spare; returns how many nodes were told to stop."""

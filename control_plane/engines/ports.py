"""What denials of engines need from the outside."""

from collections.abc import Sequence
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.engines.domain import EngineDenial, EngineRule


class EngineDenialStore(Protocol):
    """Keeps denials; what was allowed again is in the audit log."""

    async def add(self, tx: Transaction, denial: EngineDenial) -> bool:
        """Store a denial; False when the same engine is denied already."""

    async def find(self, tx: Transaction, rule: EngineRule) -> EngineDenial | None:
        """Return the denial of exactly this."""

    async def count(self, tx: Transaction) -> int:
        """Return how many there are."""

    async def remove(self, tx: Transaction, rule: EngineRule) -> bool:
        """Remove the denial of exactly this; False when there is none."""

    async def denials(self) -> Sequence[EngineDenial]:
        """Return all, by name and version, in a transaction of its own."""

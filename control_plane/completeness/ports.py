"""What the check of the evidence needs from the outside. Promises, no implementation."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from control_plane.completeness.domain import Check, LoggedLeaf, LogState, NodeNumbers
from control_plane.database.ports import Transaction
from shared.keyset import Keyset


class CompletenessStore(Protocol):
    """Reads evidence of all tenants. Every method runs in the caller's transaction."""

    async def take_lead(self, tx: Transaction) -> bool:
        """Become the only one who checks in the background until the transaction ends."""

    async def state(self, tx: Transaction) -> LogState:
        """Return how far the log is."""

    async def leaves(self, tx: Transaction, start: int, end: int) -> list[LoggedLeaf]:
        """Return entries of the log from `start` to before `end` with what they are about, in order."""

    async def checkpoints(
        self, tx: Transaction, *, above: int, up_to: int, limit: int
    ) -> list[tuple[int, bytes]]:
        """Return sizes and notes of the largest signed heads with more than `above` leaves."""

    async def unlogged(
        self, tx: Transaction, *, older_than: timedelta, behind: tuple[str, str], limit: int
    ) -> tuple[list[str], tuple[str, str] | None]:
        """Return those of the next `limit` audit entries that are not in the log although they are older.

        In order of (tenant, id) from behind `behind`. Beside them where to go on; None: these were the last.
        """

    async def unlogged_receipts(
        self, tx: Transaction, *, older_than: timedelta, behind: str, limit: int
    ) -> tuple[list[str], str | None]:
        """Like `unlogged`, of receipts, in order of their ids."""

    async def newest_unlogged(self, tx: Transaction, *, older_than: timedelta, limit: int) -> list[str]:
        """Return which of the newest entries of some tenants, and of the newest receipts, the log lacks."""

    async def nodes(self, tx: Transaction, *, grace: timedelta) -> list[NodeNumbers]:
        """Return what numbers every node has used; settled is what came `grace` ago."""

    async def missing(self, tx: Transaction, node_id: str, *, above: int, up_to: int) -> list[int]:
        """Return the numbers above and up to these of which no receipt is stored."""

    async def mark(self, tx: Transaction, node_id: str, *, checked_to: int, missing: Sequence[int]) -> None:
        """Remember how far the numbers were looked at, and which are missing."""


class LogKeyring(Protocol):
    """Knows the keys that may have signed heads of the log."""

    async def current(self) -> Keyset:
        """Return the newest keyset, verified.

        Raises:
            DatabaseUnavailableError, UnavailableError, VerificationError: There is none to go by.
        """


class EvidenceObserver(Protocol):
    """Gauges; cheap and never raises."""

    def receipts_missing(self, count: int) -> None:
        """So many numbers of receipts are missing, over all nodes."""

    def log_waiting(self, seconds: float) -> None:
        """So long has the oldest recorded fact waited for its place in the log."""

    def evidence_wrong(self, check: Check, count: int) -> None:
        """The last pass over the evidence found so much."""

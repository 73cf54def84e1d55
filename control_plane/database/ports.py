"""What use cases know of the database: that a transaction exists. Nothing of how it is kept."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Transaction(Protocol):
    """One open transaction. Opaque to use cases: only stores look inside."""

    def notify_after_commit(self, channel: str, payload: str = "") -> None:
        """Tell listeners once this has committed; best effort, every listener also polls."""


class Database(Protocol):
    """Where transactions come from."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction that commits when the block ends and rolls back when it raises.

        Raises:
            DatabaseUnavailableError: Postgres is away, or the commit's fate is unknown.
        """


class Notifier(Protocol):
    """Tells subscribers, soon: those of this replica and of others."""

    def notify(self, channel: str, payloads: Sequence[str] = ()) -> None:
        """Queue a notification; never blocks, never raises."""

    def notify_others(self, channel: str, payloads: Sequence[str] = ()) -> None:
        """The same for other replicas alone: this one learns it in another way."""

"""What backups need from the outside: a place for archives, and the database as its owner."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Protocol

from control_plane.backup.domain import BackupHeader, Stored
from control_plane.database.ports import Transaction
from shared.ids import InstallationId


class ArchivePlace(Protocol):
    """Where archives are kept. Called from threads; every call is bounded by time-outs of its own."""

    @property
    def name(self) -> str:
        """Folder or bucket, without a secret."""

    def writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Take a new archive: there, whole, when the block ends, and not at all when it raises.

        Raises:
            AlreadyExistsError: There is one of this name.
            UnavailableError: The place does not take it.
        """

    def reading(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Give an archive as a stream.

        Raises:
            NotFoundError: There is none of this name.
            UnavailableError: The place does not answer.
        """

    def all(self) -> Sequence[Stored]:
        """Return every archive that is there, newest first. Raises UnavailableError as `reading`."""

    def remove(self, name: str) -> None:
        """Remove an archive. Repeat: no effect. Raises UnavailableError as `reading`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """What is known of a database before it is copied."""

    installation: InstallationId
    epoch: int
    schema: str
    postgres: int
    """Major version of the server."""
    now: datetime


class BackupStore(Protocol):
    """The database as its owner; every method runs in the caller's transaction."""

    async def facts(self, tx: Transaction) -> DatabaseFacts:
        """Return what the database is.

        Raises:
            NotFoundError: It holds no installation.
        """

    async def server(self, tx: Transaction) -> int:
        """Return the major version of the server."""

    async def require_empty(self, tx: Transaction) -> None:
        """Return if the database holds nothing at all.

        Raises:
            ConflictError: It does; the message names something that is there.
        """

    async def close_doors(self, tx: Transaction) -> None:
        """Make the roles of the service, and let none of them in until an epoch has begun.

        Raises:
            SettingsError: This role may not do so: it does not own the database.
        """

    async def begin_epoch(self, tx: Transaction, epoch: int) -> None:
        """Move to another epoch: checkpoints of the one before are put aside, and the service is let in."""

    async def record(self, tx: Transaction, header: BackupHeader, *, place: str, size_bytes: int) -> None:
        """Remember that a backup was made."""

    async def forget(self, tx: Transaction, names: Sequence[str], *, place: str) -> None:
        """Forget backups that were removed."""

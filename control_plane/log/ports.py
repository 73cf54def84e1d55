"""What the log needs from the outside."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.log.domain import Head, LogEntry, Pending
from shared.digests import Digest
from shared.ids import TenantId
from shared.signatures import PublicKey, Signer
from shared.tiles import TileId


class LogStore(Protocol):
    """Keeps the log. Every method runs in the caller's transaction."""

    async def take_lead(self, tx: Transaction) -> bool:
        """Become the only one who integrates until the transaction ends; False: somebody else is."""

    async def pending(self, tx: Transaction, *, limit: int) -> list[Pending]:
        """Return what waits, oldest first."""

    async def head(self, tx: Transaction) -> Head:
        """Return the committed head; that of the empty log when nothing was integrated yet."""

    async def tiles(self, tx: Transaction, wanted: Collection[TileId]) -> Mapping[TileId, bytes]:
        """Return those of the wanted tiles that there are."""

    async def append(
        self,
        tx: Transaction,
        *,
        before: Head,
        after: Head,
        entries: Sequence[LogEntry],
        tiles: Mapping[TileId, bytes],
        done: Sequence[int],
    ) -> None:
        """Write a group: entries, tiles, the head, and forget what waited (rule 15).

        Raises:
            ConflictError: The head is not `before` any more.
        """

    async def add_checkpoint(self, tx: Transaction, *, tree_size: int, note: bytes) -> None:
        """Keep a signed head. Repeat: no effect."""

    async def newest_checkpoint(self, tx: Transaction) -> tuple[int, bytes] | None:
        """Return size and note of the largest signed head."""

    async def entry_of(self, tx: Transaction, tenant_id: TenantId, subject: str) -> LogEntry | None:
        """Return the tenant's entry about a subject."""

    async def entries_of(self, tx: Transaction, subjects: Collection[str]) -> Mapping[str, LogEntry]:
        """Return the entries about these subjects that there are, of any tenant."""

    async def note_policy(self, tx: Transaction, digest: Digest) -> None:
        """Note that a policy is used; its leaf is announced by that. Repeat: no effect."""


class LogKeys(Signer, Protocol):
    """What signs checkpoints: the newest log key in custody of a keyset that every live session has."""

    async def public(self) -> PublicKey | None:
        """Return the public half of what `sign` signs with from now on; None: there is no such key.

        Raises:
            KeyUnavailableError: The custodian does not answer.
            DatabaseUnavailableError: The keyset cannot be read now.
        """


class Inclusion(Protocol):
    """Gets what was recorded into the log; `LogService` implements it."""

    async def include(self, subjects: Collection[str]) -> bool:
        """Return once a checkpoint covers these subjects, or after a second; never raises (rule 15)."""


class Witnesses(Protocol):
    """Who cosigns the log's head. Every method runs in the caller's transaction."""

    async def may_sign(self, tx: Transaction) -> bool:
        """Whether heads may be signed: the log was found whole, and `stopped_by` says nothing."""

    async def stopped_by(self, tx: Transaction) -> str:
        """Return why nothing is signed any more: a witness saw another log; empty: none did."""

    async def newest(self, tx: Transaction) -> tuple[int, bytes] | None:
        """Return size and note, with cosignatures, of the newest checkpoint that has the quorum.

        None: there is none yet, or no quorum is asked for.
        """


class LogObserver(Protocol):
    """Counts; cheap and never raises."""

    def log_integrated(self, leaves: int, seconds: float) -> None:
        """A group of leaves has been committed."""

    def log_size(self, tree_size: int) -> None:
        """So many leaves are in the log."""

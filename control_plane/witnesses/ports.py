"""What cosigning needs from the outside."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.witnesses.domain import Answer, Cosignature, Outcome, Witness, WitnessState
from shared.checkpoints import NoteSignature


class WitnessClient(Protocol):
    """Speaks to witnesses."""

    async def add_checkpoint(self, witness: Witness, body: bytes) -> Answer:
        """Show a witness a checkpoint. Bounded in time and size; never raises for what a witness does."""

    async def close(self) -> None:
        """Close what it holds open."""


class WitnessStore(Protocol):
    """Keeps what witnesses said. Every method runs in the caller's transaction."""

    async def states(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str]
    ) -> Mapping[str, WitnessState]:
        """Return what is known of each of the witnesses."""

    async def alone(self, tx: Transaction) -> None:
        """Wait until nobody else writes here, and keep others out until the transaction ends."""

    async def take_round(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str], *, hold: timedelta
    ) -> bool:
        """Become the one who asks witnesses for so long; False: somebody else is, or it is too early."""

    async def end_round(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str], *, pause: timedelta
    ) -> None:
        """Let the next round begin after a pause."""

    async def cosigned(self, tx: Transaction, origin: str, witness_id: str, cosignature: Cosignature) -> None:
        """Keep a cosignature. Repeat: the first one stays."""

    async def seen(self, tx: Transaction, origin: str, witness_id: str, tree_size: int) -> None:
        """Keep that a witness has seen a head of this size, or a smaller one."""

    async def failed(self, tx: Transaction, origin: str, witness_id: str, *, pause: timedelta) -> None:
        """Count a failure, and leave the witness alone for so long."""

    async def forked(self, tx: Transaction, origin: str, witness_id: str, detail: str) -> bool:
        """Keep that a witness saw another log; False: that is kept already."""

    async def newest_quorum(
        self, tx: Transaction, origin: str, witness_ids: Sequence[str], quorum: int
    ) -> tuple[int, bytes, Sequence[NoteSignature]] | None:
        """Return size, note and cosignatures of the newest checkpoint that so many witnesses cosigned."""


class WitnessObserver(Protocol):
    """Counts; cheap and never raises."""

    def witness_is(self, witness: Witness, state: WitnessState) -> None:
        """What is known of a witness now."""

    def witness_answered(self, witness: Witness, outcome: Outcome) -> None:
        """A witness was asked."""

    def witnessed(self, tree_size: int) -> None:
        """The newest head with a quorum."""

    def log_stopped(self, stopped: int) -> None:
        """1: the log signs nothing any more, because of a fork."""

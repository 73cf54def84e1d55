"""What this node has verified of the transparency log: its newest checkpoint, and facts proved under it.

The checkpoint is kept across restarts, and each newer one has to continue it: a control plane that tells two
nodes two truths has to go on with both for ever. Asks nobody; `log_check.py` does.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from data_plane.files import replace_file
from data_plane.orders.keyset import NodeKeyset
from shared.checkpoints import MAX_NOTE_BYTES, Checkpoint, log_origin, parse_checkpoint, verify_log_signature
from shared.clock import Clock
from shared.errors import LogForkedError, ProofInvalidError, RollbackError, UnavailableError
from shared.ids import InstallationId
from shared.keyset import KeyPurpose
from shared.log_leaf import Fact
from shared.logs import get_logger
from shared.merkle import leaf_hash, verify_consistency, verify_inclusion

logger = get_logger(__name__)

MAX_PROVED: Final = 4096
"""Facts that are remembered; one that is forgotten is asked for again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a fact is said to be in the log."""

    log_index: int
    salt: bytes = field(repr=False)
    path: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOffer:
    """What came in answer to a question. Nothing in it is verified."""

    checkpoint: bytes
    consistency: tuple[bytes, ...]
    places: tuple[Place | None, ...]
    """Of the facts that were asked for, in their order; None: it is not in the log."""


class LogView:
    """One node's view. Used from one event loop."""

    def __init__(
        self,
        *,
        keyset: NodeKeyset,
        installation: InstallationId,
        path: Path,
        max_age: timedelta,
        clock: Clock,
    ) -> None:
        self._keyset = keyset
        self._installation = installation
        self._path = path
        self._fork_path = path.with_suffix(".fork")
        self._max_age = max_age
        self._clock = clock
        self._newest: Checkpoint | None = None
        self._note = b""
        self._taken_at: float | None = None
        self._keyset_version = 0
        self._proved: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.fork = ""
        """Why the log is not believed any more; empty while it is. Stays so until an operator has looked."""

    def load(self) -> None:
        """Take up what was kept. Its signature was verified before; its key may have ended since.

        Raises:
            MalformedError: The file was altered. The node does not start: it could be told another truth.
        """
        note = _read(self._path)
        if note:
            self._newest, self._note = parse_checkpoint(note).checkpoint, note
        if self._fork_path.exists():
            self.fork = f"{self._fork_path} holds two checkpoints of which one does not continue the other"
            logger.error("the log is forked: this node takes no orders", evidence=str(self._fork_path))

    @property
    def newest(self) -> Checkpoint | None:
        """The newest checkpoint, of the log in force."""
        newest = self._newest
        return newest if newest is not None and newest.origin == self._origin() else None

    @property
    def known_size(self) -> int:
        """Leaves of the newest checkpoint; zero before the first."""
        newest = self.newest
        return 0 if newest is None else newest.size

    def holds(self, fact: Fact) -> bool:
        """Whether the fact was proved to be in the log. What is in it once stays in it."""
        return (fact.kind, fact.subject) in self._proved

    def is_fresh(self) -> bool:
        """Whether the newest checkpoint was asked for within the bound, under the keyset in force."""
        if self._taken_at is None or self._keyset_version != self._keyset.version:
            return False
        return self._clock.monotonic() - self._taken_at <= self._max_age.total_seconds()

    def take(self, offer: LogOffer, facts: Sequence[Fact], *, asked_at: float) -> None:
        """Verify what came and keep it; `asked_at` is monotonic.

        1. A log key of the keyset in force signed the checkpoint, for this installation and epoch.
        2. It is not smaller than the newest one that was verified.
        3. It continues that one: the same leaves, and others behind them.
        4. Each fact that is said to be in the log is in it, at the place that is named.

        A keyset or epoch that is new makes everything be proved anew.

        Raises:
            MalformedError, UnknownKeyError, SignatureInvalidError: Check 1.
            RollbackError: Check 2.
            LogForkedError: Check 3; from now on the log is not believed.
            ProofInvalidError: Check 4.
            UnavailableError: The checkpoint cannot be kept: the disk is full.
        """
        checkpoint = self._verified(offer)
        self._follow(checkpoint, offer)
        version = self._keyset.version
        if version != self._keyset_version:
            self._proved.clear()
        self._taken_at, self._keyset_version = asked_at, version
        for fact, place in zip(facts, offer.places, strict=False):
            if place is not None:
                _check_place(checkpoint, fact, place)
                self._proved[fact.kind, fact.subject] = None
        while len(self._proved) > MAX_PROVED:
            self._proved.popitem(last=False)

    def _verified(self, offer: LogOffer) -> Checkpoint:
        keys = self._keyset.keys_for(KeyPurpose.LOG, self._clock.now())
        signed = parse_checkpoint(offer.checkpoint)
        return verify_log_signature(signed, origin=self._origin(), keys=list(keys.values()))

    def _follow(self, checkpoint: Checkpoint, offer: LogOffer) -> None:
        known = self.newest
        if known is not None and known.size:
            if checkpoint.size < known.size:
                raise RollbackError(f"check 2: the log has {checkpoint.size} leaves, it had {known.size}")
            try:
                verify_consistency(
                    first_size=known.size,
                    second_size=checkpoint.size,
                    proof=offer.consistency,
                    first_root=known.root,
                    second_root=checkpoint.root,
                )
            except ProofInvalidError as error:
                raise self._forked(checkpoint, known, offer.checkpoint) from error
        if checkpoint != known:
            if known is None:
                self._proved.clear()
            self._keep(self._path, offer.checkpoint)
            self._newest, self._note = checkpoint, offer.checkpoint

    def _forked(self, checkpoint: Checkpoint, known: Checkpoint, note: bytes) -> LogForkedError:
        self.fork = (
            f"check 3: the log of {checkpoint.size} leaves is not shown to continue that of {known.size};"
            f" both are in {self._fork_path.name}"
        )
        try:
            self._keep(self._fork_path, self._note + b"\n" + note)
        except UnavailableError:
            logger.exception("the evidence of a forked log cannot be kept")
        return LogForkedError(
            self.fork,
            hint="compare both with what others have seen; then remove the file and restart the node",
        )

    def _keep(self, path: Path, content: bytes) -> None:
        try:
            replace_file(path, content)
        except OSError as error:
            raise UnavailableError(f"{path.name} cannot be kept: {error.strerror}") from error

    def _origin(self) -> str:
        return log_origin(self._installation, self._keyset.epoch)


def _check_place(checkpoint: Checkpoint, fact: Fact, place: Place) -> None:
    try:
        verify_inclusion(
            leaf=leaf_hash(fact.commitment(place.salt)),
            index=place.log_index,
            size=checkpoint.size,
            path=place.path,
            root=checkpoint.root,
        )
    except ProofInvalidError as error:
        raise ProofInvalidError(f"check 4: {fact.kind} {fact.subject}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NOTE_BYTES + 1)
    except FileNotFoundError:
        return b""

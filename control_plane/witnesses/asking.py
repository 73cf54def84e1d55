"""One witness, one checkpoint: what is said to it, and what its answer means. Stores nothing."""

import asyncio
from datetime import timedelta
from typing import Final

from control_plane.database.ports import Database, Transaction
from control_plane.log.ports import LogStore
from control_plane.witnesses.domain import (
    Answer,
    Cosignature,
    Cosigned,
    Forked,
    Moved,
    Outcome,
    Refusal,
    Refused,
    Stale,
    Witness,
    add_checkpoint_body,
)
from control_plane.witnesses.ports import WitnessClient
from shared.checkpoints import (
    COSIGNATURE,
    SignedCheckpoint,
    key_id,
    parse_checkpoint,
    parse_signatures,
    verify_cosignatures,
)
from shared.clock import Clock
from shared.errors import InvalidInputError, MalformedError, ProofInvalidError, SignatureInvalidError
from shared.merkle import verify_consistency
from shared.tiles import consistency, nodes_of, range_root

MAX_TURNS: Final = 3
"""Of one exchange: the proof may begin with the wrong size once, and once more beside another replica."""

MAX_SKEW: Final = timedelta(minutes=5)
"""That a witness' clock may be ahead."""


class Heads:
    """The signed head, and what the tiles say of it and of smaller ones."""

    def __init__(self, *, database: Database, logs: LogStore) -> None:
        self._database = database
        self._logs = logs

    async def newest(self, tx: Transaction) -> SignedCheckpoint | None:
        """Return the newest signed checkpoint."""
        found = await self._logs.newest_checkpoint(tx)
        return None if found is None else parse_checkpoint(found[1])

    async def newest_size(self) -> int:
        """Return how many leaves were signed."""
        async with self._database.transaction() as tx:
            newest = await self.newest(tx)
        return 0 if newest is None else newest.checkpoint.size

    async def require_whole(self) -> None:
        """Return if the log is at least what was signed of it.

        Raises:
            ProofInvalidError: It is shorter, or its tiles give another root.
        """
        async with self._database.transaction() as tx:
            newest = await self.newest(tx)
            if newest is None:
                return
            head = await self._logs.head(tx)
            signed = newest.checkpoint
            if head.tree_size < signed.size:
                raise ProofInvalidError(f"the log has {head.tree_size} leaves, and {signed.size} were signed")
            if await self._root(tx, signed.size) != signed.root:
                raise ProofInvalidError(f"the root of {signed.size} leaves is not the one that was signed")

    async def proof(self, first: int, target: SignedCheckpoint) -> tuple[bytes, ...]:
        """Return the proof, verified, that the first leaves begin the checkpoint's tree. Of none: empty.

        Raises:
            ProofInvalidError: They do not: the tiles are not what was signed.
        """
        second = target.checkpoint
        if first in {0, second.size}:
            return ()
        wanted = consistency(first, second.size)
        async with self._database.transaction() as tx:
            first_root = await self._root(tx, first)
            path = wanted.hashes(await self._logs.tiles(tx, wanted.tiles()))
        verify_consistency(
            first_size=first,
            second_size=second.size,
            proof=path,
            first_root=first_root,
            second_root=second.root,
        )
        return path

    async def _root(self, tx: Transaction, size: int) -> bytes:
        tiles = await self._logs.tiles(tx, {node.tile for node in nodes_of(0, size)})
        try:
            return range_root(tiles, 0, size)
        except InvalidInputError as error:
            raise ProofInvalidError(f"the tiles of {size} leaves are not whole: {error}") from error


class NoWitnesses:
    """A `WitnessClient` for a log that nobody cosigns."""

    async def add_checkpoint(self, witness: Witness, body: bytes) -> Answer:  # noqa: ARG002
        """See `WitnessClient.add_checkpoint`: there is no witness to ask."""
        return Refused(refusal=Refusal.UNREACHABLE, detail="no witness is configured")

    async def close(self) -> None:
        """See `WitnessClient.close`."""


class Asking:
    """Shows a checkpoint to a witness."""

    def __init__(self, *, heads: Heads, client: WitnessClient, clock: Clock) -> None:
        self._heads = heads
        self._client = client
        self._clock = clock

    async def ask(
        self, witness: Witness, known: int, target: SignedCheckpoint, *, within: timedelta
    ) -> Outcome:
        """Return what a witness that is known to have seen `known` leaves says of a checkpoint.

        Raises:
            ProofInvalidError: Our own tiles are not what was signed.
        """
        try:
            async with asyncio.timeout(within.total_seconds()):
                return await self._turns(witness, known, target)
        except TimeoutError:
            return Refused(refusal=Refusal.UNREACHABLE, detail=f"no answer within {within.total_seconds()} s")

    async def _turns(self, witness: Witness, known: int, target: SignedCheckpoint) -> Outcome:
        size = target.checkpoint.size
        for _ in range(MAX_TURNS):
            if known > size:
                return await self._larger(known)
            proof = await self._heads.proof(known, target)
            body = add_checkpoint_body(old_size=known, proof=proof, note=target.note)
            match await self._client.add_checkpoint(witness, body):
                case Cosigned(lines=lines):
                    return self._cosignature(witness, target, lines)
                case Stale(size=seen):
                    known = seen
                case Refused() as refused:
                    return _meaning(refused, known, size)
        return Refused(refusal=Refusal.UNSTABLE)

    async def _larger(self, known: int) -> Outcome:
        # Another replica may have shown it more meanwhile; nobody else can have signed more.
        signed = await self._heads.newest_size()
        if known <= signed:
            return Moved(size=known)
        return Forked(size=known, detail=f"it has seen {known} leaves, and we have signed {signed}")

    def _cosignature(self, witness: Witness, target: SignedCheckpoint, lines: bytes) -> Outcome:
        key = witness.key.public
        try:
            signatures = parse_signatures(lines)
            signed = SignedCheckpoint(checkpoint=target.checkpoint, signatures=signatures)
            at = verify_cosignatures(signed, {witness.name: key}).get(witness.name)
        except (MalformedError, SignatureInvalidError) as error:
            return Refused(refusal=Refusal.SIGNATURE, detail=str(error))
        if at is None or not 0 < at <= (self._clock.now() + MAX_SKEW).timestamp():
            return Refused(
                refusal=Refusal.SIGNATURE, detail="no cosignature under its key, of a time that was"
            )
        named = key_id(witness.name, key, COSIGNATURE)
        line = next(one for one in signatures if (one.name, one.key_id) == (witness.name, named))
        return Cosignature(tree_size=target.checkpoint.size, line=line, at=at)


def _meaning(refused: Refused, known: int, size: int) -> Outcome:
    """Return what a refusal says, knowing that our proof holds."""
    if known and refused.refusal in {Refusal.BAD_PROOF, Refusal.OTHER_ROOT}:
        return Forked(
            size=known,
            detail=f"what it has seen of {known} leaves does not begin our {size}: {refused.detail}",
        )
    return refused

"""Grows the transparency log from what was recorded, signs its heads, and proves what is in it.

Never on the path of an execution. Any replica integrates, one at a time; a head is signed once committed.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.database.ports import Database, Transaction
from control_plane.log.domain import (
    MAX_GROUP_ROWS,
    Head,
    InclusionProof,
    LogEntry,
    LogView,
    Pending,
    Published,
    checkpoint_of,
    group_of,
)
from control_plane.log.ports import LogKeys, LogObserver, LogStore, Witnesses
from control_plane.log.unwitnessed import Unwitnessed
from shared.checkpoints import parse_checkpoint, sign_checkpoint
from shared.clock import Random
from shared.digests import Digest
from shared.errors import AgentFactoryError, InvalidInputError, NotFoundError
from shared.ids import TenantId
from shared.log_leaf import SALT_BYTES, commitment
from shared.logs import get_logger
from shared.merkle import HASH_BYTES, leaf_hash
from shared.tiles import (
    NO_PROOF,
    Proof,
    TileId,
    consistency,
    grown,
    hashes_of,
    inclusion,
    range_root,
    tiles_of_edge,
)

logger = get_logger(__name__)

INTEGRATE_EVERY: Final = timedelta(milliseconds=400)
"""Between two looks at what waits. What is recorded is in a signed checkpoint within a second."""

INCLUDE_WITHIN: Final = timedelta(seconds=1)
"""How long somebody waits for what he recorded to be in the log: two looks of whoever integrates."""
INCLUDE_POLL: Final = timedelta(milliseconds=20)
"""Between two looks while another replica integrates."""


class LogService:
    """The log of one installation."""

    def __init__(
        self,
        *,
        database: Database,
        store: LogStore,
        origin: str,
        keys: LogKeys,
        observer: LogObserver,
        random: Random,
        witnesses: Witnesses | None = None,
        include_within: timedelta = INCLUDE_WITHIN,
    ) -> None:
        self._database = database
        self._store = store
        self._origin = origin
        self._keys = keys
        self._observer = observer
        self._random = random
        self._witnesses = witnesses or Unwitnessed()
        self._include_within = include_within

    @property
    def origin(self) -> str:
        """The log's name, as its checkpoints give it."""
        return self._origin

    async def run(self) -> NoReturn:
        """Integrate and sign until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTEGRATE_EVERY.total_seconds()
            try:
                # At once again only after a full group: small ones cost nearly what large ones do. A head is
                # signed all the same where something waits always.
                while await self.integrate() >= MAX_GROUP_ROWS and loop.time() < due:
                    pass
                await self.sign()
            except AgentFactoryError as error:
                logger.warning("log not integrated, tried again", error=str(error))
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def integrate(self) -> int:
        """Append one group of what waits; returns how many leaves. 0: nothing waits, or others integrate.

        Fewer than `MAX_GROUP_ROWS`: it was all that waited.

        Raises:
            DatabaseUnavailableError: It cannot be written now.
            ConflictError: The head moved although nobody may move it: nothing was written.
        """
        started = time.perf_counter()
        async with self._database.transaction() as tx:
            if not await self._store.take_lead(tx):
                return 0
            group = group_of(await self._store.pending(tx, limit=MAX_GROUP_ROWS))
            if not group:
                return 0
            before = await self._store.head(tx)
            entries = self._entries(before.tree_size, group)
            after = await self._grow(tx, before, entries, group)
        self._observer.log_integrated(len(entries), time.perf_counter() - started)
        self._observer.log_size(after.tree_size)
        return len(entries)

    async def sign(self) -> bytes | None:
        """Sign the committed head if no checkpoint says it yet; returns the new note.

        None: there is nothing new or no log key, or witnesses stop it (see `Witnesses.may_sign`).

        Raises:
            KeyUnavailableError: The key's custodian does not answer.
            DatabaseUnavailableError: It cannot be read or written now.
        """
        async with self._database.transaction() as tx:
            head = await self._store.head(tx)
            newest = await self._store.newest_checkpoint(tx)
            if newest is not None and newest[0] >= head.tree_size:
                return None
            if not await self._witnesses.may_sign(tx):
                return None
        public = await self._keys.public()
        if public is None:
            return None
        signed = await sign_checkpoint(checkpoint_of(self._origin, head), self._keys, public)
        async with self._database.transaction() as tx:
            await self._store.add_checkpoint(tx, tree_size=head.tree_size, note=signed.note)
        return signed.note

    async def checkpoint(self) -> bytes:
        """Return the newest signed checkpoint.

        Raises:
            NotFoundError: None was signed yet.
        """
        async with self._database.transaction() as tx:
            newest = await self._store.newest_checkpoint(tx)
        if newest is None:
            raise _no_checkpoint()
        return newest[1]

    async def published(self) -> Published:
        """Return the newest signed checkpoint and the newest witnessed one.

        Raises:
            NotFoundError: None was signed yet.
        """
        async with self._database.transaction() as tx:
            newest = await self._store.newest_checkpoint(tx)
            witnessed = await self._witnesses.newest(tx)
            stopped_by = await self._witnesses.stopped_by(tx)
        if newest is None:
            raise NotFoundError(
                f"the log has no checkpoint{' and signs none: ' if stopped_by else ' yet'}{stopped_by}",
                hint="see docs/log.md" if stopped_by else "try again in a second",
            )
        return Published(
            checkpoint=newest[1],
            witnessed=b"" if witnessed is None else witnessed[1],
            stopped_by=stopped_by,
        )

    async def tile(self, tile: TileId, width: int) -> bytes:
        """Return the first hashes of a tile, as far as a checkpoint covers them.

        Raises:
            NotFoundError: No checkpoint covers so many of it.
        """
        async with self._database.transaction() as tx:
            newest = await self._store.newest_checkpoint(tx)
            covered = 0 if newest is None else hashes_of(tile, newest[0])
            if width > covered:
                raise NotFoundError(
                    f"tile {tile.level}/{tile.place} has {max(covered, 0)} hashes under a checkpoint"
                )
            found = await self._store.tiles(tx, {tile})
        return found[tile][: width * HASH_BYTES]

    async def prove_inclusion(self, tenant_id: TenantId, subject: str) -> InclusionProof:
        """Return the proof that a receipt or audit entry of the tenant is in the newest checkpoint.

        Raises:
            NotFoundError: The tenant has no such entry in the log, or no checkpoint covers it yet.
        """
        proof = await self.find_inclusion(tenant_id, subject)
        if proof is None:
            raise NotFoundError(f"{subject} is not in the log yet", hint="try again in a second")
        return proof

    async def find_inclusion(self, tenant_id: TenantId, subject: str) -> InclusionProof | None:
        """Return what `prove_inclusion` does, None where that finds nothing."""
        return (await self.find_inclusions([(tenant_id, subject)]))[0]

    async def find_inclusions(
        self, wanted: Sequence[tuple[TenantId, str]]
    ) -> Sequence[InclusionProof | None]:
        """Return the proof of each tenant's subject, all under one checkpoint; None: there is none yet."""
        async with self._database.transaction() as tx:
            entries = [await self._store.entry_of(tx, *one) for one in wanted]
            last = max((entry.log_index for entry in entries if entry is not None), default=0)
            newest = await self._checkpoint_over(tx, last) or await self._store.newest_checkpoint(tx)
            if newest is None:
                return [None] * len(wanted)
            return [await self._inclusion(tx, newest, entry) for entry in entries]

    async def _inclusion(
        self, tx: Transaction, checkpoint: tuple[int, bytes], entry: LogEntry | None
    ) -> InclusionProof | None:
        size, note = checkpoint
        if entry is None or size <= entry.log_index:
            return None
        path = await self._hashes(tx, inclusion(entry.log_index, size))
        return InclusionProof(entry=entry, path=path, checkpoint=note)

    async def prove_consistency(self, first_size: int, second_size: int) -> tuple[Sequence[bytes], bytes]:
        """Return the proof that `first_size` leaves begin the log of `second_size`, and the newest note.

        A `second_size` of zero means that checkpoint's; another one must be no larger.

        Raises:
            InvalidInputError: The sizes are none of a proof.
            NotFoundError: There is no checkpoint yet.
        """
        note = await self.checkpoint()
        newest = parse_checkpoint(note).checkpoint.size
        second = second_size or newest
        if second > newest:
            raise InvalidInputError(f"the log has {newest} leaves under a checkpoint, not {second}")
        async with self._database.transaction() as tx:
            return await self._hashes(tx, consistency(first_size, second)), note

    async def include(self, subjects: Collection[str], *, within: timedelta | None = None) -> bool:
        """Integrate and sign at once; whether a checkpoint covers all of these subjects by then (rule 15).

        For what is committed already, so it raises nothing: what is not in the log in time will be, and nodes
        take nothing that is not. Without a log key there is nothing to wait for.
        """
        try:
            if await self._keys.public() is None:
                return False
            async with asyncio.timeout((within or self._include_within).total_seconds()):
                while not await self.covers(subjects):
                    moved = await self.integrate()
                    if await self.sign() is None and not moved:
                        await asyncio.sleep(INCLUDE_POLL.total_seconds())
        except (AgentFactoryError, TimeoutError) as error:
            logger.warning("not in the log in time", subjects=list(subjects), error=str(error))
            return False
        return True

    async def covers(self, subjects: Collection[str]) -> bool:
        """Return whether the newest checkpoint covers all of these subjects."""
        async with self._database.transaction() as tx:
            newest = await self._store.newest_checkpoint(tx)
            found = await self._store.entries_of(tx, subjects)
        size = 0 if newest is None else newest[0]
        return len(found) == len(set(subjects)) and all(entry.log_index < size for entry in found.values())

    async def note_policy(self, digest: Digest) -> None:
        """Put on record that a policy has decided; its leaf follows. Repeat: no effect."""
        async with self._database.transaction() as tx:
            await self._store.note_policy(tx, digest)

    async def view(self, known_size: int, subjects: Collection[str]) -> LogView:
        """Return the newest checkpoint, that it continues `known_size` leaves, and proofs of facts.

        Raises:
            NotFoundError: There is no checkpoint yet.
            InvalidInputError: It covers fewer leaves than are known.
        """
        async with self._database.transaction() as tx:
            newest = await self._store.newest_checkpoint(tx)
            if newest is None:
                raise _no_checkpoint()
            size, note = newest
            if known_size > size:
                raise InvalidInputError(f"the log has {size} leaves under a checkpoint, not {known_size}")
            found = await self._store.entries_of(tx, subjects) if subjects else {}
            covered = {subject: entry for subject, entry in found.items() if entry.log_index < size}
            ways = {subject: inclusion(entry.log_index, size) for subject, entry in covered.items()}
            growth = consistency(known_size, size) if 0 < known_size < size else NO_PROOF
            tiles = await self._store.tiles(tx, growth.tiles().union(*(way.tiles() for way in ways.values())))
        proofs = {
            subject: InclusionProof(entry=entry, path=ways[subject].hashes(tiles), checkpoint=note)
            for subject, entry in covered.items()
        }
        return LogView(checkpoint=note, consistency=growth.hashes(tiles), proofs=proofs)

    async def _checkpoint_over(self, tx: Transaction, log_index: int) -> tuple[int, bytes] | None:
        """Return a checkpoint that covers a leaf: a witnessed one where there is one."""
        witnessed = await self._witnesses.newest(tx)
        if witnessed is not None and witnessed[0] > log_index:
            return witnessed
        newest = await self._store.newest_checkpoint(tx)
        return newest if newest is not None and newest[0] > log_index else None

    async def _hashes(self, tx: Transaction, proof: Proof) -> tuple[bytes, ...]:
        return proof.hashes(await self._store.tiles(tx, proof.tiles()))

    async def _grow(
        self, tx: Transaction, before: Head, entries: Sequence[LogEntry], group: Sequence[Pending]
    ) -> Head:
        size = before.tree_size
        edge = await self._store.tiles(tx, tiles_of_edge(size))
        changed = grown(edge, size, [leaf_hash(entry.commitment) for entry in entries])
        total = size + len(entries)
        after = Head(tree_size=total, root=range_root({**edge, **changed}, 0, total))
        await self._store.append(
            tx,
            before=before,
            after=after,
            entries=entries,
            tiles=changed,
            done=[item.pending_id for item in group],
        )
        return after

    def _entries(self, first: int, group: Sequence[Pending]) -> list[LogEntry]:
        said = [
            (item.kind, *one)
            for item in group
            for one in zip(item.tenant_ids, item.subjects, item.contents, strict=True)
        ]
        salts = self._random.token_bytes(SALT_BYTES * len(said))
        entries = []
        for at, (kind, tenant_id, subject, content) in enumerate(said):
            salt = salts[at * SALT_BYTES : (at + 1) * SALT_BYTES]
            entries.append(
                LogEntry(
                    log_index=first + at,
                    tenant_id=tenant_id,
                    kind=kind,
                    subject=subject,
                    salt=salt,
                    commitment=commitment(kind=kind, subject=subject, salt=salt, content=content),
                )
            )
        return entries


def _no_checkpoint() -> NotFoundError:
    return NotFoundError(
        "the log has no checkpoint yet",
        hint="try again in a second; if it stays so, run 'agentfactory init': the keyset has no log key",
    )

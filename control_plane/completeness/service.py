"""Finds what is missing of the evidence or was altered: on demand, and all the time beside the service.

1. Receipts of every node have all numbers, up to one that came long enough ago.
2. Every audit entry and receipt is in the log, and nothing waits for its place for long.
3. Every leaf is what it was when it was recorded, as far as retention has kept it.
4. Leaves, tiles, head and checkpoints agree, and every checkpoint is signed by a key of the log.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from datetime import timedelta
from itertools import chain
from typing import Final, NoReturn

from control_plane.completeness.domain import (
    KINDS_WITH_FACTS,
    MAX_MISSING,
    WINDOW_LEAVES,
    Check,
    Finding,
    LogState,
    NodeNumbers,
    Progress,
    Summary,
    Window,
    check_fact,
    check_root,
    missing_finding,
    tiles_of_sizes,
    tiles_of_window,
    was_removed,
)
from control_plane.completeness.ports import CompletenessStore, EvidenceObserver, LogKeyring
from control_plane.database.ports import Database, Transaction
from control_plane.log.ports import LogStore
from shared.checkpoints import parse_checkpoint, verify_log_signature
from shared.clock import Random
from shared.errors import AgentFactoryError, InvalidInputError, ResourceExhaustedError, VerificationError
from shared.keyset import KeyPurpose
from shared.logs import get_logger
from shared.signatures import PublicKey
from shared.tiles import TILE_WIDTH

logger = get_logger(__name__)

GRACE: Final = timedelta(minutes=1)
"""What is younger may be under way."""
LOOK_EVERY: Final = timedelta(minutes=1)
MAX_NUMBERS: Final = 10_000
"""Numbers of a node that are looked at together."""
FACTS_AT_ONCE: Final = 2_000
NEWEST_FACTS: Final = 500
"""Of each of some tenants, and of receipts."""
SAMPLES: Final = 8
"""Tiles at random places that a sample has beside the end of the log."""
MAX_CHECKPOINTS: Final = 256
"""The newest of one window."""
MAX_FINDINGS: Final = 1_000
"""Of one check on demand; then it ends."""

MAX_CHECKS: Final = 2
"""On demand, at the same time, of one replica."""

Event = Finding | Progress | Summary


class CompletenessService:
    """Looks at the evidence of all tenants. `origins` are the names of this installation's logs."""

    def __init__(
        self,
        *,
        database: Database,
        store: CompletenessStore,
        log: LogStore,
        keys: LogKeyring,
        origins: Sequence[str],
        observer: EvidenceObserver,
        random: Random,
        grace: timedelta = GRACE,
    ) -> None:
        self._database = database
        self._store = store
        self._log = log
        self._keys = keys
        self._origins = origins
        self._observer = observer
        self._random = random
        self._grace = grace
        self._checks = 0
        self._place = 0
        self._wrong: dict[Check, int] = dict.fromkeys(Check, 0)

    # -- on demand --

    async def check(self, *, from_log_index: int | None) -> AsyncGenerator[Event]:
        """Yield findings and progress, and last a summary; from a leaf on all, None: a sample.

        Raises:
            InvalidInputError: The log has no such leaf.
            ResourceExhaustedError: Others check already.
            VerificationError, UnavailableError: There is no keyset to verify checkpoints with.
        """
        if self._checks >= MAX_CHECKS:
            raise ResourceExhaustedError(f"{MAX_CHECKS} checks are running on this replica already")
        self._checks += 1
        try:
            async with aclosing(self._check(from_log_index)) as events:
                async for event in events:
                    yield event
        finally:
            self._checks -= 1

    async def _check(self, from_log_index: int | None) -> AsyncGenerator[Event]:
        summary = Summary()
        async with self._database.transaction() as tx:
            state = await self._store.state(tx)
        if from_log_index is not None and from_log_index > state.tree_size:
            raise InvalidInputError(f"the log has {state.tree_size} leaves, no leaf {from_log_index}")
        summary.tree_size = state.tree_size
        async for event in self._events(state, from_log_index, summary):
            if isinstance(event, Finding):
                summary.findings += 1
            yield event
            if summary.findings >= MAX_FINDINGS:
                break
        yield summary

    async def _events(
        self, state: LogState, from_log_index: int | None, summary: Summary
    ) -> AsyncGenerator[Event]:
        for finding in await self._state_findings(state):
            yield finding
        async for finding in self._numbers(summary, whole=from_log_index == 0):
            yield finding
        unlogged = self._unlogged() if from_log_index == 0 else self._newest_unlogged()
        async for finding in unlogged:
            yield finding
        windows = self._sample(state) if from_log_index is None else _windows(from_log_index, state.tree_size)
        keys = await self._log_keys()
        for start, end in windows:
            for finding in await self._window(start, end, keys, summary):
                yield finding
            yield Progress(next_log_index=end, tree_size=state.tree_size)

    async def _state_findings(self, state: LogState) -> list[Finding]:
        async with self._database.transaction() as tx:
            tiles = await self._log.tiles(tx, tiles_of_sizes([state.tree_size]))
        found = [check_root(tiles, state.tree_size, state.root, "head")]
        signed = state.signed_size
        if signed > state.tree_size:
            found.append(_tree("head", f"it has {state.tree_size} leaves, a checkpoint has {signed}"))
        elif signed < state.tree_size and state.idle_for > self._grace:
            found.append(_tree("head", f"no checkpoint has covered it for {state.idle_for}"))
        if state.waiting_for > self._grace:
            message = f"what was recorded {state.waiting_for} ago is not in the log yet"
            found.append(Finding(check=Check.LOG, subject="log", message=message))
        return [finding for finding in found if finding is not None]

    async def _window(
        self, start: int, end: int, keys: Sequence[PublicKey], summary: Summary
    ) -> list[Finding]:
        """Look at leaves, their facts, the tiles above them and the checkpoints among them."""
        async with self._database.transaction() as tx:
            leaves = await self._store.leaves(tx, start, end)
            notes = await self._store.checkpoints(tx, above=start, up_to=end, limit=MAX_CHECKPOINTS)
            tiles = await self._log.tiles(
                tx, tiles_of_window(start, end) | tiles_of_sizes([size for size, _ in notes])
            )
        found = [check_fact(leaf) for leaf in leaves]
        found += Window(start=start, end=end, leaves=leaves, tiles=tiles).checked().findings
        for size, note in notes:
            found += [check_root(tiles, size, self._root_of(note, size, keys), f"checkpoint {size}")]
        with_facts = [leaf for leaf in leaves if leaf.kind in KINDS_WITH_FACTS]
        removed = sum(map(was_removed, with_facts))
        summary.leaves += len(leaves)
        summary.removed += removed
        summary.facts += len(with_facts) - removed
        summary.checkpoints += len(notes)
        return [finding for finding in found if finding is not None]

    def _root_of(self, note: bytes, size: int, keys: Sequence[PublicKey]) -> bytes:
        """Return the root that a note signs; nothing where it is not signed by this log."""
        try:
            signed = parse_checkpoint(note)
            origin = signed.checkpoint.origin
            if origin not in self._origins or signed.checkpoint.size != size:
                return b""
            return verify_log_signature(signed, origin=origin, keys=keys).root
        except VerificationError as error:
            logger.warning("a checkpoint is not signed", size=size, error=str(error))
            return b""

    async def _log_keys(self) -> list[PublicKey]:
        keyset = await self._keys.current()
        return [entry.key for entry in keyset.entries if entry.purpose is KeyPurpose.LOG]

    def _sample(self, state: LogState) -> Iterable[tuple[int, int]]:
        size = state.tree_size
        last = max(0, size - WINDOW_LEAVES) // TILE_WIDTH * TILE_WIDTH
        tiles = last // TILE_WIDTH
        drawn = {int.from_bytes(self._random.token_bytes(8), "big") % tiles for _ in range(SAMPLES) if tiles}
        chosen = [(tile * TILE_WIDTH, (tile + 1) * TILE_WIDTH) for tile in sorted(drawn)]
        return chain(chosen, _windows(last, size))

    # -- receipts --

    async def _numbers(self, summary: Summary, *, whole: bool) -> AsyncIterator[Finding]:
        async with self._database.transaction() as tx:
            nodes = await self._store.nodes(tx, grace=self._grace)
        for node in nodes:
            above = node.dropped_to if whole else max(node.dropped_to, node.due - MAX_NUMBERS)
            missing: list[int] = []
            summary.nodes += 1
            summary.receipts += max(0, node.due - above)
            if not whole:
                missing += await self._still_missing(node)
            while above < node.due and len(missing) < MAX_MISSING:
                up_to = min(node.due, above + MAX_NUMBERS)
                async with self._database.transaction() as tx:
                    missing += await self._store.missing(tx, node.node_id, above=above, up_to=up_to)
                above = up_to
            if missing:
                yield missing_finding(node.node_id, sorted(set(missing)))

    async def _still_missing(self, node: NodeNumbers) -> list[int]:
        async with self._database.transaction() as tx:
            return await self._again(tx, node)

    async def _again(self, tx: Transaction, node: NodeNumbers) -> list[int]:
        """Return those of the numbers known as missing that still are."""
        known = [number for number in node.missing if number > node.dropped_to]
        if not known:
            return []
        gone = await self._store.missing(tx, node.node_id, above=known[0] - 1, up_to=known[-1])
        return sorted(set(known) & set(gone))

    # -- not in the log --

    async def _newest_unlogged(self) -> AsyncIterator[Finding]:
        async with self._database.transaction() as tx:
            wrong = await self._store.newest_unlogged(tx, older_than=self._grace, limit=NEWEST_FACTS)
        for subject in wrong:
            yield _unlogged(subject)

    async def _unlogged(self) -> AsyncIterator[Finding]:
        entry: tuple[str, str] | None = ("", "")
        while entry is not None:
            async with self._database.transaction() as tx:
                wrong, entry = await self._store.unlogged(
                    tx, older_than=self._grace, behind=entry, limit=FACTS_AT_ONCE
                )
            for subject in wrong:
                yield _unlogged(subject)
        receipt: str | None = ""
        while receipt is not None:
            async with self._database.transaction() as tx:
                wrong, receipt = await self._store.unlogged_receipts(
                    tx, older_than=self._grace, behind=receipt, limit=FACTS_AT_ONCE
                )
            for subject in wrong:
                yield _unlogged(subject)

    # -- all the time --

    async def run(self) -> NoReturn:
        """Look once a minute until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            try:
                await self.look()
            except AgentFactoryError as error:
                logger.warning("evidence not checked, tried again", error=str(error))

    async def look(self) -> None:
        """Look at the numbers that came since the last time and at the next window of the log, and tell.

        Raises:
            VerificationError, UnavailableError: There is no keyset to verify with, or no database.
        """
        async with self._database.transaction() as tx:
            state = await self._store.state(tx)
            leads = await self._store.take_lead(tx)
            nodes = await self._store.nodes(tx, grace=self._grace)
            missing = [await self._advanced(tx, node) if leads else node.missing for node in nodes]
        self._observer.receipts_missing(sum(map(len, missing)))
        self._observer.log_waiting(state.waiting_for.total_seconds())
        for node, numbers in zip(nodes, missing, strict=True):
            if numbers and tuple(numbers) != node.missing:
                _tell(missing_finding(node.node_id, numbers))
        if leads:
            await self._next_window(state)

    async def _advanced(self, tx: Transaction, node: NodeNumbers) -> Sequence[int]:
        missing = await self._again(tx, node)
        above = max(node.checked_to, node.dropped_to)
        up_to = min(max(node.due, above), above + MAX_NUMBERS)
        if len(missing) < MAX_MISSING and up_to > above:
            missing += await self._store.missing(tx, node.node_id, above=above, up_to=up_to)
        else:
            up_to = node.checked_to
        if (up_to, tuple(missing)) != (node.checked_to, node.missing):
            await self._store.mark(tx, node.node_id, checked_to=up_to, missing=missing)
        return missing

    async def _next_window(self, state: LogState) -> None:
        """Look at the next window; what a whole pass has found is told until the next pass has ended."""
        if self._place >= state.tree_size:
            for check in Check:
                self._observer.evidence_wrong(check, self._wrong[check])
            self._place, self._wrong = 0, dict.fromkeys(Check, 0)
        start = self._place // TILE_WIDTH * TILE_WIDTH  # the log has grown since the last window ended
        end = min(start + WINDOW_LEAVES, state.tree_size)
        found = await self._state_findings(state)
        if end > start:
            found += await self._window(start, end, await self._log_keys(), Summary())
        found += [finding async for finding in self._newest_unlogged()]
        self._place = end
        for finding in found:
            _tell(finding)
            self._wrong[finding.check] += 1
            self._observer.evidence_wrong(finding.check, self._wrong[finding.check])


def _windows(start: int, size: int) -> Iterable[tuple[int, int]]:
    """Return windows from the tile of `start` on to the end of the log."""
    first = start // TILE_WIDTH * TILE_WIDTH
    return ((at, min(at + WINDOW_LEAVES, size)) for at in range(first, size, WINDOW_LEAVES))


def _tree(subject: str, message: str) -> Finding:
    return Finding(check=Check.TREE, subject=subject, message=message)


def _unlogged(subject: str) -> Finding:
    return Finding(check=Check.LOG, subject=subject, message="it is recorded and not in the log")


def _tell(finding: Finding) -> None:
    logger.error(
        "evidence is not whole", check=str(finding.check), subject=finding.subject, found=finding.message
    )

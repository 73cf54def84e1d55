"""Who in this replica waits for which execution. Holds no truth: a lost hint costs a poll, no answer."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NoReturn

from control_plane.executions.domain import ExecutionState
from control_plane.executions.lifecycle import Execution
from control_plane.executions.ports import ExecutionStore
from shared.errors import DatabaseUnavailableError, ResourceExhaustedError
from shared.ids import ExecutionId
from shared.logs import get_logger

MAX_WATCHES: Final = 65_536
"""Callers of one replica that wait at the same time."""
POLL_SECONDS: Final = 1.0
MAX_POLLED: Final = 1000
"""Executions that one query asks about."""

_log = get_logger(__name__)


class Watch:
    """One caller's interest in one execution."""

    __slots__ = ("_changed", "_known", "awaits_end", "execution_id", "seen")

    def __init__(
        self, execution_id: ExecutionId, seen: ExecutionState | None = None, *, awaits_end: bool = False
    ) -> None:
        self.execution_id = execution_id
        self.awaits_end = awaits_end
        """Whether nothing but its end is of interest."""
        self.seen = seen
        """The last state that its caller was told."""
        self._changed = asyncio.Event()
        self._known: Execution | None = None

    async def changed(self) -> Execution | None:
        """Return after the next change since the last call; the execution, when it is known whole."""
        await self._changed.wait()
        self._changed.clear()
        known, self._known = self._known, None
        return known

    def tell(self, execution: Execution | None) -> None:
        """Wake the caller; a later change replaces what it has not read yet."""
        self._known = execution
        self._changed.set()


class CrowdWatch:
    """One caller's interest in the ends of many executions."""

    def __init__(self) -> None:
        self._told: dict[ExecutionId, Execution | None] = {}
        self._changed = asyncio.Event()

    def tell(self, execution_id: ExecutionId, execution: Execution | None) -> None:
        """Wake the caller; a later change replaces what it has not read yet."""
        self._told[execution_id] = execution
        self._changed.set()

    def wake(self) -> None:
        """Have `changed` return, with nothing new if there is none."""
        self._changed.set()

    async def changed(self) -> list[tuple[ExecutionId, Execution | None]]:
        """Return what has changed since the last call; each execution, when it is known whole."""
        await self._changed.wait()
        self._changed.clear()
        told, self._told = self._told, {}
        return list(told.items())


class _Member(Watch):
    """The place of one execution in a crowd."""

    __slots__ = ("_crowd",)

    def __init__(self, execution_id: ExecutionId, crowd: CrowdWatch) -> None:
        self.execution_id = execution_id
        self.awaits_end = True
        self.seen = None
        self._crowd = crowd

    def tell(self, execution: Execution | None) -> None:
        """See `Watch.tell`."""
        self._crowd.tell(self.execution_id, execution)


class Completions:
    """Wakes waiting callers: by results of this replica, by NOTIFY of others, and by a slow poll."""

    def __init__(self, *, poll_seconds: float = POLL_SECONDS, max_watches: int = MAX_WATCHES) -> None:
        self._watches: dict[ExecutionId, set[Watch]] = {}
        self._count = 0
        self._poll_seconds = poll_seconds
        self._max_watches = max_watches

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return self._count

    def is_awaited(self, execution_id: ExecutionId) -> bool:
        """Whether a caller of this replica waits for an execution."""
        return execution_id in self._watches

    @contextmanager
    def watch(self, execution_id: ExecutionId, *, awaits_end: bool = False) -> Iterator[Watch]:
        """Be told of changes for the length of the block; with `awaits_end` of those that may be the end.

        Raises:
            ResourceExhaustedError: Too many callers wait already.
        """
        if self._count >= self._max_watches:
            raise ResourceExhaustedError(f"{self._max_watches} callers of this replica wait already")
        watch = Watch(execution_id, awaits_end=awaits_end)
        self._add(watch)
        try:
            yield watch
        finally:
            self._remove(watch)

    @contextmanager
    def watch_crowd(self, execution_ids: Sequence[ExecutionId]) -> Iterator[CrowdWatch]:
        """Be told of the ends of all of these for the length of the block.

        Raises:
            ResourceExhaustedError: Too many callers wait already.
        """
        if self._count + len(execution_ids) > self._max_watches:
            raise ResourceExhaustedError(f"{self._max_watches} callers of this replica wait already")
        crowd = CrowdWatch()
        members = [_Member(execution_id, crowd) for execution_id in execution_ids]
        for member in members:
            self._add(member)
        try:
            yield crowd
        finally:
            for member in members:
                self._remove(member)

    def _add(self, watch: Watch) -> None:
        self._watches.setdefault(watch.execution_id, set()).add(watch)
        self._count += 1

    def _remove(self, watch: Watch) -> None:
        self._count -= 1
        others = self._watches[watch.execution_id]
        others.discard(watch)
        if not others:
            del self._watches[watch.execution_id]

    def complete(self, execution: Execution) -> None:
        """The execution changed and its change is committed. Never blocks, never raises."""
        # What finish returns knows its own attempt only: with earlier ones the caller reads it whole.
        whole = len(execution.attempts) == execution.fencing_token
        for watch in self._watches.get(execution.execution_id, ()):
            watch.tell(execution if whole else None)

    def changed(self, execution_ids: Sequence[str]) -> None:
        """These may have changed; none named: any may have. The subscriber of NOTIFY."""
        named = execution_ids or tuple(self._watches)
        for execution_id in named:
            for watch in self._watches.get(ExecutionId(execution_id), ()):
                watch.tell(None)

    def started(self, execution_ids: Sequence[str]) -> None:
        """The guests of these have started: nothing to those who await an end."""
        for execution_id in execution_ids:
            for watch in self._watches.get(ExecutionId(execution_id), ()):
                if not watch.awaits_end:
                    watch.tell(None)

    async def run(self, store: ExecutionStore) -> NoReturn:
        """Poll until cancelled: the fallback for hints that were lost."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.poll(store)
            except DatabaseUnavailableError as error:
                _log.warning("waiting callers were not polled", error=str(error))

    async def poll(self, store: ExecutionStore) -> None:
        """Wake those whose execution is in another state than they know.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """
        ids = list(self._watches)
        for first in range(0, len(ids), MAX_POLLED):
            states = await store.states_of(ids[first : first + MAX_POLLED])
            for execution_id, state in states.items():
                for watch in self._watches.get(execution_id, ()):
                    if watch.seen is not state and (state.is_terminal or not watch.awaits_end):
                        watch.tell(None)

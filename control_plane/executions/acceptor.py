"""Stores new executions in groups, placed at once where a slot is free (design section 4.3, rule 3)."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, NoReturn

from control_plane.database.group_commit import GroupCommit
from control_plane.executions.admission import Admission, Fate
from control_plane.executions.domain import Accepted, AcceptOutcome, NewExecution, Placement
from control_plane.executions.ports import ExecutionStore, Placer
from shared.errors import DatabaseUnavailableError, ResourceExhaustedError
from shared.gathering import Gathering
from shared.ids import TenantId

STORE_TRIES: Final = 2
"""A group whose commit has an unknown fate is stored once more, with the same ids and placements."""


class Acceptor:
    """The only way by which executions come into being."""

    def __init__(
        self,
        *,
        store: ExecutionStore,
        placer: Placer,
        admission: Admission | None = None,
        gathering: Gathering | None = None,
    ) -> None:
        self._store = store
        self._placer = placer
        self._admission = admission  # None: nothing is bounded but the writes that wait
        # Repeating is done here, where the placements of the first try are known.
        self._group = GroupCommit[NewExecution, Accepted](
            self._flush, size_of=_size_of, lane_of=_tenant_of, tries=1, gathering=gathering
        )

    def require_room(self, tenant_id: TenantId) -> None:
        """Return unless an execution of the tenant would be refused now: asked before work is spent on it.

        Raises:
            ResourceExhaustedError: As many wait as may.
        """
        if self._admission is not None:
            self._admission.require(tenant_id)

    async def accept(self, item: NewExecution) -> Accepted:
        """Return what became of it, after its commit; whatever runs, runs after that.

        Raises:
            ResourceExhaustedError: Too many wait already, for a node or to be stored.
            UnavailableError: The database is away or this process stops; nothing was promised.
        """
        return await self.enqueue(item)

    def enqueue(self, item: NewExecution) -> "asyncio.Future[Accepted]":
        """Like `accept`, without a coroutine: the answer comes with the future, a refusal too."""
        if self._admission is None:
            return self._group.enqueue(item)
        try:
            self._admission.require_models(item.run)
            self._admission.enter(item.run.tenant_id)
        except ResourceExhaustedError as full:
            refused: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
            refused.set_exception(full)
            return refused
        answer = self._group.enqueue(item)
        answer.add_done_callback(partial(_left, self._admission, item.run.tenant_id))
        return answer

    async def run(self) -> NoReturn:
        """Store groups until cancelled."""
        await self._group.run()

    async def _flush(self, items: Sequence[NewExecution]) -> Sequence[Accepted]:
        placements = self._placer.place(items)
        try:
            answers = await self._store_surely(items, placements)
        except BaseException:
            self._placer.release([one for one in placements if one is not None])
            raise
        self._settle(items, placements, answers)
        return answers

    async def _store_surely(
        self, items: Sequence[NewExecution], placements: Sequence[Placement | None]
    ) -> Sequence[Accepted]:
        for _ in range(STORE_TRIES - 1):
            try:
                return await self._store.accept(items, placements)
            except DatabaseUnavailableError:
                continue
        return await self._store.accept(items, placements)

    def _settle(
        self,
        items: Sequence[NewExecution],
        placements: Sequence[Placement | None],
        answers: Sequence[Accepted],
    ) -> None:
        sent: list[Placement] = []
        sent_items: list[NewExecution] = []
        dropped: list[Placement] = []
        waiting: set[TenantId] = set()
        for item, placement, answer in zip(items, placements, answers, strict=True):
            if placement is not None and answer.placed:
                sent.append(placement)
                sent_items.append(item)
                continue
            if placement is not None:
                dropped.append(placement)
            if answer.outcome is AcceptOutcome.NEW:
                waiting.add(item.run.tenant_id)
        if sent:
            self._placer.commit(sent, sent_items)
        if dropped:
            self._placer.release(dropped)
        if waiting:
            self._placer.wake(of=waiting)


def _left(admission: Admission, tenant_id: TenantId, answer: "asyncio.Future[Accepted]") -> None:
    admission.left(tenant_id, _fate_of(answer))


def _fate_of(answer: "asyncio.Future[Accepted]") -> Fate:
    # When its caller or Postgres went away, nobody knows what became of it: it waits, until the next count.
    if answer.cancelled():
        return Fate.WAITS
    error = answer.exception()
    if error is not None:
        return Fate.WAITS if isinstance(error, DatabaseUnavailableError) else Fate.NONE
    accepted = answer.result()
    if accepted.outcome is not AcceptOutcome.NEW:
        return Fate.NONE
    return Fate.PLACED if accepted.placed else Fate.WAITS


def _tenant_of(item: NewExecution) -> TenantId:
    return item.run.tenant_id


def _size_of(item: NewExecution) -> int:
    content = item.run.input.content
    return len(item.run.parameters) + (len(content) if content is not None else 0)

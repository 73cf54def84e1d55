"""The dispatcher's side of the executions in memory: a queue, live attempts, and what became of them.

Keeps what dispatch asks for and nothing of an execution's content; it does not judge results.
"""

from collections.abc import Sequence
from datetime import timedelta

from control_plane.executions.domain import (
    AttemptRef,
    AttemptResult,
    CancelRequest,
    Claimable,
    Claimed,
    Disposition,
    ExecutionState,
    LossReason,
    LostAttempt,
    Placement,
    SessionRef,
    SignedBatchRecord,
)
from control_plane.executions.lifecycle import Finished
from control_plane.executions.ports import Place
from shared.errors import DatabaseUnavailableError, SessionSupersededError
from shared.ids import BootId, ExecutionId, NodeId, TenantId


class FakeLeaseStore:
    """What `LeaseStore` promises, as far as dispatch can tell."""

    def __init__(self) -> None:
        self.queue: list[Claimable] = []
        self.live: dict[tuple[ExecutionId, int], Placement] = {}
        self.batches: list[SignedBatchRecord] = []
        self.started: list[AttemptRef] = []
        self.released: list[Placement] = []
        self.renewals: list[list[AttemptRef]] = []
        self.finished: list[AttemptResult] = []
        self.cancels: list[CancelRequest] = []
        self.expired: list[LostAttempt] = []
        self.sweeps = 0
        self.away = False
        self.superseded: set[NodeId] = set()

    def _answer(self) -> None:
        if self.away:
            raise DatabaseUnavailableError("postgres is away")

    async def claim(self, session: SessionRef, *, limit: int, place: Place) -> Claimed:
        if session.node_id in self.superseded:
            raise SessionSupersededError("newer session")
        found = [one for one in self.queue if session.node_id not in one.excluded_nodes][:limit]
        placements = tuple(place(found)) if found else ()
        self._answer()
        chosen = {placement.execution_id for placement in placements}
        by_id = {one.run.execution_id: one for one in found}
        self.queue = [one for one in self.queue if one.run.execution_id not in chosen]
        self.live.update({(one.execution_id, one.fencing_token): one for one in placements})
        return Claimed(
            placements=placements,
            executions=tuple(by_id[one.execution_id] for one in placements),
            queue_empty=len(found) < limit and len(placements) == len(found),
        )

    async def record_batch(self, batch: SignedBatchRecord) -> None:
        self._answer()
        self.batches.append(batch)

    async def orders_of(self, attempts: Sequence[AttemptRef]) -> Sequence[Placement]:
        self._answer()
        keys = [(one.execution_id, one.fencing_token) for one in attempts]
        return [self.live[key] for key in keys if key in self.live]

    async def start(self, attempts: Sequence[AttemptRef]) -> None:
        self._answer()
        self.started.extend(attempts)

    async def renew(
        self, node_id: NodeId, attempts: Sequence[AttemptRef], *, lease: timedelta
    ) -> Sequence[AttemptRef]:
        self._answer()
        self.renewals.append(list(attempts))
        return [one for one in attempts if (one.execution_id, one.fencing_token) in self.live]

    async def finish(self, results: Sequence[AttemptResult]) -> Sequence[Finished]:
        self._answer()
        self.finished.extend(results)
        return [
            Finished(
                receipt_id=one.receipt_id,
                node_id=one.node_id,
                sequence=one.sequence,
                disposition=Disposition.EVIDENCE,
                execution=None,
            )
            for one in results
        ]

    async def expire_leases(self, *, limit: int) -> Sequence[LostAttempt]:
        self._answer()
        self.sweeps += 1
        lost, self.expired = self.expired[:limit], self.expired[limit:]
        return lost

    async def lose_attempts_of_other_boots(self, node_id: NodeId, boot_id: BootId) -> Sequence[LostAttempt]:
        self._answer()
        gone = [one for one in self.live.values() if one.node_id == node_id and one.boot_id != boot_id]
        for one in gone:
            del self.live[one.execution_id, one.fencing_token]
        return [lost(one, LossReason.NODE_RESTARTED) for one in gone]

    async def release_unsent(self, placements: Sequence[Placement]) -> Sequence[LostAttempt]:
        self._answer()
        self.released.extend(placements)
        for one in placements:
            self.live.pop((one.execution_id, one.fencing_token), None)
        return [lost(one, LossReason.ORDER_NOT_SENT) for one in placements]

    async def expire_deadlines(self, *, limit: int) -> Sequence[ExecutionId]:
        self._answer()
        return []

    async def cancel_requests(self, node_ids: Sequence[NodeId]) -> Sequence[CancelRequest]:
        self._answer()
        return [one for one in self.cancels if one.node_id in node_ids]


def lost(placement: Placement, reason: LossReason = LossReason.LEASE_EXPIRED) -> LostAttempt:
    """An attempt that ended without a result."""
    return LostAttempt(
        attempt=placement.attempt,
        node_id=placement.node_id,
        tenant_id=TenantId("default"),
        reason=reason,
        state=ExecutionState.PENDING,
    )

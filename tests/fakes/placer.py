"""A dispatcher in memory: places while it has slots and remembers what became of its placements."""

from collections.abc import Collection, Sequence

from control_plane.executions.domain import CancelRequest, NewExecution, Placement, SessionRef
from shared.ids import TenantId
from tests.builders.executions import Builder, session


class FakePlacer:
    """Implements `Placer`."""

    def __init__(self, build: Builder, *, slots: int = 0, at: SessionRef | None = None) -> None:
        self.build = build
        self.slots = slots
        self.at = at or session()
        self.placed: list[Placement] = []
        self.committed: list[Placement] = []
        self.released: list[Placement] = []
        self.cancelled: list[CancelRequest] = []
        self.woken = 0

    def place(self, executions: Sequence[NewExecution]) -> Sequence[Placement | None]:
        placements: list[Placement | None] = []
        for execution in executions:
            if self.slots == 0:
                placements.append(None)
                continue
            self.slots -= 1
            placement = self.build.placement(execution, self.at)
            self.placed.append(placement)
            placements.append(placement)
        return placements

    def commit(self, placements: Sequence[Placement], executions: Sequence[NewExecution]) -> None:
        assert [one.execution_id for one in placements] == [one.run.execution_id for one in executions]
        self.committed.extend(placements)

    def release(self, placements: Sequence[Placement]) -> None:
        self.released.extend(placements)
        self.slots += len(placements)

    def wake(self, *, of: Collection[TenantId] | None = None) -> None:
        self.woken += 1

    def cancel(self, requests: Sequence[CancelRequest]) -> None:
        self.cancelled.extend(requests)

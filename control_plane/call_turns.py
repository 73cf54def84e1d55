"""How many unary calls are worked on at once, and whose is next: tenants take turns. Memory only.

One event loop works on everything. Whatever it has begun, each of its steps stands behind one step of all
others; so a tenant that sends hundreds at once would delay every other at each step. Here few of them are
begun, the others wait without costing anything, and beyond a bound they are refused before they are read.

Round robin over lanes that wait, as in `database/lanes.py`, with a bound for each: a call of one more tenant
is begun with at once, whatever another one has under way. Each service of a tenant is a lane of its own, so
that its operators can stop what its callers do.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.company import Company
from shared.clock import Clock
from shared.errors import ResourceExhaustedError
from shared.ids import TenantId
from shared.rpc.patience import MIN_RETRY_AFTER

_Key = tuple[TenantId, str]

MAX_RETRY_AFTER: Final = timedelta(seconds=30)

LOOK_EVERY: Final = timedelta(milliseconds=50)
MAX_LATE: Final = timedelta(milliseconds=5)
"""An execution has a dozen steps on the loop, and is late at each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnBounds:
    """How many calls of one replica's server are worked on, and wait."""

    at_once: int = 128
    """Of all tenants together."""
    at_once_of_tenant: int = 64
    """To one service."""
    at_once_in_company: int = 8
    """Of a tenant while others are active: what one of them stands behind when it comes."""
    at_once_at_least: int = 2
    """Of a tenant that has a backlog, while the event loop is late: what runs has the processor first."""
    waiting_of_tenant: int = 512
    """Far below what gRPC turns away by itself; of all tenants together as many as `RpcBounds` lets in."""

    def __post_init__(self) -> None:
        bounds = (self.at_once_at_least, self.at_once_in_company, self.at_once_of_tenant, self.at_once - 1)
        if not 0 < bounds[0] <= bounds[1] <= bounds[2] <= bounds[3] or self.waiting_of_tenant < 1:
            raise ValueError(f"{self} lets one tenant take all turns, or nobody have any")


class CallTurns:
    """Implements `Turns`. Used on one event loop only."""

    def __init__(
        self,
        *,
        clock: Clock,
        has_backlog: Callable[[TenantId], bool] = lambda _: False,
        bounds: TurnBounds | None = None,
    ) -> None:
        self._bounds = bounds or TurnBounds()
        self._has_backlog = has_backlog
        self._clock = clock
        self._lanes: dict[_Key, _Lane] = {}  # of those with a call under way or waiting
        self._next: OrderedDict[_Key, _Lane] = OrderedDict()  # that could begin another; the first is next
        self._under_way = 0
        self._company = Company()
        self._pressed = self._bounds.at_once_in_company

    def require_room(self, tenant_id: TenantId, service: str) -> None:
        """See `Turns.require_room`."""
        lane = self._lanes.get((tenant_id, service))
        if lane is not None:
            self._require_room(lane)

    async def take(self, tenant_id: TenantId, service: str) -> "CallTurn":
        """See `Turns.take`."""
        self._company.came(tenant_id, self._clock.monotonic())
        key = (tenant_id, service)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
        if not lane.waiting and self._has_room(lane):
            self._begin(lane)
        else:
            await self._wait(lane)
        lane.refused = max(0, lane.refused - 1)
        return CallTurn(self, lane)

    async def run(self) -> NoReturn:
        """Watch how late the event loop is until cancelled."""
        while True:
            due = self._clock.monotonic() + LOOK_EVERY.total_seconds()
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            self.was_late(timedelta(seconds=self._clock.monotonic() - due))

    def was_late(self, late: timedelta) -> None:
        """The event loop came to something so late: begin fewer while that is too much, else one more."""
        if late > MAX_LATE:
            self._pressed = max(self._bounds.at_once_at_least, self._pressed // 2)
        else:
            self._pressed = min(self._bounds.at_once_in_company, self._pressed + 1)

    def give_back(self, lane: "_Lane") -> None:
        """One call of the lane is done with: begin what waits."""
        lane.under_way -= 1
        self._under_way -= 1
        self._offer(lane)
        self._begin_waiting()
        self._forget(lane)

    def waiting(self, tenant_id: TenantId) -> int:
        """Return how many calls of a tenant wait for their turn."""
        return sum(len(lane.waiting) for key, lane in self._lanes.items() if key[0] == tenant_id)

    def _require_room(self, lane: "_Lane") -> None:
        if len(lane.waiting) >= self._bounds.waiting_of_tenant:
            raise self._full(lane)

    async def _wait(self, lane: "_Lane") -> None:
        self._require_room(lane)
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting[begun] = self._clock.monotonic()
        self._offer(lane)
        try:
            await begun
        except asyncio.CancelledError:
            if begun.cancelled():
                lane.waiting.pop(begun, None)
                self._forget(lane)
            else:
                self.give_back(lane)  # its turn had come meanwhile
            raise

    def _has_room(self, lane: "_Lane") -> bool:
        return self._under_way < self._bounds.at_once and lane.under_way < self._bound(lane)

    def _bound(self, lane: "_Lane") -> int:
        if self._has_backlog(lane.key[0]):
            return self._pressed
        mixed = self._company.is_mixed(self._clock.monotonic())
        return self._bounds.at_once_in_company if mixed else self._bounds.at_once_of_tenant

    def _begin(self, lane: "_Lane") -> None:
        lane.under_way += 1
        self._under_way += 1

    def _offer(self, lane: "_Lane") -> None:
        if lane.waiting and lane.under_way < self._bound(lane):
            self._next.setdefault(lane.key, lane)

    def _begin_waiting(self) -> None:
        while self._next and self._under_way < self._bounds.at_once:
            _, lane = self._next.popitem(last=False)
            while lane.waiting:
                begun, _ = lane.waiting.popitem(last=False)
                if not begun.done():  # else its caller has just gone away
                    self._begin(lane)
                    begun.set_result(None)
                    break
            self._offer(lane)

    def _forget(self, lane: "_Lane") -> None:
        if not lane.waiting:
            self._next.pop(lane.key, None)
            if not lane.under_way:
                self._lanes.pop(lane.key, None)

    def _full(self, lane: "_Lane") -> ResourceExhaustedError:
        """Refuse until those that wait, and those that were refused before, have had their turns."""
        lane.refused += 1
        bound = self._bounds.waiting_of_tenant
        oldest = self._clock.monotonic() - next(iter(lane.waiting.values()))
        pause = timedelta(seconds=oldest * (1 + lane.refused / bound))
        return ResourceExhaustedError(
            f"{bound} calls of tenant {lane.key[0]} wait for their turn already",
            hint="come again after the time that is told, and send fewer at once",
            retry_after=min(max(pause, MIN_RETRY_AFTER), MAX_RETRY_AFTER),
        )


class CallTurn:
    """One call that is worked on."""

    __slots__ = ("_lane", "_turns")

    def __init__(self, turns: CallTurns, lane: "_Lane") -> None:
        self._turns = turns
        self._lane: _Lane | None = lane

    def end(self) -> None:
        """See `Turn.end`."""
        lane, self._lane = self._lane, None
        if lane is not None:
            self._turns.give_back(lane)


class _Lane:
    """The calls of one tenant to one service."""

    __slots__ = ("key", "refused", "under_way", "waiting")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.under_way = 0
        self.refused = 0
        """Callers that will come again."""
        self.waiting: OrderedDict[asyncio.Future[None], float] = OrderedDict()
        """With the monotonic second since which each waits."""

"""Batches of orders from their making until their signature is on record.

Where an order stands in its batch is known at once and stored with it; the root is signed while the database
commits the orders, and the signature goes on record with the first receipt, or a moment later by itself.
Keeps no transaction open and sends nothing.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from control_plane.dispatch.background import Background
from control_plane.dispatch.options import MAX_BATCH_ORDERS, DispatchOptions
from control_plane.dispatch.ports import Observer
from control_plane.dispatch.trails import AttemptKey, AttemptTrails
from control_plane.executions.domain import BatchPlace, Placement, RunSpec, SignedBatchRecord
from control_plane.executions.ports import LeaseStore
from shared.clock import Clock, Random
from shared.dsse import decode_envelope
from shared.errors import AgentFactoryError
from shared.ids import ORDER_BATCH, OrderBatchId, OrderId, new_id
from shared.orders import PlannedBatch, plan_batch, sign_planned
from shared.signatures import Signer
from shared.tracing import Trail

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """An order whose claim has committed."""

    placement: Placement
    run: RunSpec


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Orders under one root. `record` is there once it is signed."""

    batch_id: OrderBatchId
    plan: PlannedBatch
    left: int
    """Orders of which nobody knows yet whether they are committed."""
    committed: list[Committed] = field(default_factory=list)
    record: SignedBatchRecord | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is signed, or cannot be."""
    begun_at: float = 0.0
    settled_at: float = 0.0


class Batches:
    """The batches of one replica. Used from one event loop."""

    def __init__(
        self,
        *,
        leases: LeaseStore,
        signer: Signer,
        options: DispatchOptions,
        clock: Clock,
        random: Random,
        background: Background,
        observer: Observer,
        trails: AttemptTrails | None = None,
    ) -> None:
        self._leases = leases
        self._signer = signer
        self._options = options
        self._clock = clock
        self._random = random
        self._background = background
        self._observer = observer
        self._trails = trails or AttemptTrails()
        self._open: dict[OrderBatchId, Batch] = {}  # bounded by the orders that sessions hold
        self._of_order: dict[OrderId, Batch] = {}

    def begin(self, orders: Sequence[bytes], attempts: Sequence[AttemptKey] = ()) -> list[BatchPlace]:
        """Put the orders of attempts into batches, and have each signed from now on; returns their places."""
        places: list[BatchPlace] = []
        for first in range(0, len(orders), MAX_BATCH_ORDERS):
            some = slice(first, first + MAX_BATCH_ORDERS)
            places += self._begin_one(orders[some], attempts[some])
        return places

    def _begin_one(self, orders: Sequence[bytes], attempts: Sequence[AttemptKey]) -> list[BatchPlace]:
        plan = plan_batch(
            orders,
            installation=self._options.installation,
            epoch=self._options.epoch,
            issued_at=self._clock.now(),
        )
        batch = Batch(batch_id=new_id(ORDER_BATCH, self._clock, self._random), plan=plan, left=len(orders))
        self._open[batch.batch_id] = batch
        trail = self._trails.signing(attempts)
        trail.note(batch_id=batch.batch_id, orders=len(orders))
        self._background.spawn(self._sign(batch, trail), name="sign orders")
        return [
            BatchPlace(batch_id=batch.batch_id, leaf_index=index, path=path)
            for index, path in enumerate(plan.paths)
        ]

    async def _sign(self, batch: Batch, trail: Trail) -> None:
        started = batch.begun_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._options.sign_deadline.total_seconds()):
                envelope = await sign_planned(batch.plan, self._signer)
        except (AgentFactoryError, TimeoutError) as error:
            logger.warning("orders could not be signed", orders=len(batch.plan.paths), error=str(error))
        else:
            key_id = decode_envelope(envelope).signatures[0].key_id
            batch.record = SignedBatchRecord(batch_id=batch.batch_id, envelope=envelope, key_id=key_id)
            self._observer.stage("sign", self._clock.monotonic() - started)
        finally:
            batch.settled_at = self._clock.monotonic()
            batch.settled.set()
            trail.end(failed="" if batch.record is not None else "unsigned")

    def commit(self, placements: Sequence[Placement], runs: Sequence[RunSpec]) -> list[Batch]:
        """Note that these placements are committed; returns their batches, in order."""
        touched: dict[OrderBatchId, Batch] = {}
        for placement, run in zip(placements, runs, strict=True):
            batch = self._open[placement.batch.batch_id]
            batch.left -= 1
            batch.committed.append(Committed(placement=placement, run=run))
            self._of_order[placement.order_id] = batch
            touched[batch.batch_id] = batch
        return list(touched.values())

    def drop(self, placements: Iterable[Placement]) -> None:
        """Note that these placements were not committed: their orders never leave."""
        for placement in placements:
            batch = self._open.get(placement.batch.batch_id)
            if batch is None:
                continue
            batch.left -= 1
            if batch.left <= 0 and not batch.committed:
                del self._open[batch.batch_id]

    # --- the record of the signature

    def unrecorded(self, order_id: OrderId) -> SignedBatchRecord | None:
        """Return the signature of an order that is not on record yet: a receipt brings it along."""
        batch = self._of_order.get(order_id)
        return None if batch is None else batch.record

    def recorded(self, batch_ids: Iterable[OrderBatchId]) -> None:
        """Forget batches whose signature is on record."""
        for batch_id in batch_ids:
            batch = self._open.pop(batch_id, None)
            if batch is not None:
                for one in batch.committed:
                    self._of_order.pop(one.placement.order_id, None)

    async def record_loop(self) -> None:
        """Record what no receipt has brought along. Never returns."""
        while True:
            await asyncio.sleep(self._options.record_linger.total_seconds())
            await self.record_once()

    async def record_once(self, *, all_of_them: bool = False) -> None:
        """Record signatures that have lingered, or all; what cannot be recorded waits for the next turn."""
        linger = 0.0 if all_of_them else self._options.record_linger.total_seconds()
        oldest = self._clock.monotonic() - linger
        settled = [one for one in self._open.values() if one.settled.is_set() and one.settled_at <= oldest]
        self.recorded(one.batch_id for one in settled if one.record is None and one.left <= 0)
        due = [one.record for one in settled if one.record is not None and one.committed]
        for first in range(0, len(due), MAX_BATCH_ORDERS):
            some = due[first : first + MAX_BATCH_ORDERS]
            try:
                async with asyncio.timeout(self._options.store_deadline.total_seconds()):
                    await self._leases.record_batches(some)
            except (AgentFactoryError, TimeoutError) as error:
                logger.warning("signatures were not recorded", batches=len(some), error=str(error))
                return
            self.recorded(record.batch_id for record in some)

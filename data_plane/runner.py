"""Runs orders: every check, then the guest, then the receipt, whatever happens. Owns queue, slots and tasks.

Each order that arrives ends in exactly one receipt, unless the spool cannot take it or the process dies. A
run is stopped from outside by `stop`: cancelled, out of lease, or because the node goes.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NoReturn

from data_plane.attempt import Running, StopReason, begin_trail, end_trail
from data_plane.carrier import OrderCarrier, count_rejection
from data_plane.metrics import NodeMetrics, Stage
from data_plane.orders.admission import Admissions
from data_plane.orders.domain import AttemptRef, Delivery
from data_plane.orders.freshness import Freshness
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.ledger import OrderLedger
from data_plane.orders.verifier import (
    Check,
    NodeFacts,
    verify_order,
    verify_root,
)
from data_plane.ports import Announcer
from data_plane.receipts.issuer import ReceiptIssuer, Report, rejection_of
from data_plane.receipts.ports import Reservation
from data_plane.session.leases import Leases
from shared.clock import Clock
from shared.digests import Digest, sha256_digest
from shared.errors import (
    OrderRejectedError,
    RejectionReason,
    SpoolCorruptError,
)
from shared.ids import KeyId
from shared.keyset import KeyPurpose
from shared.logs import get_logger
from shared.orders import Order, VerifiedOrderRoot
from shared.outcomes import Outcome
from shared.tracing import NO_TRACER, Tracer

logger = get_logger(__name__)

MAX_QUEUED: Final = timedelta(seconds=2)
"""How long an order may wait for a slot here before it goes back, for another node to have it."""

REMEMBERED_ROOTS: Final = 64
"""Verified batch roots: the orders of one batch may come in several messages."""


class OrderRunner:
    """The node's way of one order; `run` owns the tasks, `receive` and `stop` are called beside it."""

    def __init__(
        self,
        *,
        facts: NodeFacts,
        keyset: NodeKeyset,
        freshness: Freshness,
        ledger: OrderLedger,
        leases: Leases,
        admissions: Admissions,
        carrier: OrderCarrier,
        issuer: ReceiptIssuer,
        announcer: Announcer,
        metrics: NodeMetrics,
        clock: Clock,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._facts = facts
        self._keyset = keyset
        self._freshness = freshness
        self._ledger = ledger
        self._leases = leases
        self._admissions = admissions
        self._carrier = carrier
        self._issuer = issuer
        self._announcer = announcer
        self._metrics = metrics
        self._clock = clock
        self._tracer = tracer
        self._roots: OrderedDict[tuple[int, Digest], VerifiedOrderRoot] = OrderedDict()
        self._running: dict[AttemptRef, Running] = {}
        self._queue: deque[Running] = deque()  # bounded by the admissions
        self._idle_slots: deque[asyncio.Future[None]] = deque()
        self._stopped_for: tuple[frozenset[KeyId], frozenset[KeyId]] = frozenset(), frozenset()
        """The revoked order and compiler keys of which nothing runs any more."""
        self._tasks: asyncio.TaskGroup | None = None
        self._takes_orders = True
        self._unfinished = 0
        self._all_finished = asyncio.Event()
        self._all_finished.set()

    async def run(self, ended: asyncio.Event) -> None:
        """Own the tasks of all orders until `ended` is set and the last receipt is written.

        Raises:
            SpoolCorruptError: Receipts cannot be written any more, so nothing may run.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            slots = [tasks.create_task(self._serve_slot()) for _ in range(self._admissions.slots)]
            await ended.wait()
            self._takes_orders = False
            await self.finished()
            for slot in slots:
                slot.cancel()

    async def finished(self) -> None:
        """Return once no order is on its way."""
        await self._all_finished.wait()

    def receive(self, envelope: bytes, deliveries: Sequence[Delivery]) -> None:
        """Take the orders of one message: checks 1 to 11 at once, the rest when a slot is free.

        Deliveries after the end of `run` are ignored: their leases run out.
        """
        if self._tasks is None or not self._takes_orders:
            return
        received_at = self._clock.now()
        with self._metrics.timed(Stage.VERIFY):
            try:
                self._freshness.require()
                root = self._root(envelope, received_at)
            except OrderRejectedError as error:
                if error.check is not Check.FRESHNESS:
                    self._metrics.signature_failures.labels("order").inc()
                for delivery in deliveries:
                    self._start(self._reject(delivery, None, received_at, error))
                return
            for delivery in deliveries:
                self._receive_one(root, envelope, delivery, received_at)

    def stop(self, attempt: AttemptRef, reason: StopReason) -> None:
        """Stop the run of an attempt; without effect when it has ended or is unknown."""
        running = self._running.get(attempt)
        if running is not None and running.stopped is None:
            self._stop(running, reason)

    def _stop(self, running: Running, reason: StopReason) -> None:
        running.stopped = reason
        if running in self._queue:
            self._queue.remove(running)
            self._conclude(running, self._carrier.stopped_report(running, reason))
        elif running.task is not None and running.is_stoppable:
            running.task.cancel()

    def stop_all(self, reason: StopReason) -> None:
        """Stop every run, and every order that waits for one."""
        for attempt in list(self._running):
            self.stop(attempt, reason)

    def keyset_changed(self) -> None:
        """Stop what was ordered, or compiled, under a key that is revoked now: by whoever holds it, maybe."""
        self._stopped_for = revoked, compilers = self._revoked()
        for attempt, running in list(self._running.items()):
            if running.order_keys <= revoked or running.vouched_by in compilers:
                self.stop(attempt, StopReason.KEY_REVOKED)
        self._carrier.retire(compilers)

    def stop_revoked(self) -> None:
        """Stop what a revocation meets only now: its time may be ahead of this machine's clock."""
        if self._revoked() != self._stopped_for:
            self.keyset_changed()

    def _revoked(self) -> tuple[frozenset[KeyId], frozenset[KeyId]]:
        now = self._clock.now()
        order, compiler = KeyPurpose.ORDER, KeyPurpose.COMPILER
        return self._keyset.revoked(order, now), self._keyset.revoked(compiler, now)

    def return_overdue(self) -> None:
        """Give orders back that have waited too long: other guests last longer than they were expected to."""
        oldest = self._clock.monotonic() - MAX_QUEUED.total_seconds()
        while self._queue and self._queue[0].queued_at <= oldest:
            self._stop(self._queue[0], StopReason.WAITED_TOO_LONG)

    def _root(self, envelope: bytes, now: datetime) -> VerifiedOrderRoot:
        keys = self._keyset.keys_for(KeyPurpose.ORDER, now)
        # Under the keyset in force: a root remembered under an older one may be by a revoked key.
        name = (self._keyset.version, sha256_digest(envelope))
        root = self._roots.get(name)
        if root is None or root.key_ids.isdisjoint(keys):
            root = verify_root(
                envelope,
                keys=keys,
                installation=self._facts.installation,
                epoch=self._keyset.epoch,
            )
            self._roots[name] = root
            while len(self._roots) > REMEMBERED_ROOTS:
                self._roots.popitem(last=False)
        return root

    def _receive_one(
        self, root: VerifiedOrderRoot, envelope: bytes, delivery: Delivery, received_at: datetime
    ) -> None:
        order: Order | None = None
        verified_from = self._clock.monotonic()
        try:
            order = verify_order(delivery, root=root, facts=self._facts, now=received_at)
            self._ledger.accept(order, now=received_at)
            admission = self._admissions.admit(order, now=self._clock.monotonic())
        except OrderRejectedError as error:
            self._start(self._reject(delivery, order, received_at, error, envelope))
            if order is not None:
                begin_trail(self._tracer, order, since=verified_from).end(
                    failed=Outcome.REJECTED, rejection=error.rejection
                )
            return
        except Exception:
            # What nobody foresaw in one order must not take the others, the session and the node with it.
            logger.exception("an order could not be checked", order_digest=sha256_digest(delivery.order))
            failed = OrderRejectedError(
                "the order cannot be checked", check=Check.FORMAT, rejection=RejectionReason.FORMAT
            )
            self._start(self._reject(delivery, order, received_at, failed, envelope))
            return
        running = Running(
            order=order,
            delivery=delivery,
            admission=admission,
            order_envelope=envelope,
            order_keys=root.key_ids,
            order_digest=sha256_digest(delivery.order),
            received_at=received_at,
            queued_at=self._clock.monotonic(),
            trail=begin_trail(self._tracer, order, since=verified_from),
        )
        running.trail.part("verify", since=verified_from).end(at=running.queued_at)
        self._one_begun()
        self._running[admission.attempt] = running
        self._queue.append(running)
        while self._idle_slots:
            slot = self._idle_slots.popleft()
            if not slot.done():
                slot.set_result(None)
                break

    async def _serve_slot(self) -> NoReturn:
        """Carry out one order after the other. Ends by being cancelled while it waits for the next."""
        while True:
            while not self._queue:
                woken = asyncio.get_running_loop().create_future()
                self._idle_slots.append(woken)
                await woken
            running = self._queue.popleft()
            running.task = asyncio.current_task()
            self._admissions.begin(running.admission, now=self._clock.monotonic())
            running.trail.part("queue", since=running.queued_at).end()
            try:
                report = await self._carrier.carry_out(running)
            finally:
                self._admissions.end(running.admission, now=self._clock.monotonic())
            self._conclude(running, report)

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        assert self._tasks is not None
        self._one_begun()
        self._tasks.create_task(work).add_done_callback(self._one_finished)

    def _one_begun(self) -> None:
        self._unfinished += 1
        self._all_finished.clear()

    def _one_finished(self, _task: "asyncio.Task[None] | None" = None) -> None:
        self._unfinished -= 1
        if self._unfinished == 0:
            self._all_finished.set()

    def _conclude(self, running: Running, report: Report) -> None:
        """Let the next order in while the receipt of this one is written."""
        running.admission.leave()
        self._start(self._keep_receipt(running, report))
        self._one_finished()

    async def _keep_receipt(self, running: Running, report: Report) -> None:
        part = running.trail.part("receipt")
        try:
            await self._issue(report, running.admission.reservation)
        finally:
            self._forget(running)
            part.end()
            end_trail(running.trail, report)

    def _forget(self, running: Running) -> None:
        running.admission.leave()
        running.admission.reservation.release()
        self._leases.end(running.admission.attempt)
        self._running.pop(running.admission.attempt, None)

    async def _reject(
        self,
        delivery: Delivery,
        order: Order | None,
        received_at: datetime,
        error: OrderRejectedError,
        envelope: bytes = b"",
    ) -> None:
        count_rejection(self._metrics, error)
        await self._issue(
            Report(
                order_digest=sha256_digest(delivery.order),
                order=order,
                outcome=Outcome.REJECTED,
                received_at=received_at,
                finished_at=max(self._clock.now(), received_at),
                rejection=rejection_of(error),
                order_envelope=envelope,
            )
        )

    async def _issue(self, report: Report, reservation: Reservation | None = None) -> None:
        self._metrics.outcomes.labels(report.outcome).inc()
        if report.result is not None and report.result.limit is not None:
            self._metrics.limits.labels(report.result.limit).inc()
        try:
            with self._metrics.timed(Stage.RECEIPT):
                receipt = await self._issuer.issue(report, reservation=reservation)
        except SpoolCorruptError:
            raise
        except Exception:
            # No receipt, no result: the attempt's lease runs out and the execution goes elsewhere.
            logger.exception("a receipt could not be kept", order_digest=report.order_digest)
            return
        self._announcer.receipt_ready(receipt)

"""Runs orders: every check, then the guest, then the receipt, whatever happens. Talks to no network itself.

Each order that arrives ends in exactly one receipt, unless the spool cannot take it or the process dies. A
run is stopped from outside by `stop`: cancelled, out of lease, or because the node goes.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NoReturn

from opentelemetry import trace
from opentelemetry.context import Context

from data_plane.artifacts.ports import ModulePreparer, PreparedModule
from data_plane.attempt import (
    Running,
    StopReason,
    call_context,
    report_of_rejection,
    report_of_run,
    request_of,
    stop_rejection,
)
from data_plane.host_calls.service import HostCallParts
from data_plane.metrics import NodeMetrics, Stage
from data_plane.orders.admission import Admissions
from data_plane.orders.domain import AttemptRef, Delivery
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.ledger import OrderLedger
from data_plane.orders.quarantine import Quarantine, Suspect
from data_plane.orders.verifier import (
    Check,
    NodeFacts,
    check_engine,
    check_input,
    check_node_policy,
    check_parameters,
    verify_order,
    verify_root,
)
from data_plane.ports import Announcer, InputSource
from data_plane.receipts.issuer import ReceiptIssuer, Report, rejection_of
from data_plane.receipts.ports import Reservation
from data_plane.sandbox.domain import RunRequest, RunResult
from data_plane.sandbox.ports import Sandbox
from data_plane.session.leases import Leases
from shared.clock import Clock
from shared.digests import Digest, sha256_digest
from shared.errors import (
    AgentFactoryError,
    ArtifactInvalidError,
    InvalidInputError,
    OrderRejectedError,
    RejectionReason,
    SpoolCorruptError,
    WorkerCrashedError,
)
from shared.keyset import KeyPurpose
from shared.logs import get_logger
from shared.orders import Order, VerifiedOrderRoot
from shared.outcomes import Outcome
from shared.telemetry import parse_traceparent

logger = get_logger(__name__)
_tracer = trace.get_tracer("data_plane.runner")

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
        ledger: OrderLedger,
        leases: Leases,
        admissions: Admissions,
        modules: ModulePreparer,
        inputs: InputSource,
        sandbox: Sandbox,
        host_calls: HostCallParts,
        quarantine: Quarantine,
        issuer: ReceiptIssuer,
        announcer: Announcer,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        self._facts = facts
        self._keyset = keyset
        self._ledger = ledger
        self._leases = leases
        self._admissions = admissions
        self._modules = modules
        self._inputs = inputs
        self._sandbox = sandbox
        self._host_calls = host_calls
        self._quarantine = quarantine
        self._issuer = issuer
        self._announcer = announcer
        self._metrics = metrics
        self._clock = clock
        self._roots: OrderedDict[tuple[int, Digest], VerifiedOrderRoot] = OrderedDict()
        self._running: dict[AttemptRef, Running] = {}
        self._queue: deque[Running] = deque()  # bounded by the admissions
        self._idle_slots: deque[asyncio.Future[None]] = deque()
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
                root = self._root(envelope, received_at)
            except OrderRejectedError as error:
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
            self._conclude(running, self._stopped_report(running, reason))
        elif running.task is not None and running.is_stoppable:
            running.task.cancel()

    def stop_all(self, reason: StopReason) -> None:
        """Stop every run, and every order that waits for one."""
        for attempt in list(self._running):
            self.stop(attempt, reason)

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
                minimum_epoch=self._keyset.epoch,
            )
            self._roots[name] = root
            while len(self._roots) > REMEMBERED_ROOTS:
                self._roots.popitem(last=False)
        return root

    def _receive_one(
        self, root: VerifiedOrderRoot, envelope: bytes, delivery: Delivery, received_at: datetime
    ) -> None:
        order: Order | None = None
        try:
            order = verify_order(delivery, root=root, facts=self._facts, now=received_at)
            self._ledger.accept(order, now=received_at)
            admission = self._admissions.admit(order, now=self._clock.monotonic())
        except OrderRejectedError as error:
            self._start(self._reject(delivery, order, received_at, error, envelope))
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
            order_digest=sha256_digest(delivery.order),
            received_at=received_at,
            queued_at=self._clock.monotonic(),
        )
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
            try:
                report = await self._carry_out(running)
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

    async def _carry_out(self, running: Running) -> Report:
        with _tracer.start_as_current_span(
            "run order", context=_context_of(running.order), attributes={"order.id": running.order.id}
        ) as span:
            report = await self._report_of(running)
            span.set_attribute("order.outcome", report.outcome)
            return report

    def _conclude(self, running: Running, report: Report) -> None:
        """Let the next order in while the receipt of this one is written."""
        running.admission.leave()
        self._start(self._keep_receipt(running, report))
        self._one_finished()

    async def _keep_receipt(self, running: Running, report: Report) -> None:
        try:
            await self._issue(report, running.admission.reservation)
        finally:
            self._forget(running)

    def _forget(self, running: Running) -> None:
        running.admission.leave()
        running.admission.reservation.release()
        self._leases.end(running.admission.attempt)
        self._running.pop(running.admission.attempt, None)

    async def _report_of(self, running: Running) -> Report:
        """Do what can be stopped; afterwards `stop` has no effect any more."""
        running.is_stoppable = True
        try:
            self._require_lease(running)
            result = await self._run_guest(running)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if running.stopped is None or task is None:
                raise
            task.uncancel()
            return self._stopped_report(running, running.stopped)
        except OrderRejectedError as error:
            return self._rejected_report(running, error)
        except WorkerCrashedError as error:
            logger.warning("a worker ended without an outcome", error=str(error))
            self._note_crash(running.order)
            return self._report(running, Outcome.TRAPPED, trap=f"worker_crashed: {error}"[:512])
        except Exception as error:
            # Nobody else may suffer from it, and its caller is told: another node gets the execution.
            logger.exception("an order could not be carried out", order_id=running.order.id)
            text = f"{error.reason}: {error}" if isinstance(error, AgentFactoryError) else "internal error"
            return self._rejected_report(
                running, OrderRejectedError(text, check=Check.ROOM, rejection=RejectionReason.BUSY)
            )
        finally:
            running.is_stoppable = False
        return self._report(running, result.outcome, result=result)

    async def _run_guest(self, running: Running) -> RunResult:
        """Checks 12 to 17, then the guest."""
        order, delivery = running.order, running.delivery
        with self._metrics.timed(Stage.ARTIFACT):
            module = await self._modules.prepare(order)
        with self._metrics.timed(Stage.INPUT):
            content = delivery.input.inline
            if content is None:
                content = await self._inputs.fetch_input(running.admission.attempt, order.input_bytes)
            check_input(order, delivery.input.salt, content)
        check_parameters(order, delivery.parameters)
        check_engine(order, self._facts)
        check_node_policy(order, manifest=module.manifest)
        self._check_quarantine(order)
        running.admission.limit(module.manifest.limits)
        request = request_of(running, content)
        self._require_lease(running)
        self._announcer.started(running.admission.attempt)
        # The wall clock may have been set back since; a receipt's times never run backwards.
        running.started_at = max(self._clock.now(), running.received_at)
        with self._metrics.timed(Stage.RUN):
            return await self._load_and_run(running, module, request)

    async def _load_and_run(self, running: Running, module: PreparedModule, request: RunRequest) -> RunResult:
        order, attempt = running.order, running.admission.attempt
        running.calls = self._host_calls.begin(
            call_context(running), lambda: self._leases.is_live(attempt, now=self._clock.monotonic())
        )
        for last in (False, True):
            try:
                return await self._sandbox.run(
                    tenant_id=order.tenant_id,
                    module_digest=order.module_digest,
                    artifact=module.open_artifact,
                    request=request,
                    host_calls=running.calls,
                )
            except ArtifactInvalidError as error:
                if last:
                    raise OrderRejectedError(
                        f"the compiled module does not load: {error}",
                        check=Check.MODULE,
                        rejection=RejectionReason.ARTIFACT,
                    ) from error
                self._modules.forget(order.module_digest, order.profile)
        raise AssertionError

    def _check_quarantine(self, order: Order) -> None:
        """Of check 17: final for its execution, which would crash workers of other nodes next."""
        suspect = Suspect(order.tenant_id, order.module_digest)
        remaining = self._quarantine.remaining(suspect, now=self._clock.monotonic())
        if remaining is not None:
            raise OrderRejectedError(
                f"module {order.module_digest} crashed its workers; it is quarantined here for another"
                f" {remaining.total_seconds():.0f} s",
                check=Check.NODE_POLICY,
                rejection=RejectionReason.QUARANTINE,
            )

    def _note_crash(self, order: Order) -> None:
        suspect = Suspect(order.tenant_id, order.module_digest)
        if self._quarantine.note_crash(suspect, now=self._clock.monotonic()):
            self._metrics.quarantines.inc()
            logger.error(
                "a module is quarantined", tenant_id=order.tenant_id, module_digest=order.module_digest
            )

    def _require_lease(self, running: Running) -> None:
        # Rule 6: after its own lease has run out a node starts nothing.
        if not self._leases.is_live(running.admission.attempt, now=self._clock.monotonic()):
            raise OrderRejectedError(
                "the lease ran out before the guest started",
                check=Check.ROOM,
                rejection=RejectionReason.STALE,
            )

    def _stopped_report(self, running: Running, reason: StopReason) -> Report:
        if reason is StopReason.CANCELLED:
            return self._report(running, Outcome.CANCELLED)
        if reason is StopReason.LEASE_LOST:
            self._metrics.lease_expiries.inc()
        return self._rejected_report(running, stop_rejection(reason))

    def _report(
        self, running: Running, outcome: Outcome, *, result: RunResult | None = None, trap: str | None = None
    ) -> Report:
        return report_of_run(running, outcome, now=self._clock.now(), result=result, trap=trap)

    def _rejected_report(self, running: Running, error: OrderRejectedError) -> Report:
        self._count_rejection(error)
        return report_of_rejection(running, error, now=self._clock.now())

    async def _reject(
        self,
        delivery: Delivery,
        order: Order | None,
        received_at: datetime,
        error: OrderRejectedError,
        envelope: bytes = b"",
    ) -> None:
        self._count_rejection(error)
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

    def _count_rejection(self, error: OrderRejectedError) -> None:
        self._metrics.rejections.labels(str(int(error.check)), error.rejection).inc()
        if error.rejection in {RejectionReason.SIGNATURE, RejectionReason.TEMPLATE}:
            what = "order" if error.rejection is RejectionReason.SIGNATURE else "template"
            self._metrics.signature_failures.labels(what).inc()
        logger.warning(
            "an order was refused",
            check=int(error.check),
            rejection=error.rejection,
            detail=str(error),
        )

    async def _issue(self, report: Report, reservation: Reservation | None = None) -> None:
        self._metrics.outcomes.labels(report.outcome).inc()
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


def _context_of(order: Order) -> Context | None:
    """Return the caller's trace, or none: a malformed context is no reason to refuse an order."""
    try:
        return parse_traceparent(order.traceparent).to_context() if order.traceparent else None
    except InvalidInputError:
        return None

"""Carries out one admitted order: checks that need bodies, the guest, and what is to be reported of it.

Owns no queue and no task: `runner.py` gives it one order per slot, and issues what it reports.
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from data_plane.artifacts.ports import ModulePreparer, PreparedModule
from data_plane.attempt import (
    Running,
    StopReason,
    call_context,
    judged,
    note_guest,
    report_of_rejection,
    report_of_run,
    request_of,
    stop_rejection,
)
from data_plane.host_calls.service import HostCallParts
from data_plane.metrics import NodeMetrics, Stage
from data_plane.orders.log_check import LogCheck
from data_plane.orders.policy import NodePolicy
from data_plane.orders.quarantine import Quarantine, Suspect
from data_plane.orders.verifier import (
    Check,
    NodeFacts,
    check_engine,
    check_input,
    check_input_schema,
    check_node_policy,
    check_parameters,
)
from data_plane.ports import Announcer, InputSource
from data_plane.receipts.issuer import Report
from data_plane.sandbox.domain import RunRequest, RunResult
from data_plane.sandbox.ports import Sandbox
from data_plane.session.leases import Leases
from shared.clock import Clock
from shared.errors import (
    AgentFactoryError,
    ArtifactInvalidError,
    OrderRejectedError,
    RejectionReason,
    WorkerCrashedError,
)
from shared.logs import get_logger
from shared.orders import Order
from shared.outcomes import Outcome
from shared.tracing import Part

logger = get_logger(__name__)


class OrderCarrier:
    """The part of an order's way in which its slot is taken."""

    def __init__(
        self,
        *,
        facts: NodeFacts,
        leases: Leases,
        log: LogCheck,
        modules: ModulePreparer,
        inputs: InputSource,
        sandbox: Sandbox,
        host_calls: HostCallParts,
        quarantine: Quarantine,
        policy: NodePolicy,
        announcer: Announcer,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        self._facts = facts
        self._leases = leases
        self._log = log
        self._modules = modules
        self._inputs = inputs
        self._sandbox = sandbox
        self._host_calls = host_calls
        self._quarantine = quarantine
        self._policy = policy
        self._announcer = announcer
        self._metrics = metrics
        self._clock = clock

    async def carry_out(self, running: Running) -> Report:
        """Run the order to what its receipt says; whatever goes wrong is an outcome or a rejection."""
        # What can be stopped; afterwards `stop` has no effect any more.
        running.is_stoppable = True
        try:
            self._require_lease(running)
            result = await self._run_guest(running)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if running.stopped is None or task is None:
                raise
            task.uncancel()
            return self.stopped_report(running, running.stopped)
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

    def retire(self, compiler_keys: Collection[str]) -> None:
        """End the workers whose code was loaded on the word of one of these keys."""
        self._sandbox.retire(compiler_keys)

    async def _run_guest(self, running: Running) -> RunResult:
        """Checks 20 and 12 to 19, then the guest, then its output."""
        order, delivery = running.order, running.delivery
        await self._log.require(order)
        with self._timed(running, Stage.ARTIFACT):
            module = await self._modules.prepare(order)
        running.vouched_by = module.vouched_by
        with self._timed(running, Stage.INPUT):
            content = delivery.input.inline
            if content is None:
                content = await self._inputs.fetch_input(running.admission.attempt, order.input_bytes)
            check_input(order, delivery.input.salt, content)
        check_parameters(order, delivery.parameters)
        check_engine(order, self._facts)
        check_node_policy(order, manifest=module.manifest)
        self._policy.check(order)
        self._check_quarantine(order)
        await check_input_schema(module.manifest, content)
        running.admission.limit(module.manifest.limits)
        request = request_of(running, content)
        self._require_lease(running)
        self._announcer.started(running.admission.attempt)
        # The wall clock may have been set back since; a receipt's times never run backwards.
        running.started_at = max(self._clock.now(), running.received_at)
        with self._timed(running, Stage.RUN) as part:
            result = await self._load_and_run(running, module, request, part)
            note_guest(part, result)
        return await judged(result, module.manifest.output_schema, running.admission.limits)

    @contextmanager
    def _timed(self, running: Running, stage: Stage) -> Iterator[Part]:
        part = running.trail.part(stage)
        try:
            with self._metrics.timed(stage, running.trail.sampled_id):
                yield part
        finally:
            part.end()

    async def _load_and_run(
        self, running: Running, module: PreparedModule, request: RunRequest, part: Part
    ) -> RunResult:
        order, attempt = running.order, running.admission.attempt
        running.calls = self._host_calls.begin(
            call_context(running), lambda: self._leases.is_live(attempt, now=self._clock.monotonic()), part
        )
        for last in (False, True):
            try:
                return await self._sandbox.run(
                    tenant_id=order.tenant_id,
                    module_digest=order.module_digest,
                    artifact=module.open_artifact,
                    request=request,
                    host_calls=running.calls,
                    vouched_by=module.vouched_by,
                )
            except ArtifactInvalidError as error:
                if last:
                    raise OrderRejectedError(
                        f"the compiled module does not load: {error}",
                        check=Check.MODULE,
                        rejection=RejectionReason.ARTIFACT,
                    ) from error
                self._modules.forget(order.module_digest, order.profile, vouched_by=module.vouched_by)
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

    def stopped_report(self, running: Running, reason: StopReason) -> Report:
        """Return what is said of an order that was stopped, before its guest began or within."""
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
        count_rejection(self._metrics, error)
        return report_of_rejection(running, error, now=self._clock.now())


def count_rejection(metrics: NodeMetrics, error: OrderRejectedError) -> None:
    """Show that an order was refused, in metrics and log."""
    metrics.rejections.labels(str(int(error.check)), error.rejection).inc()
    if error.rejection in {RejectionReason.SIGNATURE, RejectionReason.TEMPLATE}:
        what = "order" if error.rejection is RejectionReason.SIGNATURE else "template"
        metrics.signature_failures.labels(what).inc()
    logger.warning(
        "an order was refused",
        check=int(error.check),
        rejection=error.rejection,
        detail=str(error),
    )

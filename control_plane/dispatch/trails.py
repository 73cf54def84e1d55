"""Attempts as spans: from the slot that is taken to the receipt that is recorded. Decides nothing."""

from collections.abc import Iterable, Sequence

from control_plane.dispatch.session import LiveSession
from control_plane.executions.domain import AttemptResult, Claimable, LostAttempt, Outcome, Placement
from control_plane.executions.lifecycle import Finished
from shared.ids import ExecutionId, OrderId
from shared.tracing import NO_TRACER, OpenTrails, SpanKind, Tracer, Trail

DISPATCH = "dispatch"

AttemptKey = tuple[ExecutionId, int]


class AttemptTrails:
    """One trail for each attempt that this replica places; the node's comes below it."""

    def __init__(self, tracer: Tracer = NO_TRACER) -> None:
        self._open = OpenTrails[AttemptKey](tracer)
        self._tracer = tracer

    def begin(self, work: Claimable, session: LiveSession, order_id: OrderId) -> str:
        """Begin the trail of an attempt; returns the traceparent that its order carries."""
        run = work.run
        trail = self._open.begin(
            (run.execution_id, work.fencing_token), DISPATCH, run.traceparent, kind=SpanKind.PRODUCER
        )
        trail.note(
            execution_id=run.execution_id,
            attempt_number=work.attempt_number,
            node_id=session.node_id,
            order_id=order_id,
        )
        return trail.traceparent or run.traceparent

    def of(self, execution_id: ExecutionId, fencing_token: int) -> Trail:
        """Return the trail of an attempt."""
        return self._open.of((execution_id, fencing_token))

    def signing(self, attempts: Iterable[AttemptKey]) -> Trail:
        """Begin what signs the orders of these attempts together; each points to it."""
        return self._tracer.shared("sign orders", [self._open.of(key) for key in attempts])

    def claimed(self, placements: Sequence[Placement], since: float | None = None) -> None:
        """The leases of these attempts have committed."""
        for one in placements:
            trail = self.of(one.execution_id, one.fencing_token)
            trail.part("claim", since=trail.started if since is None else since).end()

    def sent(self, placement: Placement, *, signing_from: float, signing_to: float) -> None:
        """The order of an attempt is in its session's queue."""
        trail = self.of(placement.execution_id, placement.fencing_token)
        trail.part("sign", since=signing_from).end(at=signing_to, batch_id=placement.batch.batch_id)
        trail.part("send", since=signing_to).end(order_bytes=len(placement.order_content))

    def unmade(self, work: Claimable) -> None:
        """There is no order for an attempt after all."""
        self._open.forget((work.run.execution_id, work.fencing_token))

    def unsent(self, placements: Iterable[Placement]) -> None:
        """Orders did not leave: what was begun did not come to be."""
        for one in placements:
            self._open.forget((one.execution_id, one.fencing_token))

    def recording(self, results: Iterable[AttemptResult]) -> Trail:
        """Begin what records these receipts together; each points to it."""
        return self._tracer.shared(
            "record receipts", [self.of(one.execution_id, one.fencing_token) for one in results]
        )

    def recorded(self, results: Sequence[AttemptResult], finished: Sequence[Finished], since: float) -> None:
        """Receipts are on record, or cannot be."""
        dispositions = {one.receipt_id: one.disposition for one in finished}
        for result in results:
            if result.refuses_a_repeat:
                continue  # the receipt of the first time ends it
            key = (result.execution_id, result.fencing_token)
            disposition = dispositions.get(result.receipt_id, "unrecorded")
            self._open.of(key).part("record", since=since).end(disposition=disposition)
            self._open.end(
                key,
                failed="" if result.outcome is Outcome.SUCCEEDED else result.outcome,
                outcome=result.outcome,
                limit=result.limit or "",
                rejection=result.reason or "",
            )

    def lost(self, attempts: Iterable[LostAttempt]) -> None:
        """Attempts ended without a receipt."""
        for one in attempts:
            self._open.end(
                (one.attempt.execution_id, one.attempt.fencing_token), failed="lost", reason=one.reason
            )

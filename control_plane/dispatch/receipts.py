"""Takes receipts in: verifies, records, acknowledges, and tells the callers that wait.

A receipt is acknowledged after its commit, never before. What a receipt changes is decided by the store.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from agentfactory.v1 import nodes_pb2, orders_pb2

from control_plane.audit.domain import NewAuditEntry, node_actor
from control_plane.dispatch.background import Background
from control_plane.dispatch.batches import Batches
from control_plane.dispatch.dispatcher import Dispatcher
from control_plane.dispatch.ports import BodyStore, Completions, Observer, OrderLookup
from control_plane.dispatch.recording import Recording
from control_plane.dispatch.retry import retrying
from control_plane.dispatch.returned import Returned, ReturnedSignatures
from control_plane.dispatch.session import HeldAttempt, LiveSession
from control_plane.dispatch.trails import AttemptTrails
from control_plane.dispatch.writes import kv_writes_of
from control_plane.executions.domain import (
    INLINE_BODY_BYTES,
    MAX_BODY_BYTES,
    REJECTION_BACKOFF,
    AttemptResult,
    Disposition,
    ExecutionState,
    Outcome,
    StoredBody,
)
from control_plane.executions.lifecycle import Finished
from control_plane.kv.domain import KvWrite
from control_plane.nodes.domain import NodeState
from control_plane.nodes.ports import NodeStore
from shared.clock import Clock, Random
from shared.digests import Digest, commit_body, digest_to_raw, same_digest, sha256_digest
from shared.errors import (
    AgentFactoryError,
    InternalError,
    ReceiptConflictError,
    ReceiptInvalidError,
    RejectionReason,
    VerificationError,
)
from shared.ids import AUDIT_ENTRY, BODY, RECEIPT, ExecutionId, new_id
from shared.receipt_codec import VerifiedReceipt, verify_receipt
from shared.receipts import AttemptIdentity, ReceiptPredicate, check_matches

logger = structlog.get_logger(__name__)

VERIFIED_AT_ONCE: Final = 16
"""Receipts verified before other tasks get a turn: about 3 ms."""


class ReceiptIntake:
    """The receiving half of dispatch."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        batches: Batches,
        returned: ReturnedSignatures,
        finish: Callable[[AttemptResult], Awaitable[Finished]],
        protect: Callable[[Sequence[AttemptResult]], Awaitable[Sequence[AttemptResult]]],
        bodies: BodyStore,
        orders: OrderLookup,
        nodes: NodeStore,
        completions: Completions,
        clock: Clock,
        random: Random,
        background: Background,
        observer: Observer,
        trails: AttemptTrails | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._batches = batches
        self._returned = returned
        self._finish = finish
        self._protect = protect
        self._bodies = bodies
        self._orders = orders
        self._nodes = nodes
        self._completions = completions
        self._clock = clock
        self._random = random
        self._background = background
        self._observer = observer
        self._trails = trails or AttemptTrails()

    async def take(self, session: LiveSession, batch: nodes_pb2.ReceiptBatch) -> None:
        """Verify receipts, free their slots and have them recorded; waits only when too many are under way.

        Those before one that is refused are recorded all the same: their slots are free already.

        Raises:
            VerificationError: A receipt is not what it must be; it and those behind it are not recorded.
            ReceiptConflictError: The node contradicts its own chain.
        """
        size_bytes = batch.ByteSize()
        await session.receipts_open.acquire(size_bytes)
        results: list[AttemptResult] = []
        returned: Returned = {}
        try:
            await self._verify(session, batch, results, returned)
        finally:
            if results and self._background.is_open:
                recording = self._record(session, results, returned, size_bytes)
                self._background.spawn(recording, name="record receipts")
            else:
                session.receipts_open.release(size_bytes)

    # --- verifying

    async def _verify(
        self,
        session: LiveSession,
        batch: nodes_pb2.ReceiptBatch,
        results: list[AttemptResult],
        returned: Returned,
    ) -> None:
        """Append a result for each receipt, up to the first that is refused; note signatures to look at."""
        for position, delivery in enumerate(batch.receipts, start=1):
            result, sent_here = await self._verify_one(session, delivery)
            results.append(result)
            if not sent_here and 0 < delivery.order_envelope <= len(batch.order_envelopes):
                returned[result.order_id] = batch.order_envelopes[delivery.order_envelope - 1]
            if position % VERIFIED_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _verify_one(
        self, session: LiveSession, delivery: nodes_pb2.ReceiptDelivery
    ) -> tuple[AttemptResult, bool]:
        """Turn one delivery into a result, and say whether this replica sent the order.

        1. The node's enrolled receipt key signed it, and it is well formed (`verify_receipt`).
        2. It continues the node's chain as far as this session has seen it (rule 5).
        3. It answers an order of this node: the one in memory when there is one (`check_matches`), else the
           stored one, whose digest the store compares.
        4. Output, log and recording are what their salted commitments say (rule 10), written values what
           their digest says.
        5. Its texts hold no NUL, which no text of Postgres can.

        Raises:
            VerificationError: Check 1, 3, 4 or 5.
            ReceiptConflictError: Check 2.
        """
        try:
            receipt = verify_receipt(delivery.envelope, node_id=session.node_id, node_key=session.receipt_key)
        except VerificationError:
            self._observer.signature_failure("receipt")
            raise
        predicate = receipt.predicate
        if "\0" in (predicate.trap or ""):
            raise ReceiptInvalidError(f"check 5: trap of receipt {predicate.sequence} holds a nul")
        session.chain.add(
            sequence=predicate.sequence,
            hash_=digest_to_raw(receipt.hash),
            previous=digest_to_raw(predicate.previous) if predicate.previous else b"",
        )
        attempt, sent_here = await self._attempt(session, predicate)
        if predicate.rejection is None or predicate.rejection.reason is not RejectionReason.REPLAY:
            self._free_slot(session, attempt)  # an order that came twice may be running still
        of = attempt.execution_id
        result = self._result(
            session,
            receipt,
            attempt,
            output=await self._body(of, delivery.output, predicate.output_commitment, "output"),
            log=await self._body(of, delivery.log, predicate.log_commitment, "log"),
            recording=await self._body(of, delivery.recording, predicate.recording_commitment, "recording"),
            kv_writes=kv_writes_of(delivery.kv_writes, predicate.kv_writes_digest),
        )
        return result, sent_here

    async def _attempt(
        self, session: LiveSession, predicate: ReceiptPredicate
    ) -> tuple[AttemptIdentity, bool]:
        held = self._held(session, predicate)
        if held is not None and held.order is not None:
            check_matches(predicate, held.order)
            return held.order.attempt, True
        if predicate.attempt is not None:
            return predicate.attempt, False
        # Refused before it could be believed, and this replica did not send it.
        found = await self._orders.find_order(session.node_id, predicate.order_digest)
        if found is None:
            raise ReceiptInvalidError(f"check 3: there is no order {predicate.order_digest} of this node")
        return found, False

    def _held(self, session: LiveSession, predicate: ReceiptPredicate) -> HeldAttempt | None:
        if predicate.attempt is None:
            return session.attempt_of_order(predicate.order_digest)
        return session.attempt((predicate.attempt.execution_id, predicate.attempt.fencing_token))

    def _free_slot(self, session: LiveSession, attempt: AttemptIdentity) -> None:
        held = session.attempt((attempt.execution_id, attempt.fencing_token))
        if held is not None:
            trail = self._trails.of(attempt.execution_id, attempt.fencing_token)
            trail.part("node", since=held.since).end()
            self._observer.stage("node", self._clock.monotonic() - held.since, trail.sampled_id)
            self._dispatcher.slot_freed(session.node_id, held)

    async def _body(
        self, execution_id: ExecutionId, body: orders_pb2.Body, commitment: Digest | None, what: str
    ) -> StoredBody | None:
        if commitment is None:
            if body.size_bytes or body.inline:
                raise ReceiptInvalidError(f"check 4: {what} comes without a commitment in the receipt")
            return None
        if body.size_bytes > INLINE_BODY_BYTES:
            return await self._uploaded(execution_id, body, commitment, what)
        if len(body.inline) != body.size_bytes:
            raise ReceiptInvalidError(
                f"check 4: {what} has {len(body.inline)} bytes, said were {body.size_bytes}"
            )
        if not same_digest(commit_body(body.inline, body.salt), commitment):
            raise ReceiptInvalidError(f"check 4: {what} is not what the receipt commits to")
        return StoredBody(
            body_id=new_id(BODY, self._clock, self._random),
            salt=body.salt,
            commitment=commitment,
            digest=sha256_digest(body.inline),
            size_bytes=body.size_bytes,
            content=body.inline,
        )

    async def _uploaded(
        self, execution_id: ExecutionId, body: orders_pb2.Body, commitment: Digest, what: str
    ) -> StoredBody:
        """Return the body that came by UploadOutput; the store decides whether it is there."""
        if body.size_bytes > MAX_BODY_BYTES or body.inline:
            raise ReceiptInvalidError(
                f"check 4: {what} of {body.size_bytes} bytes must be uploaded, within bounds"
            )
        found = await retrying(
            lambda: self._bodies.find_output(execution_id, commitment), what="find an output"
        )
        if found is not None:
            return found
        return StoredBody(
            body_id=new_id(BODY, self._clock, self._random),
            salt=body.salt,
            commitment=commitment,
            digest=sha256_digest(b""),
            size_bytes=body.size_bytes,
            content=None,
        )

    def _result(
        self,
        session: LiveSession,
        receipt: VerifiedReceipt,
        attempt: AttemptIdentity,
        *,
        output: StoredBody | None,
        log: StoredBody | None,
        recording: StoredBody | None,
        kv_writes: tuple[KvWrite, ...],
    ) -> AttemptResult:
        said = receipt.predicate
        rejection = said.rejection
        return AttemptResult(
            receipt_id=new_id(RECEIPT, self._clock, self._random),
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            node_id=session.node_id,
            sequence=said.sequence,
            hash=digest_to_raw(receipt.hash),
            previous_hash=digest_to_raw(said.previous) if said.previous else b"",
            order_id=attempt.order_id,
            order_digest=said.order_digest,
            execution_id=attempt.execution_id,
            attempt_number=attempt.attempt_number,
            fencing_token=attempt.fencing_token,
            envelope=receipt.envelope,
            outcome=Outcome(said.outcome.value),
            exit_code=said.exit_code,
            limit=said.limit.value if said.limit else None,
            trap=said.trap,
            reason=rejection.reason.value if rejection else None,
            counts=not (rejection and rejection.reason.concerns_node_alone),
            resources_used=said.resources,
            output=output,
            log=log,
            recording=recording,
            kv_writes=kv_writes,
            started_at=said.started_at,
            ended_at=said.finished_at,
            batch=self._batches.unrecorded(attempt.order_id),
        )

    # --- recording

    async def _record(
        self, session: LiveSession, results: Sequence[AttemptResult], returned: Returned, size_bytes: int
    ) -> None:
        started = self._clock.monotonic()
        results = await self._returned.add_to(results, returned, node_id=session.node_id)
        together = self._trails.recording(results)
        recording = Recording(self._finish, ())
        try:
            # What has no key is not acknowledged: the node keeps it and sends it again in its next session.
            recording.add(await retrying(lambda: self._protect(results), what="seal results"))
            await retrying(recording.go_on, what="record receipts")
        except AgentFactoryError as error:
            session.end(error)  # the node comes back and sends what is not acknowledged
        finally:
            session.receipts_open.release(size_bytes)
        self._observer.stage("finish", self._clock.monotonic() - started, together.sampled_id)
        self._trails.recorded(results, recording.finished, started)
        together.end(receipts=len(results))
        self._batches.recorded(recording.signatures)
        await self._conclude(session, recording.finished)
        for result, reason in recording.failed:
            await self._note_unrecorded(session, result, reason)

    async def _note_unrecorded(self, session: LiveSession, result: AttemptResult, error: Exception) -> None:
        """Put on record that a receipt cannot be: never acknowledged, its attempt ends with its lease."""
        logger.error(
            # Not its message: the driver's own show the values of the row.
            "receipt cannot be recorded",
            node_id=session.node_id,
            sequence=result.sequence,
            error=type(error).__name__,
        )
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=session.tenant_id,
            actor=node_actor(session.node_id),
            action="node.receipt_refused",
            subject=session.node_id,
            result=InternalError.reason,
            details={"sequence": result.sequence, "order_id": result.order_id, "error": type(error).__name__},
        )
        await retrying(lambda: self._nodes.record(entry), what="record a refusal")

    async def _conclude(self, session: LiveSession, finished: Sequence[Finished]) -> None:
        for one in finished:
            if one.execution is not None:
                self._completions.complete(one.execution)
        recorded = [one.sequence for one in finished if one.disposition.is_recorded]
        if recorded:
            session.acknowledge(recorded)
        if any(one.execution and one.execution.state is ExecutionState.PENDING for one in finished):
            self._background.spawn(self._wake_later(), name="wake after a rejection")
        for one in finished:
            if one.disposition in {Disposition.CONFLICT, Disposition.UNKNOWN_ORDER}:
                await self._quarantine_for(session, one)
            elif one.disposition is Disposition.OUTPUT_MISSING:
                logger.warning(
                    "output of a receipt is missing", node_id=session.node_id, sequence=one.sequence
                )

    async def _wake_later(self) -> None:
        await asyncio.sleep(REJECTION_BACKOFF.total_seconds())
        self._dispatcher.wake()

    async def _quarantine_for(self, session: LiveSession, finished: Finished) -> None:
        known = finished.disposition is Disposition.CONFLICT
        error = (
            ReceiptConflictError(f"node {session.node_id} has two receipts {finished.sequence}")
            if known
            else ReceiptConflictError(f"receipt {finished.sequence} answers an order that never was")
        )
        await self.quarantine(session, error)

    async def quarantine(self, session: LiveSession, error: VerificationError) -> None:
        """Stop trusting the node, on record, and end its session (rule 5)."""
        session.end(error)
        node = await retrying(lambda: self._nodes.find(session.node_id), what="find a node")
        if node is None:
            return
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=session.tenant_id,
            actor=node_actor(session.node_id),
            action="node.quarantined",
            subject=session.node_id,
            result=error.reason,
            details={"message": str(error)[:256], "boot_id": session.boot_id},
        )
        await retrying(
            lambda: self._nodes.save_state(node.quarantine(), audit=entry), what="quarantine a node"
        )
        self._observer.node_state(session.node_id, NodeState.QUARANTINED)
        logger.error("node is quarantined", node_id=session.node_id, error=str(error))

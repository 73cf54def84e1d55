"""Gives waiting executions to free slots of own sessions, and sends their orders once committed and signed.

Implements `Placer`. Every decision about a lease is Postgres'; this keeps counts of slots and a queue of
batches whose claim has committed. No transaction waits for a key (rule 3): signing goes on beside the commit.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from agentfactory.v1 import nodes_pb2, orders_pb2

from control_plane.company import Company
from control_plane.dispatch.background import Background
from control_plane.dispatch.batches import Batch, Batches
from control_plane.dispatch.fleet import Fleet
from control_plane.dispatch.options import MAX_BATCH_ORDERS, DispatchOptions
from control_plane.dispatch.orders import (
    OrderParts,
    batch_messages,
    build_delivery,
    build_order,
    expected_receipt,
    is_for,
)
from control_plane.dispatch.ports import Observer
from control_plane.dispatch.retry import retrying
from control_plane.dispatch.session import HeldAttempt, LiveSession
from control_plane.dispatch.trails import AttemptTrails
from control_plane.dispatch.waiting import WaitingTenants
from control_plane.executions.domain import (
    CancelRequest,
    Claimable,
    Claimed,
    NewExecution,
    Placement,
    RunSpec,
    SessionRef,
)
from control_plane.executions.ports import LeaseStore
from shared.clock import Clock, Random
from shared.digests import Digest, sha256_digest
from shared.errors import AgentFactoryError, InvalidInputError, SessionSupersededError
from shared.ids import ORDER, ExecutionId, NodeId, OrderId, TenantId, new_id
from shared.orders import NONCE_BYTES

logger = structlog.get_logger(__name__)

COMPANY_ORDERS: Final = 8
"""Orders that a node holds at least while several tenants are active: otherwise two for each slot. Enough to
keep its slots busy; more would stand in front of a newcomer of another tenant.
"""
COMPANY_RESERVE: Final = 4
"""Places beyond those for newcomers of tenants of whom nothing waits."""

ENOUGH_EMPTY: Final = 4
"""Sessions in a row for which a claim found nothing: the queue is empty, but for what all of them refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """An order that holds a place on a session and is in no batch yet."""

    work: Claimable
    session: LiveSession
    order_id: OrderId
    content: bytes
    digest: Digest


class Dispatcher:
    """The placing, signing and sending half of dispatch."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        leases: LeaseStore,
        batches: Batches,
        options: DispatchOptions,
        clock: Clock,
        random: Random,
        background: Background,
        observer: Observer,
        trails: AttemptTrails | None = None,
    ) -> None:
        self._fleet = fleet
        self._leases = leases
        self._batches = batches
        self._options = options
        self._clock = clock
        self._random = random
        self._background = background
        self._observer = observer
        self._trails = trails or AttemptTrails()
        self._outgoing: deque[Batch] = deque()  # bounded by the places of all own sessions
        self._to_send = asyncio.Event()
        self._to_claim = asyncio.Event()
        self._queue_empty = False
        self._waiting = WaitingTenants()
        self._company = Company()
        self._wakes = 0
        self._paused_until = 0.0

    @property
    def queue_is_empty(self) -> bool:
        """Whether this replica's last claim found nothing waiting, so that newcomers jump no queue."""
        return self._queue_empty

    # --- Placer

    def place(self, executions: Sequence[NewExecution]) -> Sequence[Placement | None]:
        """Take a free slot of an own session for each newcomer before which nothing of its tenant waits."""
        drafts = [self._place_newcomer(new.claimable()) for new in executions]
        placements = iter(self._placements([draft for draft in drafts if draft is not None]))
        return [None if draft is None else next(placements) for draft in drafts]

    def commit(self, placements: Sequence[Placement], executions: Sequence[NewExecution]) -> None:
        """Queue committed placements: they leave as soon as their batch is signed."""
        self._trails.claimed(placements)
        self._commit(placements, [new.run for new in executions])

    def release(self, placements: Sequence[Placement]) -> None:
        """Give the slots of placements back that were not committed; their orders never leave."""
        self._batches.drop(placements)
        self._trails.unsent(placements)
        self._free_slots_of(placements)

    def _free_slots_of(self, placements: Iterable[Placement]) -> None:
        for placement in placements:
            self.slot_freed(
                placement.node_id,
                HeldAttempt(
                    execution_id=placement.execution_id,
                    attempt_number=placement.attempt_number,
                    fencing_token=placement.fencing_token,
                ),
            )

    def wake(self, *, of: Collection[TenantId] | None = None) -> None:
        """Claim soon: something of these tenants waits, or may; none named: of any."""
        self._queue_empty = False
        self._waiting.add(of)
        self._wakes += 1
        self._to_claim.set()

    def cancel(self, requests: Sequence[CancelRequest]) -> None:
        """Tell the nodes of own sessions to stop these attempts. Repeats are harmless."""
        for request in requests:
            session = self._fleet.get(request.node_id)
            if session is None:
                continue
            attempt = nodes_pb2.AttemptRef(
                execution_id=request.attempt.execution_id,
                attempt_number=request.attempt.attempt_number,
                fencing_token=request.attempt.fencing_token,
            )
            session.send(
                nodes_pb2.SessionResponse(cancel=nodes_pb2.Cancel(attempt=attempt, reason=request.reason))
            )

    # --- slots

    def slot_freed(self, node_id: NodeId, attempt: HeldAttempt) -> None:
        """An attempt ended or never began: use its slot for what waits."""
        if self._fleet.release(node_id, attempt.key):
            self.slots_offered()

    def slots_offered(self) -> None:
        """A session may have free slots: claim if anything is known to wait."""
        if not self._queue_empty:
            self._to_claim.set()

    def _place_newcomer(self, work: Claimable) -> _Draft | None:
        now, tenant_id = self._clock.monotonic(), work.run.tenant_id
        self._company.came(tenant_id, now)
        draft = None
        if now >= self._paused_until and (self._queue_empty or not self._waiting.may_wait(tenant_id)):
            session = self._fleet.pick(module_digest=work.run.module_digest, now=now, zone=self._options.zone)
            in_time = work.run.run_deadline_at > self._clock.now()
            if session is not None and in_time and self._has_place(session, now):
                draft = self._hold(session, work) if is_for(session, work.run) else None
        if draft is None:
            self._queue_empty = False
            self._waiting.add((tenant_id,))
        return draft

    def _has_place(self, session: LiveSession, now: float) -> bool:
        """Whether a newcomer may stand in a node's queue: among several tenants it is kept short."""
        return session.held_count < _in_company(session) + COMPANY_RESERVE or not self._company.is_mixed(now)

    def _place_claimed(self, session: LiveSession, works: Sequence[Claimable]) -> list[Placement]:
        """Fill free slots in the queue's order; what must run alone waits until nothing else runs."""
        drafts: list[_Draft] = []
        for work in works:
            if self._fleet.free_slots(session, self._clock.monotonic()) <= 0:
                break
            if work.runs_alone and not session.is_idle:
                break
            if work.run.run_deadline_at <= self._clock.now():
                continue
            if not is_for(session, work.run):
                session.pass_over(work.run.execution_id, self._clock.monotonic())
                self._to_claim.set()  # what stands behind it may be for this node
                continue
            draft = self._hold(session, work)
            if draft is not None:
                drafts.append(draft)
        return self._placements(drafts)

    def _placements(self, drafts: Sequence[_Draft]) -> list[Placement]:
        """Put what was chosen together into one batch, whose signing begins now."""
        places = self._batches.begin(
            [draft.content for draft in drafts],
            [(draft.work.run.execution_id, draft.work.fencing_token) for draft in drafts],
        )
        now = self._clock.monotonic()
        return [
            Placement(
                execution_id=draft.work.run.execution_id,
                attempt_number=draft.work.attempt_number,
                fencing_token=draft.work.fencing_token,
                node_id=draft.session.node_id,
                boot_id=draft.session.boot_id,
                session_epoch=draft.session.session_epoch,
                order_id=draft.order_id,
                order_content=draft.content,
                order_digest=draft.digest,
                batch=place,
                lease=draft.session.first_lease(now),
            )
            for draft, place in zip(drafts, places, strict=True)
        ]

    def _hold(self, session: LiveSession, work: Claimable) -> _Draft | None:
        """Take a slot and build the order; None for what no order can say: it waits for its run deadline."""
        order_id = new_id(ORDER, self._clock, self._random)
        parts = OrderParts(
            order_id=order_id,
            traceparent=self._trails.begin(work, session, order_id),
            nonce=self._random.token_bytes(NONCE_BYTES),
            now=self._clock.now(),
        )
        try:
            content = build_order(work, session, parts, self._options)
        except (InvalidInputError, ValueError) as error:
            # One such execution must not stand in the way of the queue.
            self._trails.unmade(work)
            logger.exception("no order can be made", execution_id=work.run.execution_id, error=str(error))
            return None
        digest = sha256_digest(content)
        session.hold(
            HeldAttempt(
                execution_id=work.run.execution_id,
                attempt_number=work.attempt_number,
                fencing_token=work.fencing_token,
                order=expected_receipt(work, session, parts.order_id, digest, self._options),
                runs_alone=work.runs_alone,
                since=self._clock.monotonic(),
            )
        )
        return _Draft(work=work, session=session, order_id=parts.order_id, content=content, digest=digest)

    # --- claiming

    async def claim_loop(self) -> None:
        """Claim when something may wait for a free slot, at the latest after a slow poll. Never returns."""
        while True:
            try:
                async with asyncio.timeout(self._options.poll_every.total_seconds()):
                    await self._to_claim.wait()
            except TimeoutError:
                pass  # the poll behind NOTIFY
            self._to_claim.clear()
            await self.claim_once()

    async def claim_once(self) -> None:
        """Ask the queue once for every own session with free slots."""
        now = self._clock.monotonic()
        if now < self._paused_until:
            return
        wakes = self._wakes
        sessions = self._fleet.with_free_slots(now)
        # The least loaded one takes nothing behind work that must run alone, until it can run that. One is
        # enough: the others go on with the rest.
        clears = sessions[0] if sessions else None
        empty = False
        # Slots before queues: no order waits on one node while a slot of another is free.
        for places in (LiveSession.idle_slots, self._free_slots):
            if empty or (len(sessions) == 1 and places == LiveSession.idle_slots):
                continue
            empty = await self._claim_in_turn(sessions, places, clears)
        if sessions and wakes == self._wakes:
            self._queue_empty = empty

    async def _claim_in_turn(
        self,
        sessions: Sequence[LiveSession],
        places: Callable[[LiveSession], int],
        clears: LiveSession | None,
    ) -> bool:
        """Claim for one session after the other; True when the queue is found empty.

        It is when several in a row find nothing for them: the rest is not asked, or every look at an empty
        queue would cost a transaction for each node. What all of those had refused waits a moment longer.
        """
        answers: list[bool] = []
        for session in sessions:
            limit = places(session)
            if limit <= 0:
                continue
            answers.append(await self._claim_for(session, limit=limit, clears=session is clears))
            if len(answers) >= ENOUGH_EMPTY and all(answers[-ENOUGH_EMPTY:]):
                return True
        return bool(answers) and all(answers)  # nobody asked means nothing known

    def _free_slots(self, session: LiveSession) -> int:
        now = self._clock.monotonic()
        free = self._fleet.free_slots(session, now)
        if self._company.is_mixed(now):
            free = min(free, _in_company(session) - session.held_count)
        return free

    async def _claim_for(self, session: LiveSession, *, limit: int, clears: bool) -> bool:
        """Give one session up to `limit` orders; True when nothing was left waiting for it."""
        chosen: list[Placement] = []

        def place(works: Sequence[Claimable]) -> Sequence[Placement]:
            placements = self._place_claimed(session, works)
            chosen.extend(placements)
            return placements

        started = self._clock.monotonic()
        self._waiting.look()
        too_new = session.too_new(started)
        try:
            claimed = await self._claim(
                session, place, limit=limit, alone=clears or session.is_idle, too_new=too_new
            )
        except SessionSupersededError as error:
            self._batches.drop(chosen)
            self._take_back(chosen)
            session.end(error)
            return False
        except (AgentFactoryError, TimeoutError) as error:
            logger.warning("claim failed", node_id=session.node_id, error=str(error))
            self._batches.drop(chosen)
            self._take_back(chosen)  # its fate is unknown: what was claimed after all is released
            return False
        self._observer.stage("claim", self._clock.monotonic() - started)
        self._waiting.seen(claimed.left)
        for work in claimed.executions:
            self._company.came(work.run.tenant_id, started)
        committed = {placement.order_id for placement in claimed.placements}
        self.release([placement for placement in chosen if placement.order_id not in committed])
        self._trails.claimed(claimed.placements, started)
        self._commit(claimed.placements, [work.run for work in claimed.executions])
        return claimed.queue_empty and not too_new  # those wait for another session

    async def _claim(
        self,
        session: LiveSession,
        place: Callable[[Sequence[Claimable]], Sequence[Placement]],
        *,
        limit: int,
        alone: bool,
        too_new: Sequence[ExecutionId],
    ) -> Claimed:
        reference = SessionRef(
            node_id=session.node_id,
            boot_id=session.boot_id,
            session_epoch=session.session_epoch,
            heartbeat_number=session.heartbeat_number,
        )
        async with asyncio.timeout(self._options.store_deadline.total_seconds()):
            return await self._leases.claim(
                reference, limit=min(MAX_BATCH_ORDERS, limit), place=place, alone=alone, too_new=too_new
            )

    # --- sending

    def _commit(self, placements: Sequence[Placement], runs: Sequence[RunSpec]) -> None:
        for batch in self._batches.commit(placements, runs):
            if batch.settled.is_set() and not self._outgoing:
                self._send_batch(batch)  # signed before the commit came back, as it is nearly always
            else:
                self._outgoing.append(batch)
                self._to_send.set()

    async def send_loop(self) -> None:
        """Send what has committed as soon as it is signed. Never returns."""
        while True:
            await self._to_send.wait()
            await self.send_once()

    async def send_once(self) -> None:
        """Send the oldest batch that has committed, once it is signed."""
        batch = self._outgoing.popleft() if self._outgoing else None
        if not self._outgoing:
            self._to_send.clear()
        if batch is None:
            return
        await batch.settled.wait()
        self._send_batch(batch)

    def _send_batch(self, batch: Batch) -> None:
        if batch.record is None:
            self._paused_until = self._clock.monotonic() + self._options.signing_pause.total_seconds()
            self._take_back([order.placement for order in batch.committed])
        else:
            self._send(batch, batch.record.envelope)

    def _send(self, batch: Batch, envelope: bytes) -> None:
        by_session: dict[tuple[NodeId, int], list[tuple[Placement, orders_pb2.OrderDelivery]]] = {}
        for order in batch.committed:
            where = (order.placement.node_id, order.placement.session_epoch)
            delivery = build_delivery(order.placement, order.run)
            by_session.setdefault(where, []).append((order.placement, delivery))
        for (node_id, session_epoch), mine in by_session.items():
            session = self._fleet.get(node_id)
            current = session is not None and session.session_epoch == session_epoch
            for outgoing in batch_messages(envelope, mine):
                if session is None or not current or not session.outbox.put(outgoing):
                    self._take_back(outgoing.placements)
                    continue
                for placement in outgoing.placements:
                    self._trails.sent(placement, signing_from=batch.begun_at, signing_to=batch.settled_at)

    # --- what did not leave

    def session_ended(self, session: LiveSession) -> None:
        """Take back the orders that a closed session never read; what left stays with its lease."""
        self._take_back([one for outgoing in session.outbox.take_unread() for one in outgoing.placements])

    def _take_back(self, placements: Sequence[Placement]) -> None:
        """Give slots and leases of orders back that never left: released, uncounted (rule 1)."""
        if not placements:
            return
        self._trails.unsent(placements)
        self._free_slots_of(placements)
        self._background.spawn(self._release_unsent(tuple(placements)), name="release unsent orders")

    async def _release_unsent(self, placements: Sequence[Placement]) -> None:
        await retrying(lambda: self._leases.release_unsent(placements), what="release unsent orders")
        self.wake()


def _in_company(session: LiveSession) -> int:
    return max(2 * session.slots, COMPANY_ORDERS)

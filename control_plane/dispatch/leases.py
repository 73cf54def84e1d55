"""Leases between orders and receipts: started attempts, renewals, and what runs out.

Postgres' time decides what has run out (rule 9). A broken stream closes nothing: only an expired lease, or a
new boot id, loses an attempt.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import structlog
from agentfactory.v1 import nodes_pb2

from control_plane.dispatch.background import Background
from control_plane.dispatch.dispatcher import Dispatcher
from control_plane.dispatch.fleet import Fleet
from control_plane.dispatch.options import DispatchOptions
from control_plane.dispatch.ports import Observer
from control_plane.dispatch.session import AttemptKey, HeldAttempt, LiveSession, WaitingRenewal
from control_plane.dispatch.trails import AttemptTrails
from control_plane.executions.domain import AttemptRef, ExecutionState, LostAttempt
from control_plane.executions.ports import LeaseStore
from shared.clock import Clock
from shared.errors import AgentFactoryError
from shared.ids import ExecutionId

logger = structlog.get_logger(__name__)


class LeaseDesk:
    """Takes what nodes say about attempts that run: started, still mine."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        leases: LeaseStore,
        options: DispatchOptions,
        clock: Clock,
        background: Background,
    ) -> None:
        self._dispatcher = dispatcher
        self._leases = leases
        self._options = options
        self._clock = clock
        self._background = background
        self._started: dict[AttemptKey, tuple[LiveSession, AttemptRef]] = {}  # bounded by what sessions hold
        self._any_started = asyncio.Event()

    def started(self, session: LiveSession, message: nodes_pb2.AttemptStarted) -> None:
        """Collect started attempts that the session holds; their note is written in a moment."""
        for attempt in map(ref_of, message.attempts):
            key = (attempt.execution_id, attempt.fencing_token)
            if session.attempt(key) is not None:
                self._started[key] = (session, attempt)
        self._any_started.set()

    async def start_loop(self) -> None:
        """Write started attempts in groups. Never returns."""
        while True:
            await self._any_started.wait()
            await asyncio.sleep(self._options.start_linger.total_seconds())
            await self.start_once()

    async def start_once(self) -> None:
        """Write the started attempts that still run: a short run has ended by now and needs no note."""
        self._any_started.clear()
        running = [
            attempt for key, (session, attempt) in self._started.items() if session.attempt(key) is not None
        ]
        self._started.clear()
        if not running:
            return
        try:
            async with asyncio.timeout(self._options.store_deadline.total_seconds()):
                await self._leases.start(running)
        except (AgentFactoryError, TimeoutError) as error:
            # Nothing depends on it: a result is accepted from leased too (rule 1).
            logger.warning("starts were not noted", attempts=len(running), error=str(error))

    def renew(self, session: LiveSession, renewal: nodes_pb2.LeaseRenewal) -> None:
        """Have leases extended; of renewals that wait for the database only the newest counts."""
        session.renewal = WaitingRenewal(
            message=renewal, held=frozenset(attempt.key for attempt in session.held())
        )
        if not session.renewing:
            session.renewing = True
            self._background.spawn(self._renew(session), name="renew leases")

    async def _renew(self, session: LiveSession) -> None:
        try:
            while (renewal := session.renewal) is not None:
                session.renewal = None
                await self._renew_once(session, renewal)
        finally:
            session.renewing = False

    async def _renew_once(self, session: LiveSession, renewal: WaitingRenewal) -> None:
        asked = [ref_of(attempt) for attempt in renewal.message.attempts]
        try:
            async with asyncio.timeout(self._options.lease.total_seconds()):
                renewed = await self._leases.renew(session.node_id, asked, lease=self._options.lease)
        except (AgentFactoryError, TimeoutError) as error:
            logger.warning("leases were not renewed", node_id=session.node_id, error=str(error))
            return
        granted = {(attempt.execution_id, attempt.fencing_token) for attempt in renewed}
        for attempt in asked:
            key = (attempt.execution_id, attempt.fencing_token)
            held = session.attempt(key)
            if key in granted and held is None and key not in renewal.held:
                session.hold(_taken_over(attempt, self._clock.monotonic()))
            elif key not in granted and held is not None:
                self._dispatcher.slot_freed(session.node_id, held)
        answer = nodes_pb2.LeaseGranted(
            number=renewal.message.number, attempts=[message_of(attempt) for attempt in renewed]
        )
        session.send(nodes_pb2.SessionResponse(lease_granted=answer))


class Sweeper:
    """Ends what has run out, and has stopped what shall stop. Every replica has one; one at a time works."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        dispatcher: Dispatcher,
        leases: LeaseStore,
        options: DispatchOptions,
        clock: Clock,
        observer: Observer,
        trails: AttemptTrails | None = None,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._leases = leases
        self._options = options
        self._clock = clock
        self._observer = observer
        self._trails = trails or AttemptTrails()
        self._reconciled_at = clock.monotonic()
        self._fails = False
        self._grace = Grace(lease=options.lease, max_gap=2 * options.poll_every)

    async def sweep_once(self) -> None:
        """End what passed its run deadline, and lose attempts whose lease has run out.

        No lease runs out until the database has answered without a gap for one full lease: nodes that could
        not renew while it, or this replica, was away get their chance first (rule 9).
        """
        try:
            async with asyncio.timeout(self._options.store_deadline.total_seconds()):
                expired = await self._leases.expire_deadlines(limit=self._options.sweep_limit)
                for tenant_id, count in Counter(one.tenant_id for one in expired).items():
                    self._observer.swept(ExecutionState.EXPIRED, tenant_id, count)
                await self._reconcile()
                if self._grace.is_over(self._clock.monotonic()):
                    self._lost(
                        await self._leases.expire_leases(
                            limit=self._options.sweep_limit, database_up_for=self._options.lease
                        )
                    )
        except (AgentFactoryError, TimeoutError) as error:
            self._grace.interrupted()
            if not self._fails:  # once, not four times a second while Postgres is away
                logger.warning("sweep failed", error=str(error))
            self._fails = True
        else:
            self._fails = False

    async def pass_cancels(self) -> None:
        """Tell own nodes which attempts shall stop: when NOTIFY says so, and by the poll behind it.

        Raises:
            DatabaseUnavailableError: Postgres is away.
            TimeoutError: It does not answer in time.
        """
        nodes = [session.node_id for session in self._fleet]
        if not nodes:
            return
        async with asyncio.timeout(self._options.store_deadline.total_seconds()):
            self._dispatcher.cancel(await self._leases.cancel_requests(nodes))

    async def _reconcile(self) -> None:
        """Once per lease, free slots whose attempts ended without word: another replica may have swept."""
        now = self._clock.monotonic()
        lease_s = self._options.lease.total_seconds()
        if now - self._reconciled_at < lease_s:
            return
        self._reconciled_at = now
        old = [
            (session.node_id, attempt)
            for session in self._fleet
            for attempt in session.held()
            if now - attempt.since >= lease_s
        ]
        if not old:
            return
        live = await self._leases.live_of([_ref_of_held(attempt) for _, attempt in old])
        keys = {(attempt.execution_id, attempt.fencing_token) for attempt in live}
        for node_id, attempt in old:
            if attempt.key not in keys:
                self._dispatcher.slot_freed(node_id, attempt)

    def _lost(self, attempts: Sequence[LostAttempt]) -> None:
        if not attempts:
            return
        self._observer.lease_expired(len(attempts))
        count_ended(self._observer, attempts)
        self._trails.lost(attempts)
        for lost in attempts:
            logger.warning(
                "attempt is lost",
                execution_id=lost.attempt.execution_id,
                fencing_token=lost.attempt.fencing_token,
                node_id=lost.node_id,
                reason=lost.reason,
            )
            self._fleet.release(lost.node_id, (lost.attempt.execution_id, lost.attempt.fencing_token))
        self._dispatcher.wake()


class Grace:
    """How long the database has answered without a gap, by a monotonic clock."""

    def __init__(self, *, lease: timedelta, max_gap: timedelta) -> None:
        self._lease_s = lease.total_seconds()
        self._max_gap_s = max_gap.total_seconds()
        self._since: float | None = None
        self._last: float | None = None

    def is_over(self, now: float) -> bool:
        """Note an answer at `now`; True when answers have come for a full lease without a gap."""
        if self._since is None or self._last is None or now - self._last > self._max_gap_s:
            self._since = now
        self._last = now
        return now - self._since >= self._lease_s

    def interrupted(self) -> None:
        """The database did not answer: start anew."""
        self._since = None


def count_ended(observer: Observer, attempts: Sequence[LostAttempt]) -> None:
    """Count the executions that ended with a lost attempt: no receipt will come that would count them."""
    ended = Counter((one.state, one.tenant_id) for one in attempts if one.state.is_terminal)
    for (state, tenant_id), count in ended.items():
        observer.swept(state, tenant_id, count)


def ref_of(message: nodes_pb2.AttemptRef) -> AttemptRef:
    return AttemptRef(
        execution_id=ExecutionId(message.execution_id),
        attempt_number=message.attempt_number,
        fencing_token=message.fencing_token,
    )


def message_of(attempt: AttemptRef) -> nodes_pb2.AttemptRef:
    return nodes_pb2.AttemptRef(
        execution_id=attempt.execution_id,
        attempt_number=attempt.attempt_number,
        fencing_token=attempt.fencing_token,
    )


def _ref_of_held(attempt: HeldAttempt) -> AttemptRef:
    return AttemptRef(
        execution_id=attempt.execution_id,
        attempt_number=attempt.attempt_number,
        fencing_token=attempt.fencing_token,
    )


def _taken_over(attempt: AttemptRef, now: float) -> HeldAttempt:
    return HeldAttempt(
        execution_id=attempt.execution_id,
        attempt_number=attempt.attempt_number,
        fencing_token=attempt.fencing_token,
        since=now,
    )

"""Dispatch as one thing: the live sessions of this replica, and the loops that serve them.

Made once per process by the composition root; `running` owns every task that dispatch starts.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog
from agentfactory.v1 import nodes_pb2

from control_plane.database.group_commit import GroupCommit
from control_plane.dispatch.background import Background
from control_plane.dispatch.batches import Batches
from control_plane.dispatch.dispatcher import Dispatcher
from control_plane.dispatch.endpoint import SessionEndpoint
from control_plane.dispatch.fleet import Fleet
from control_plane.dispatch.host_calls import HostCallDesk
from control_plane.dispatch.leases import LeaseDesk, Sweeper
from control_plane.dispatch.opening import NO_BOOT, SessionOpener, denial_of
from control_plane.dispatch.options import DispatchOptions
from control_plane.dispatch.ports import BodyStore, Completions, Engines, Keysets, Observer, OrderLookup
from control_plane.dispatch.receipts import ReceiptIntake
from control_plane.dispatch.retry import retrying
from control_plane.dispatch.returned import ReturnedSignatures
from control_plane.dispatch.trails import AttemptTrails
from control_plane.executions.domain import AttemptResult
from control_plane.executions.lifecycle import Finished
from control_plane.executions.ports import LeaseStore
from control_plane.kv.ports import KvReader
from control_plane.nodes.domain import NodeState
from control_plane.nodes.ports import NodeStore, SessionBeat
from shared.clock import Clock, Random
from shared.errors import AgentFactoryError, NodeQuarantinedError
from shared.gathering import Gathering
from shared.ids import NodeId
from shared.signatures import Signer
from shared.tracing import NO_TRACER, Tracer

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchStats:
    """What the metrics show of dispatch now."""

    sessions: int
    slots: int
    held_slots: int
    queue_is_empty: bool


class Dispatch:
    """The live sessions of this replica. `placer` is what executions use, `serve` what the servicer uses."""

    def __init__(
        self,
        *,
        leases: LeaseStore,
        kv: KvReader,
        bodies: BodyStore,
        nodes: NodeStore,
        orders: OrderLookup,
        keysets: Keysets,
        engines: Engines,
        signer: Signer,
        completions: Completions,
        options: DispatchOptions,
        clock: Clock,
        random: Random,
        observer: Observer,
        tracer: Tracer = NO_TRACER,
        gathering: Gathering | None = None,
    ) -> None:
        trails = AttemptTrails(tracer)
        self._options = options
        self._clock = clock
        self._nodes = nodes
        self._leases = leases
        self._keysets = keysets
        self._engines = engines
        self._background = Background()
        self._fleet = Fleet()
        self._heard: set[NodeId] = set()
        self._finishing = GroupCommit[AttemptResult, Finished](
            leases.finish, size_of=_size_of, gathering=gathering
        )
        self._batches = Batches(
            leases=leases,
            signer=signer,
            options=options,
            clock=clock,
            random=random,
            background=self._background,
            observer=observer,
            trails=trails,
        )
        self.placer = Dispatcher(
            fleet=self._fleet,
            leases=leases,
            batches=self._batches,
            options=options,
            clock=clock,
            random=random,
            background=self._background,
            observer=observer,
            trails=trails,
        )
        self._desk = LeaseDesk(
            dispatcher=self.placer,
            leases=leases,
            options=options,
            clock=clock,
            background=self._background,
        )
        self._host_calls = HostCallDesk(kv=kv, leases=leases, background=self._background)
        self._sweeper = Sweeper(
            fleet=self._fleet,
            dispatcher=self.placer,
            leases=leases,
            options=options,
            clock=clock,
            observer=observer,
            trails=trails,
        )
        self._endpoint = SessionEndpoint(
            opener=SessionOpener(
                fleet=self._fleet,
                nodes=nodes,
                leases=leases,
                keysets=keysets,
                engines=engines,
                options=options,
                clock=clock,
                random=random,
                observer=observer,
            ),
            fleet=self._fleet,
            dispatcher=self.placer,
            desk=self._desk,
            host_calls=self._host_calls,
            receipts=ReceiptIntake(
                dispatcher=self.placer,
                batches=self._batches,
                returned=ReturnedSignatures(
                    orders=orders, keysets=keysets, options=options, clock=clock, observer=observer
                ),
                finish=self._finishing.enqueue,
                protect=leases.protect_results,
                bodies=bodies,
                orders=orders,
                nodes=nodes,
                completions=completions,
                clock=clock,
                random=random,
                background=self._background,
                observer=observer,
                trails=trails,
            ),
            nodes=nodes,
            options=options,
            clock=clock,
            random=random,
            background=self._background,
            observer=observer,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run dispatch for the length of the block; leaving it ends every session and every task."""
        async with self._background:
            for work, name in (
                (self.placer.send_loop, "send orders"),
                (self._batches.record_loop, "record signatures"),
                (self.placer.claim_loop, "claim"),
                (self._desk.start_loop, "note starts"),
                (self._finishing.run, "finish"),
                (self._host_calls.read_loop, "read values"),
                (self._host_calls.intent_loop, "record unsafe calls"),
            ):
                self._background.spawn(_forever(work), name=name)
            for tick, every in (
                (self.keep_watch, self._options.heartbeat_every),
                (self.beat, self._options.heartbeat_every),
                (self.look_at_engines, self._options.heartbeat_every),
                (self._sweeper.pass_cancels, self._options.poll_every),
                (self._sweeper.sweep_once, self._options.sweep_every),
                (self.relay_keyset, self._options.keyset_poll_every),
            ):
                self._background.spawn(_every(tick, every), name=tick.__name__)
            try:
                yield
            finally:
                self.end_sessions()
                await self._batches.record_once(all_of_them=True)

    def serve(
        self, requests: AsyncIterator[nodes_pb2.SessionRequest], *, node_id: NodeId
    ) -> AsyncGenerator[nodes_pb2.SessionResponse]:
        """Serve one session; see `SessionEndpoint.serve`."""
        return self._endpoint.serve(requests, node_id=node_id)

    def end_sessions(self) -> None:
        """End every stream as planned: the nodes go to another replica, what runs there goes on."""
        for session in self._fleet:
            session.end()

    def stats(self) -> DispatchStats:
        sessions = list(self._fleet)
        return DispatchStats(
            sessions=len(sessions),
            slots=sum(session.slots for session in sessions),
            held_slots=sum(session.held_count for session in sessions),
            queue_is_empty=self.placer.queue_is_empty,
        )

    # --- what other replicas say (subscribers of NOTIFY; an empty payload means: look yourself)

    def heard_queue(self, _: Sequence[str] = ()) -> None:
        """Something became claimable."""
        self.placer.wake()

    def heard_cancels(self, _: Sequence[str] = ()) -> None:
        """Live attempts shall stop."""
        if self._background.is_open and len(self._fleet):
            self._background.spawn(self._sweeper.pass_cancels(), name="pass cancels")

    def heard_nodes(self, node_ids: Sequence[str] = ()) -> None:
        """Nodes changed their state or opened a newer session."""
        if not node_ids and len(self._fleet) and self._background.is_open:
            self._background.spawn(self.look_at_engines(), name="look at engines")
        own = {session.node_id for session in self._fleet}
        self._heard |= own & {NodeId(node_id) for node_id in node_ids} if node_ids else own
        if self._heard and self._background.is_open:
            self._background.spawn(self._look_at_heard(), name="look at nodes")

    def heard_keysets(self, _: Sequence[str] = ()) -> None:
        """There is a newer keyset."""
        if self._background.is_open:
            self._background.spawn(self.relay_keyset(), name="relay keyset")

    async def _look_at_heard(self) -> None:
        heard, self._heard = self._heard, set()
        for node_id in heard:
            await self.node_changed(node_id)

    async def node_changed(self, node_id: NodeId) -> None:
        """Act on a node's state: drain it, or end a session that is not trusted or not the newest."""
        session = self._fleet.get(node_id)
        if session is None:
            return
        # Nothing polls for a node's state, so a hint of NOTIFY must not be lost to an outage.
        node = await retrying(lambda: self._nodes.find(node_id), what="find a node")
        if node is None:
            return
        if node.session is not None:
            self._fleet.supersede(node_id, node.session.session_epoch)
        if node.state is NodeState.EVICTED:
            session.send(nodes_pb2.SessionResponse(drain=nodes_pb2.Drain(evicted=True)))
            session.end()
            await self._leases.lose_attempts_of_other_boots(node_id, NO_BOOT)
            self.placer.wake()
        elif node.state is NodeState.QUARANTINED:
            session.end(NodeQuarantinedError(f"node {node_id} is quarantined"))
        elif node.state is NodeState.DRAINING and not session.draining:
            session.draining = True
            session.send(nodes_pb2.SessionResponse(drain=nodes_pb2.Drain()))

    # --- what happens every second or so

    async def keep_watch(self) -> None:
        """End silent and old streams."""
        self._endpoint.end_stale()

    async def beat(self) -> None:
        """Note that own sessions live, and end those that a newer one replaced elsewhere."""
        now = self._clock.monotonic()
        beats = [
            SessionBeat(
                node_id=session.node_id,
                session_epoch=session.session_epoch,
                free_slots=session.free_slots(now),
                log=session.log_seen,
            )
            for session in self._fleet
        ]
        if not beats:
            return
        async with asyncio.timeout(self._options.store_deadline.total_seconds()):
            for node_id in await self._nodes.beat(beats):
                await self.node_changed(node_id)

    async def look_at_engines(self) -> None:
        """Keep orders from own sessions whose engine is denied; what runs there ends by itself."""
        if not len(self._fleet):
            return
        async with asyncio.timeout(self._options.store_deadline.total_seconds()):
            denials = await self._engines.denials()
        for session in self._fleet:
            denied = denial_of(denials, session.engine, session.profiles.values()) is not None
            if denied != session.engine_is_denied:
                logger.warning("engine of a node was judged anew", node_id=session.node_id, denied=denied)
                session.engine_is_denied = denied
                self.placer.wake()

    async def relay_keyset(self) -> None:
        """Send the newest keyset to sessions that do not have it; they get no orders before they say so."""
        if not len(self._fleet):
            return
        async with asyncio.timeout(self._options.store_deadline.total_seconds()):
            version, keyset = await self._keysets.newest()
            freshness = await self._keysets.freshness()
        self._fleet.require_keyset(version)
        now = self._clock.monotonic()
        for session in self._fleet:
            session.tell_keyset(version, keyset, now)
            # Behind the keyset: it may be the one that lists who signs such statements.
            session.tell_freshness(freshness)

    def acknowledged(self) -> int | None:
        """Return the lowest keyset version that a session has in force; None while none may hold orders."""
        return self._fleet.lowest_keyset_version()


def _size_of(result: AttemptResult) -> int:
    inline = sum(len(body.content or b"") for body in result.bodies)
    return len(result.envelope) + inline + sum(one.kept_bytes for one in result.kv_writes)


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """Run a loop again when it fails: one bug must not stop dispatch for good."""
    while True:
        try:
            await work()
        except Exception:  # logged, and the loop goes on after a pause
            logger.exception("dispatch loop failed")
        await asyncio.sleep(1)


async def _every(tick: Callable[[], Awaitable[None]], every: timedelta) -> None:
    while True:
        try:
            await tick()
        except (AgentFactoryError, TimeoutError) as error:
            logger.warning("dispatch tick failed", tick=tick.__name__, error=str(error))
        except Exception:  # the same: a bug in one tick must not end the next
            logger.exception("dispatch tick failed", tick=tick.__name__)
        await asyncio.sleep(every.total_seconds())

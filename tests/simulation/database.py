"""The database of the simulated system: the stores' fakes behind a wire that loses, delays and forgets.

A statement goes on when the process that sent it is paused or dead, as it does in Postgres, so a commit may be
known to nobody. Every effect is one transaction at one moment.
"""

import asyncio  # noqa: TC003 - imports stay in one place
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from control_plane.executions.domain import AttemptResult, LostAttempt, Placement, UnsignedOrder
from control_plane.executions.lifecycle import Execution, Finished
from control_plane.nodes.domain import Node, SpoolHead
from control_plane.nodes.ports import AttemptOwner, SessionOpening
from shared.clock import Clock
from shared.digests import Digest
from shared.errors import DatabaseUnavailableError, PermissionDeniedError
from shared.ids import AGENT, ExecutionId, KeyId, NodeId, OrderId, TenantId, new_id
from shared.limits import DEFAULT_LIMITS
from shared.receipts import AttemptIdentity
from shared.signatures import PublicKey
from tests.builders.executions import TEMPLATE
from tests.fakes.clock import FakeClock, FakeRandom
from tests.fakes.executions import FakeExecutionStore
from tests.fakes.nodes import FakeNodeStore
from tests.fixtures.keys import rsa_key, trusting
from tests.simulation.chance import Chance
from tests.simulation.loop import Process, ProcessState, VirtualLoop
from tests.simulation.watch import Trace, Watch

T = TypeVar("T")

AGENT_ID = new_id(AGENT, FakeClock(), FakeRandom("agent"))
"""Of the one agent there is."""

THERE_SECONDS = 0.001
BACK_SECONDS = 0.0005
MAX_STATEMENT_SECONDS = 12.0
"""One way; a little longer than anybody waits."""

NOTIFY_SECONDS = 0.002

CHANNELS = ("executions", "queue", "cancels", "nodes")


@dataclass
class Wire:
    """How bad the way to the database is now."""

    lost_before: float = 0.0
    """Probability that a statement never arrives."""
    lost_after: float = 0.0
    """Probability that it commits and nobody is told: the unknown commit."""
    lost_notes: float = 0.0
    """Probability that a replica misses a NOTIFY."""
    slow: float = 1.0


class _Executions(dict[ExecutionId, Execution]):
    """Rows that are looked at whenever one is written."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        self.touched: list[tuple[Execution | None, Execution]] = []

    def __setitem__(self, key: ExecutionId, after: Execution) -> None:
        before = self.get(key)
        super().__setitem__(key, after)
        self.touched.append((before, after))
        self._watch.changed(before, after)


class _Placements(dict[OrderId, Placement]):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __setitem__(self, key: OrderId, placement: Placement) -> None:
        if key not in self:
            self._watch.placed(placement.execution_id, placement.fencing_token)
        super().__setitem__(key, placement)


@dataclass
class CrashPoint:
    """Kills the sender of a statement: just before it takes effect, or just after."""

    kill: Callable[[Process], None]
    after: bool


class Database:
    """The one truth."""

    def __init__(
        self, loop: VirtualLoop, chance: Chance, clock: Clock, watch: Watch, trace: Trace, keyset: bytes
    ) -> None:
        self.loop = loop
        self._chance = chance
        self.watch = watch
        self._trace = trace
        self.keyset = keyset
        self.wire = Wire()
        self.executions = FakeExecutionStore(clock, agents={AGENT_ID: (1, TEMPLATE)})
        self.rows = _Executions(watch)
        watch.executions = self.rows
        self.executions._executions = self.rows
        self.executions._placements = _Placements(watch)
        self.nodes = FakeNodeStore(clock)
        self.listeners: list[Callable[[str, Sequence[str]], None]] = []
        self._away_until = 0.0
        self._up_since = 0.0
        self.crash_points: dict[str, CrashPoint] = {}
        """By statement: whoever sends it next dies of it."""

    def add_node(self, node: Node) -> None:
        self.nodes._nodes[node.node_id] = node

    def go_away(self, seconds: float) -> None:
        """Be restarted: nothing answers for so long; then every listener polls."""
        self._away_until = max(self._away_until, self.loop.time() + seconds)
        self.loop.at(seconds, self._back)

    def _back(self) -> None:
        if self.is_away:
            return
        self._up_since = self.loop.time()
        for channel in CHANNELS:
            self._tell(channel, ())

    @property
    def is_away(self) -> bool:
        return self.loop.time() < self._away_until

    @property
    def up_for(self) -> timedelta:
        return timedelta(seconds=self.loop.time() - self._up_since)

    @property
    def orders(self) -> int:
        return len(self.executions._placements)

    @property
    def unsigned_orders(self) -> int:
        """How many orders were answered and have no signature on record."""
        answered = {result.order_id for result, _ in self.executions._receipts.values()}
        return sum(
            one.order_id in answered and one.batch.batch_id not in self.executions.batches
            for one in self.executions._placements.values()
        )

    async def call(self, process: Process, name: str, effect: Callable[[], T]) -> T:
        """Send a statement and wait for its answer."""
        answer: asyncio.Future[T] = self.loop.create_future()
        delay = min(self._chance.of(name).latency(THERE_SECONDS * self.wire.slow), MAX_STATEMENT_SECONDS)
        self.loop.at(delay, self._execute, process, name, effect, answer)
        return await answer

    def _execute(
        self, process: Process, name: str, effect: Callable[[], Any], answer: "asyncio.Future[Any]"
    ) -> None:
        chance = self._chance.of(f"{name} fate")
        point = self.crash_points.pop(name, None) if process.is_running else None
        if point is not None and not point.after:
            self._trace.fault("killed before a statement", f"{name} of {process.name}")
            point.kill(process)
        if process.state is ProcessState.DEAD and (name == "claim" or chance.happens(0.5)):
            return  # its connection went with it, and so did the transaction
        if process.state is ProcessState.PAUSED and name == "claim":
            # `claim` chooses places in the middle of its transaction, which waits for that.
            self.loop.at(0.02, self._execute, process, name, effect, answer)
            return
        if self.is_away and chance.happens(0.3):
            self.loop.at(self._away_until - self.loop.time(), self._execute, process, name, effect, answer)
            return
        result: Any = None
        error: Exception | None = None
        if self.is_away:
            error = DatabaseUnavailableError("postgres is away")
        elif chance.happens(self.wire.lost_before):
            self._trace.fault("statement lost", f"{name} of {process.name}")
            error = DatabaseUnavailableError("the connection broke")
        else:
            try:
                result = effect()
            except Exception as problem:  # noqa: BLE001 - the caller's, as a driver would hand it
                error = problem
            self._notify()
            if point is not None and point.after:
                self._trace.fault("killed after a statement", f"{name} of {process.name}")
                point.kill(process)
            if chance.happens(self.wire.lost_after):
                self._trace.fault("commit unknown", f"{name} of {process.name}")
                error = DatabaseUnavailableError("the connection broke at the commit")
        delay = min(chance.latency(BACK_SECONDS * self.wire.slow), MAX_STATEMENT_SECONDS)
        self.loop.at(delay, _settle, answer, result, error)

    # --- NOTIFY

    def _notify(self) -> None:
        touched, self.rows.touched = self.rows.touched, []
        changed = [after for before, after in touched if before is not None]
        if changed:
            self._tell("executions", [one.execution_id for one in changed])
        if any(one.claimable_at is not None for _, one in touched):
            self._tell("queue", ())
        if any(one.cancel_requested and one.live_attempt is not None for one in changed):
            self._tell("cancels", ())

    def notify_nodes(self, node_id: NodeId) -> None:
        self._tell("nodes", (node_id,))

    def _tell(self, channel: str, payloads: Sequence[str]) -> None:
        chance = self._chance.of("notify")
        for number, listener in enumerate(self.listeners):
            if chance.happens(self.wire.lost_notes):
                self._trace.fault("notify lost", f"{channel} to replica {number + 1}")
                continue
            self.loop.at(chance.latency(NOTIFY_SECONDS), listener, channel, payloads)


class StoreView:
    """The stores as one process sees them: implements every port of them that dispatch and executions need."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._process = process

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        database = self._database
        owner = database.executions if hasattr(database.executions, name) else database.nodes
        method = getattr(owner, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._call(name, lambda: _at_once(method(*arguments, **named)))

        setattr(self, name, call)
        return call

    async def _call(self, name: str, effect: Callable[[], T]) -> T:
        return await self._database.call(self._process, name, effect)

    async def newest(self) -> tuple[int, bytes]:
        """Implements `Keysets`."""
        return await self._call("newest keyset", lambda: (1, self._database.keyset))

    async def freshness(self) -> bytes:
        return b""

    async def order_keys(self, at: datetime) -> dict[KeyId, PublicKey]:
        """Implements `Keysets`."""
        return trusting(rsa_key("order"))

    async def unsigned_orders(self, node_id: NodeId, order_ids: Sequence[OrderId]) -> list[UnsignedOrder]:
        """Implements `OrderLookup`."""

        def effect() -> list[UnsignedOrder]:
            executions = self._database.executions
            return [
                UnsignedOrder(
                    order_id=one.order_id,
                    content=one.order_content,
                    batch_id=one.batch.batch_id,
                    leaf_index=one.batch.leaf_index,
                    path=one.batch.path,
                )
                for one in executions._placements.values()
                if one.node_id == node_id
                and one.order_id in order_ids
                and one.batch.batch_id not in executions.batches
            ]

        return await self._call("unsigned orders", effect)

    async def open_session(self, opening: SessionOpening, **named: Any) -> int:
        def effect() -> int:
            database = self._database
            epoch = _at_once(database.nodes.open_session(opening, **named))
            database.executions.sessions[opening.node_id] = (epoch, opening.boot_id)
            database.notify_nodes(opening.node_id)
            return epoch

        return await self._call("open session", effect)

    async def save_state(self, node: Node, **named: Any) -> None:
        def effect() -> None:
            self._database.watch.violate("honest nodes are trusted", f"{node.node_id} becomes {node.state}")
            _at_once(self._database.nodes.save_state(node, **named))
            self._database.notify_nodes(node.node_id)

        await self._call("save state", effect)

    async def finish(self, results: Sequence[AttemptResult]) -> Sequence[Finished]:
        def effect() -> Sequence[Finished]:
            database = self._database
            answers = _at_once(database.executions.finish(results))
            for result, answer in zip(results, answers, strict=True):
                if answer.disposition.is_recorded:
                    database.nodes.accepted(
                        result.node_id, SpoolHead(sequence=result.sequence, hash=result.hash)
                    )
            database.watch.finished(
                (answer, result.fencing_token, result.hash, result.previous_hash)
                for result, answer in zip(results, answers, strict=True)
            )
            return answers

        return await self._call("finish", effect)

    async def expire_leases(
        self, *, limit: int, database_up_for: timedelta = timedelta(0)
    ) -> Sequence[LostAttempt]:
        def effect() -> Sequence[LostAttempt]:
            if self._database.up_for < database_up_for:
                return []
            return _at_once(self._database.executions.expire_leases(limit=limit))

        return await self._call("expire leases", effect)

    async def owner_of_attempt(
        self, node_id: NodeId, execution_id: ExecutionId, fencing_token: int
    ) -> AttemptOwner:
        def effect() -> AttemptOwner:
            for one in self._database.executions._placements.values():
                if (one.node_id, one.execution_id, one.fencing_token) == (
                    node_id,
                    execution_id,
                    fencing_token,
                ):
                    return AttemptOwner(
                        tenant_id=TenantId("default"),
                        output_bytes=DEFAULT_LIMITS.output_bytes,
                        log_bytes=DEFAULT_LIMITS.log_bytes,
                        recording_bytes=0,
                    )
            raise PermissionDeniedError(f"attempt {fencing_token} was never given to node {node_id}")

        return await self._call("owner of attempt", effect)

    async def find_order(self, node_id: NodeId, order_digest: Digest) -> AttemptIdentity | None:
        def effect() -> AttemptIdentity | None:
            for one in self._database.executions._placements.values():
                if (one.node_id, one.order_digest) == (node_id, order_digest):
                    return AttemptIdentity(
                        order_id=one.order_id,
                        execution_id=one.execution_id,
                        attempt_number=one.attempt_number,
                        fencing_token=one.fencing_token,
                    )
            return None

        return await self._call("find order", effect)


def output_of(database: Database, execution: Execution) -> bytes | None:
    """What the store has as the output of an execution."""
    if execution.output_body_id is None:
        return None
    return database.executions._bodies[execution.output_body_id].body.content


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a fake's method, which never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
    raise AssertionError("a fake store waits for something")


def _settle(answer: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)

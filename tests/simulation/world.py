"""One life of the whole system in one thread: what is in it, how it runs, and what became of it."""

import asyncio
import gc
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Self
from unittest.mock import patch

import structlog

from shared.errors import AgentFactoryError
from shared.keyset import KeyPurpose, sign_keyset
from tests.fakes.clock import START
from tests.fixtures.keys import rsa_key, signer
from tests.simulation.chance import Chance
from tests.simulation.clients import Client
from tests.simulation.database import Database, output_of
from tests.simulation.faults import Faults
from tests.simulation.loop import DeadlockError, Process, VirtualLoop, WorldClock
from tests.simulation.network import Network
from tests.simulation.node import SimulatedNode
from tests.simulation.replica import Custody, Replica
from tests.simulation.watch import Trace, ViolationError, Watch
from tests.unit.shared.builders import a_keyset, an_entry

HEALING_SECONDS = 120.0
"""Within which everything must have ended: three leases and backoffs, one resend of a receipt, and calls."""

LOOK_SECONDS = 0.25
MEMORY_FILES = Path("/dev/shm")
LIVES_PER_COLLECTION = 50


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a life is."""

    nodes: int = 2
    replicas: int = 2
    clients: int = 3
    requests: int = 2
    seconds: float = 10.0
    """Of trouble; then everything heals."""
    faults: int = 10


DEFAULT_SHAPE = Shape()


@dataclass(frozen=True, kw_only=True)
class Life:
    """What became of one life."""

    seed: int
    violation: ViolationError | None
    trace: Trace
    steps: int
    seconds: float
    """Of the simulated clock."""
    executions: int
    outcomes: dict[str, int]
    orders: int
    unsigned: int
    """Orders with a receipt whose batch has no signature on record."""

    @property
    def faults(self) -> int:
        return self.trace.faults.total()


@dataclass
class World:
    """Everything there is."""

    loop: VirtualLoop
    trace: Trace
    watch: Watch
    database: Database
    network: Network
    custody: Custody
    replicas: list[Replica] = field(default_factory=list)
    nodes: list[SimulatedNode] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    heals: bool = False

    @property
    def system(self) -> list[SimulatedNode | Replica]:
        return [*self.nodes, *self.replicas]

    def kill(self, one: SimulatedNode | Replica) -> None:
        """SIGKILL a process; what it had open is closed by its kernel."""
        self.processes.append(one.process)
        if isinstance(one, SimulatedNode):
            one.kill()
        else:
            one.process.kill()
            self.network.process_died(one.process)


class Simulator:
    """Lives lives, one after the other. A context manager: meanwhile this process does nothing else well.

    No log lines, no waiting for the disk, no garbage collector in the middle of a life.
    """

    def __init__(self) -> None:
        self._logs = _Logs()
        self._stack = ExitStack()
        self._lives = 0
        self._folder = Path()

    def __enter__(self) -> Self:
        base = MEMORY_FILES if MEMORY_FILES.is_dir() else None
        stack = self._stack
        self._folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="af-simulation-", dir=base))
        )
        for name in ("fsync", "fdatasync"):
            # A process that dies loses nothing that it has written; what it has not is torn by the disk.
            stack.enter_context(patch.object(os, name, lambda _descriptor: None))
        stack.callback(structlog.configure, **structlog.get_config())
        structlog.configure(
            processors=[self._logs],
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(),
            cache_logger_on_first_use=False,
        )
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        stack.callback(_collect)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def live(self, seed: int, *, shape: Shape = DEFAULT_SHAPE) -> Life:
        """Live one life; the same seed and shape live the same one again."""
        self._lives += 1
        if self._lives % LIVES_PER_COLLECTION == 0:
            _collect()
        folder = self._folder / str(self._lives)
        folder.mkdir()
        loop = VirtualLoop()
        asyncio.set_event_loop(loop)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that a kill kept from beginning
            try:
                return _live(loop, seed, shape, folder, self._logs)
            finally:
                asyncio.set_event_loop(None)
                loop.close()
                shutil.rmtree(folder)


def _collect() -> None:
    """Throw away what lives left behind; what a killed process would have cleaned up is no news."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        sys.unraisablehook = hook


def _live(loop: VirtualLoop, seed: int, shape: Shape, folder: Path, logs: "_Logs") -> Life:
    world = loop.run_until_complete(_begin(loop, Chance(str(seed)), shape, folder))
    logs.world = world
    loop.task_failed = lambda process, error: world.watch.violate(
        "no task fails", f"{process.name}: {type(error).__name__}: {error}"
    )
    loop.set_exception_handler(lambda _loop, context: _callback_failed(world.watch, context))
    try:
        loop.run_until_complete(_go_on(world, Faults(world, Chance(f"{seed}/faults")), shape))
    except DeadlockError as error:
        world.watch.violate("something always happens", str(error))
    except AgentFactoryError:
        if world.watch.violation is None:  # what a violation brought about is in the trace
            raise
    if world.watch.violation is None:
        contents = {name: output_of(world.database, one) for name, one in world.watch.executions.items()}
        outputs: dict[str, bytes] = {}
        for client in world.clients:
            outputs |= client.outputs
        world.watch.conclude(outputs, contents)
        if world.database.unsigned_orders:
            world.watch.violate(
                "the order of every receipt has its signature on record",
                f"{world.database.unsigned_orders} of {world.database.orders} have none",
            )
    life = Life(
        seed=seed,
        violation=world.watch.violation,
        trace=world.trace,
        steps=loop.steps,
        seconds=loop.time(),
        executions=len(world.watch.executions),
        outcomes={str(state): count for state, count in world.watch.outcomes.items()},
        orders=world.database.orders,
        unsigned=world.database.unsigned_orders,
    )
    logs.world = None
    _take_down(world)
    return life


def _callback_failed(watch: Watch, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if error is not None and "never retrieved" not in context["message"]:
        watch.violate("no callback fails", f"{context['message']}: {type(error).__name__}: {error}")


async def _begin(loop: VirtualLoop, chance: Chance, shape: Shape, folder: Path) -> World:
    trace = Trace(loop)
    watch = Watch(loop, trace)
    database = Database(loop, chance.of("database"), WorldClock(loop), watch, trace, _keyset())
    network = Network(loop, chance.of("network"), trace)
    custody = Custody(loop, chance.of("custody"))
    world = World(loop, trace, watch, database, network, custody)
    for number in range(1, shape.replicas + 1):
        world.replicas.append(
            Replica(f"cp{number}", loop=loop, chance=chance, database=database, custody=custody)
        )
    for number in range(1, shape.nodes + 1):
        place = folder / f"n{number}"
        place.mkdir()
        node = SimulatedNode(f"n{number}", place, loop, chance, network, world.replicas, watch, trace)
        database.add_node(node.known())
        world.nodes.append(node)
    for number in range(1, shape.clients + 1):
        world.clients.append(
            Client(
                f"c{number}",
                loop,
                chance,
                network,
                world.replicas,
                watch,
                trace,
                outputs={},
                requests=shape.requests,
                spread_seconds=shape.seconds * 0.8,
            )
        )
    return world


async def _go_on(world: World, faults: Faults, shape: Shape) -> None:
    watch, loop = world.watch, world.loop
    faults.plan(seconds=shape.seconds, count=shape.faults)
    while loop.time() < shape.seconds and watch.violation is None:
        await asyncio.sleep(LOOK_SECONDS)
    world.heals = True
    faults.heal()
    until = loop.time() + HEALING_SECONDS
    while watch.violation is None and loop.time() < until:
        if watch.is_quiet and all(client.task.done() for client in world.clients):
            return
        await asyncio.sleep(LOOK_SECONDS)
    if watch.violation is None:
        watch.conclude({}, {})
        waiting = [client.name for client in world.clients if not client.task.done()]
        watch.violate("everything ends after healing", f"clients wait still: {', '.join(waiting)}")


def _take_down(world: World) -> None:
    world.processes += [one.process for one in world.system]
    world.processes.extend(client.process for client in world.clients)
    for node in world.nodes:
        if node.process.is_alive:
            node.kill()
    world.loop.take_down(world.processes)


@cache
def _keyset() -> bytes:
    root, order = rsa_key("root"), an_entry(key=rsa_key("order").public, not_before=START - timedelta(days=1))
    assert order.purpose is KeyPurpose.ORDER
    work = sign_keyset(a_keyset(root, order, version=1), [signer(root)])
    try:
        work.send(None)
    except StopIteration as stop:
        envelope: bytes = stop.value
        return envelope
    raise AssertionError("signing with a key in memory waits for something")


class _Logs:
    """Takes what the parts log: their warnings tell the story, their exceptions are defects."""

    def __init__(self) -> None:
        self.world: World | None = None

    def __call__(self, _logger: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        if self.world is not None:
            text = str(event.get("event"))
            if method in {"exception", "critical"} or (method == "error" and event.get("exc_info")):
                error = sys.exc_info()[1] or event.get("exc_info")
                self.world.watch.violate("no defect is logged", f"{text}: {type(error).__name__}: {error}")
            elif method in {"warning", "error"}:
                told = {
                    name: value for name, value in event.items() if name in {"error", "detail", "rejection"}
                }
                self.world.trace.note(f"{text} {told or ''}".rstrip())
        raise structlog.DropEvent

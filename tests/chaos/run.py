"""Runs one fault: a world of its own, load, injection, hold, lifting, recovery, and the judge's row."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import psutil

from cli.client import Client
from cli.stack import probe
from tests.chaos.facts import open_executions, read_facts
from tests.chaos.faults.fault import Fault
from tests.chaos.judge import judge
from tests.chaos.load import Ledger, constant_load, measure_capacity
from tests.chaos.row import MAX_P95_MS, Row, Times, fill, latencies, p95_ms
from tests.chaos.slow import tell_slowest
from tests.chaos.world import NODES, World, running_world
from tests.e2e.stack import ROOT, eventually

LOGS = ROOT / "build" / "chaos"
SLOWEST = "slowest.jsonl"
UNACKNOWLEDGED = "agentfactory_node_spool_receipts"
CAPACITY_CALLERS = 32
MAX_RATE = 60.0
"""Beyond it this machine's cores would be the bound, and not the slots."""
MIN_RATE = 5.0
"""Below it nothing could be measured; a machine that bears no more is too busy for it anyway."""
REMAINING = (NODES - 1) / NODES
LOAD_OF_REMAINING = 0.5
QUIET_WITHIN = timedelta(seconds=60)
RUN_WITHIN = timedelta(minutes=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long each part of a run lasts, in seconds."""

    capacity: float = 3.0
    probe: float = 3.0
    """Of the load itself, before it counts; 0: it is not tried."""
    warm_up: float = 2.0
    earlier: float = 5.0
    """What the throughput after the fault is compared with."""
    most_hold: float = 60.0
    observed: float = 14.0
    """After the lifting: the bar of recovery, and the window that shows it."""


FULL = Pace()
QUICK = Pace(capacity=1.0, probe=0.0, warm_up=1.0, earlier=2.0, most_hold=6.0, observed=6.0)
"""Long enough to lose something, too short to measure it."""


async def run_fault(fault: Fault, pace: Pace = FULL) -> Row:
    """Return the row of one fault; whatever goes wrong on the way is a failure in it."""
    row = Row(fault=fault.name, says=fault.says)
    shutil.rmtree(LOGS / fault.name, ignore_errors=True)
    started = time.monotonic()
    try:
        async with asyncio.timeout(RUN_WITHIN.total_seconds()), running_world(fault.needs) as world:
            try:
                await _run(world, fault, row, pace)
            finally:
                keep_logs(world, fault.name)
    except TimeoutError:
        row.failures.append(f"the run did not end within {RUN_WITHIN}")
    except Exception as error:  # noqa: BLE001 - a run that breaks is a failed row, and the next one goes on
        row.failures.append(f"the run broke: {_first_of(error)!r}"[:500])
    row.took_seconds = round(time.monotonic() - started, 1)
    return row


async def _run(world: World, fault: Fault, row: Row, pace: Pace) -> None:
    ledger = Ledger()
    async with world.clients() as clients:
        await measure_capacity(clients, ledger, in_flight=CAPACITY_CALLERS, seconds=pace.warm_up)
        row.capacity_per_second = round(
            await measure_capacity(clients, ledger, in_flight=CAPACITY_CALLERS, seconds=pace.capacity), 1
        )
        row.rate_per_second = await borne(
            clients, ledger, rate_for(row.capacity_per_second), seconds=pace.probe
        )
        before, started = cpu_seconds(), time.monotonic()
        async with constant_load(clients, ledger, rate=row.rate_per_second):
            times = await _go_through(world, fault, pace)
        row.others_cores = others_cores(before, cpu_seconds(), time.monotonic() - started)
    await quiet(world)
    keep(fault.name, SLOWEST, await tell_slowest(world, ledger.calls, times))
    row.proof = await _proof(fault.proof(world), row)
    await world.stop_nodes()
    facts = await read_facts(world)
    verdict = judge(ledger.calls, facts)
    fill(row, ledger=ledger, facts=facts, verdict=verdict, times=times, nodes_off=fault.takes_nodes_off)


def rate_for(capacity: float) -> float:
    """Return the load that three nodes of four bear twice, within what this machine can tell apart."""
    return round(max(MIN_RATE, min(MAX_RATE, capacity * REMAINING * LOAD_OF_REMAINING)), 1)


async def borne(clients: Sequence[Client], ledger: Ledger, rate: float, *, seconds: float) -> float:
    """Return the rate, halved until this machine bears it within the bar of latency while nothing is wrong.

    A closed loop shares commits and signatures, so its capacity is more than an open loop gets at the same cost
    each; on a busy machine half of it can be too much, and a fault would be judged for that.
    """
    while seconds and rate > MIN_RATE:
        started = time.time()
        async with constant_load(clients, ledger, rate=rate):
            await asyncio.sleep(seconds)
        p95 = p95_ms(latencies(ledger), started, started + seconds)
        if p95 is not None and p95 < MAX_P95_MS:
            break
        rate = max(MIN_RATE, round(rate / 2, 1))
    return rate


async def _go_through(world: World, fault: Fault, pace: Pace) -> Times:
    await asyncio.sleep(pace.warm_up)
    loaded_at = time.time()
    await asyncio.sleep(pace.earlier)
    injected_at = time.time()
    await fault.inject(world)
    await asyncio.sleep(min(fault.hold_seconds, pace.most_hold))
    await fault.lift(world)
    lifted_at = time.time()
    await asyncio.sleep(pace.observed)
    return Times(loaded_at=loaded_at, injected_at=injected_at, lifted_at=lifted_at, ended_at=time.time())


def keep_logs(world: World, name: str) -> None:
    """Keep what every process said of the last run of this fault."""
    shutil.copytree(world.data_dir / "logs", LOGS / name, dirs_exist_ok=True)


def keep(name: str, file: str, text: str) -> None:
    (LOGS / name).mkdir(parents=True, exist_ok=True)
    (LOGS / name / file).write_text(text, encoding="utf-8")


def cpu_seconds() -> tuple[float, float]:
    """Return the CPU time of this whole machine, and that of this process and of all that it has started."""
    machine = psutil.cpu_times()
    me = psutil.Process()
    mine = sum(me.cpu_times()[:4])  # those that have ended count as their parent's
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            mine += sum(child.cpu_times()[:4])
    return sum(machine) - machine.idle - machine.iowait, mine


def others_cores(before: tuple[float, float], after: tuple[float, float], seconds: float) -> float:
    """Return how many cores were busy with others' work; what a killed process used counts as others'."""
    return round(max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds, 2)


async def _proof(proving: Awaitable[str], row: Row) -> str:
    try:
        return await proving
    except AssertionError as error:
        row.failures.append(f"not proved: {error}"[:300])
        return ""


async def quiet(world: World) -> None:
    """Wait until every execution has ended, and every node is back and has delivered its receipts."""
    await eventually(lambda: open_executions(world), lambda count: count == 0, "the end of all", QUIET_WITHIN)
    await eventually(
        lambda: holding_back(world), lambda names: not names, "the last receipt of all", QUIET_WITHIN
    )


async def holding_back(world: World) -> list[str]:
    """Return the nodes that do not answer, or have receipts that nobody has acknowledged."""
    found = []
    for node in world.nodes:
        answer = await probe.get(node.admin_port, "/metrics")
        if answer is None or f"\n{UNACKNOWLEDGED} 0.0\n" not in answer.body:
            found.append(node.node_id)
    return found


def _first_of(error: BaseException) -> BaseException:
    return _first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error

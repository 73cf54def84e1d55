"""Runs one fault: a world of its own, load, injection, hold, lifting, recovery, and the judge's row."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import timedelta

from tests.chaos.facts import open_executions, read_facts
from tests.chaos.faults.fault import Fault
from tests.chaos.judge import judge
from tests.chaos.load import Ledger, constant_load, measure_capacity
from tests.chaos.row import Row, Times, fill
from tests.chaos.world import NODES, World, running_world
from tests.e2e.stack import eventually

CAPACITY_CALLERS = 32
CAPACITY_SECONDS = 3.0
MAX_RATE = 60.0
"""Beyond it this machine's cores would be the bound, and not the slots."""
REMAINING = (NODES - 1) / NODES
LOAD_OF_REMAINING = 0.5
WARM_UP_SECONDS = 2.0
EARLIER_SECONDS = 5.0
OBSERVED_SECONDS = 13.0
"""After the lifting: the bar of recovery and a little."""
QUIET_WITHIN = timedelta(seconds=60)
RUN_WITHIN = timedelta(minutes=4)


async def run_fault(fault: Fault) -> Row:
    """Return the row of one fault; whatever goes wrong on the way is a failure in it."""
    row = Row(fault=fault.name, says=fault.says)
    started = time.monotonic()
    try:
        async with asyncio.timeout(RUN_WITHIN.total_seconds()), running_world(fault.needs) as world:
            await _run(world, fault, row)
    except TimeoutError:
        row.failures.append(f"the run did not end within {RUN_WITHIN}")
    except Exception as error:  # noqa: BLE001 - a run that breaks is a failed row, and the next one goes on
        row.failures.append(f"the run broke: {_first_of(error)!r}"[:500])
    row.took_seconds = round(time.monotonic() - started, 1)
    return row


async def _run(world: World, fault: Fault, row: Row) -> None:
    ledger = Ledger()
    async with world.clients() as clients:
        row.capacity_per_second = round(
            await measure_capacity(clients, ledger, in_flight=CAPACITY_CALLERS, seconds=CAPACITY_SECONDS), 1
        )
        row.rate_per_second = round(min(MAX_RATE, row.capacity_per_second * REMAINING * LOAD_OF_REMAINING), 1)
        async with constant_load(clients, ledger, rate=row.rate_per_second):
            times = await _go_through(world, fault)
    await quiet(world)
    proving = await _proof(fault.proof(world), row)
    facts = await read_facts(world)
    row.proof = proving
    verdict = judge(ledger.calls, facts)
    fill(row, ledger=ledger, facts=facts, verdict=verdict, times=times, nodes_off=fault.takes_nodes_off)


async def _go_through(world: World, fault: Fault) -> Times:
    await asyncio.sleep(WARM_UP_SECONDS)
    loaded_at = time.time()
    await asyncio.sleep(EARLIER_SECONDS)
    injected_at = time.time()
    await fault.inject(world)
    await asyncio.sleep(fault.hold_seconds)
    await fault.lift(world)
    lifted_at = time.time()
    await asyncio.sleep(OBSERVED_SECONDS)
    return Times(loaded_at=loaded_at, injected_at=injected_at, lifted_at=lifted_at, ended_at=time.time())


async def _proof(proving: Awaitable[str], row: Row) -> str:
    try:
        return await proving
    except AssertionError as error:
        row.failures.append(f"not proved: {error}"[:300])
        return ""


async def quiet(world: World) -> None:
    """Wait until every execution has ended, then stop the nodes: they deliver what they still hold."""
    await eventually(lambda: open_executions(world), lambda count: count == 0, "the end of all", QUIET_WITHIN)
    await world.stop_nodes()


def _first_of(error: BaseException) -> BaseException:
    return _first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error

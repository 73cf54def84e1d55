"""What tracing costs: throughput of Execute with 10 % of the traces kept beside none, in turns, in one run.

`python -m tests.bench.tracing`; the bar is 97 % of the throughput without. The receiver of the spans runs in the
process of the callers, so what it costs counts too.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import wasmtime

from tests.bench.engine import NOOP
from tests.bench.execute import IN_FLIGHT, LOADED, Call, executor, rate
from tests.bench.report import Figure, median, publish, spread
from tests.e2e.stack import running_stack
from tests.fixtures.otlp import Collector, collecting

ROUNDS = 7
RATIO = "0.1"
BAR = 0.97


@asynccontextmanager
async def system(collector: Collector | None) -> AsyncIterator[Call]:
    """Run a whole system, traced or not, and give a call of it."""
    control: dict[str, str] = {}
    node: dict[str, str] = {}
    if collector is not None:
        control = {
            "AF_CONTROL_OTLP_ENDPOINT": collector.endpoint,
            "AF_CONTROL_TRACE_RATIO": RATIO,
            "AF_CONTROL_TRACE_MAX_PER_S": "100000",
        }
        node = {"AF_NODE_OTLP_ENDPOINT": collector.endpoint, "AF_NODE_TRACE_MAX_PER_S": "100000"}
    async with running_stack(control=control, **node) as stack:
        module = stack.folder / "noop.wasm"
        module.write_bytes(bytes(wasmtime.wat2wasm(NOOP)))
        await stack.make_agent("noop", module)
        async with stack.client() as client:
            call = executor(client)
            await rate(call, 4 * IN_FLIGHT, IN_FLIGHT)
            yield call


async def measure() -> list[Figure]:
    """Return both throughputs and how they compare. Rounds alternate: the machine's moods hit both."""
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(collecting())
        off = await stack.enter_async_context(system(None))
        on = await stack.enter_async_context(system(collector))
        rates: dict[str, list[float]] = {"off": [], "on": []}
        for turn in range(ROUNDS):
            order = (("off", off), ("on", on)) if turn % 2 else (("on", on), ("off", off))
            for name, call in order:
                rates[name].append(await rate(call, LOADED, IN_FLIGHT))
        kept = len(collector.spans)
    ratios = [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
    value = median(ratios)
    return [
        Figure(
            figure="Execute, 64 in flight, 10 % of the traces kept",
            value=median(rates["on"]),
            unit="/s",
            reference="the same, tracing off",
            reference_value=median(rates["off"]),
            bar=f"≥ {BAR:.0%}",
            bar_ok=value >= BAR,
            repeats=ROUNDS,
            spread=spread(ratios),
        ),
        Figure(figure="median of the ratio, round by round", value=value, unit=""),
        Figure(figure="spans received", value=kept, unit=""),
    ]


def main() -> int:
    """Measure and report; 1 when the bar is missed."""
    return publish("tracing", asyncio.run(measure()))


if __name__ == "__main__":
    sys.exit(main())

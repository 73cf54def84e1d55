"""What tracing costs: Execute with 10 % of the traces kept beside none, in pairs, in one run.

`python -m tests.bench.tracing`; the bar is 97 % of the throughput without. The receiver of the spans runs in the
process of the callers, so what it costs counts too. On a busy machine the throughput says little; what an
execution costs each process in processor time still says something.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import wasmtime

from tests.bench.engine import NOOP
from tests.bench.execute import IN_FLIGHT, Call, executor, rate
from tests.bench.report import TIMES, Figure, measured, median, publish, spread
from tests.e2e.stack import running_stack
from tests.fixtures.otlp import Collector, collecting

ROUNDS = 21
"""Groups form by chance: the pairs of one run spread by a tenth, and seven of them said anything from 0.87 to 1.05."""
CALLS = 1500
"""Of one round."""
RATIO = "0.1"
BAR = 0.97
WITHOUT, WITH = "off", "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A whole system under load."""

    call: Call
    processes: dict[str, int]

    def cpu_us(self) -> dict[str, float]:
        """Return the processor time of each process, all its threads together."""
        return {name: _cpu_us(pid) for name, pid in self.processes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round measured."""

    per_second: float
    cpu_us: dict[str, float]
    """Of one execution, by process."""


def _cpu_us(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e3


@asynccontextmanager
async def system(collector: Collector | None) -> AsyncIterator[System]:
    """Run a whole system, traced or not."""
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
            assert stack.control_plane is not None
            yield System(
                call=call,
                processes={"control plane": stack.control_plane.pid, "node": stack.nodes[0].running.pid},
            )


async def one_round(of: System, calls: int) -> Round:
    before = of.cpu_us()
    per_second = await rate(of.call, calls, IN_FLIGHT)
    count = calls // IN_FLIGHT * IN_FLIGHT
    return Round(
        per_second=per_second,
        cpu_us={name: (now - before[name]) / count for name, now in of.cpu_us().items()},
    )


async def measure(rounds: int, calls: int) -> list[Figure]:
    """Return both and how they compare. Who goes first alternates: the machine's moods hit both."""
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(collecting())
        systems = {
            WITHOUT: await stack.enter_async_context(system(None)),
            WITH: await stack.enter_async_context(system(collector)),
        }
        found: dict[str, list[Round]] = {WITHOUT: [], WITH: []}
        for turn in range(rounds):
            for name in list(systems)[:: 1 if turn % 2 else -1]:
                found[name].append(await one_round(systems[name], calls))
        kept = len(collector.spans)
    return [
        *_throughput(found, rounds),
        *_processors(found),
        Figure(figure="spans", value=kept, unit=""),
    ]


def _throughput(found: dict[str, list[Round]], rounds: int) -> list[Figure]:
    rates = {name: [one.per_second for one in of] for name, of in found.items()}
    ratios = [on / off for on, off in zip(rates[WITH], rates[WITHOUT], strict=True)]
    value = median(ratios)
    return [
        measured(
            "Execute, 64 in flight, 10 % of the traces kept",
            rates[WITH],
            "/s",
            beside=("off", rates[WITHOUT]),
        ),
        Figure(
            figure="the same by pairs",
            value=value,
            unit=TIMES,
            bar=f"≥ {BAR}",
            bar_ok=value >= BAR,
            repeats=rounds,
            spread=spread(ratios),
        ),
    ]


def _processors(found: dict[str, list[Round]]) -> list[Figure]:
    figures = []
    for process in found[WITH][0].cpu_us:
        off, on = ([one.cpu_us[process] for one in found[name]] for name in (WITHOUT, WITH))
        figures.append(measured(f"{process}: processor time of an execution", on, "µs", beside=("off", off)))
    return figures


def main() -> int:
    """Measure and report; 1 when the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tracing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=CALLS, help="of one round (default: %(default)s)")
    asked = parser.parse_args()
    return publish("tracing", asyncio.run(measure(asked.rounds, asked.calls)))


if __name__ == "__main__":
    sys.exit(main())

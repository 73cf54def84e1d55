"""What a system past saturation does: ``python -m tests.bench.pressure [--quick]``.

Writes build/bench/pressure.json and exits 1 when a bar is missed. Everything is on, on one machine, callers too.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.pressure.spent import Spent, told
from tests.bench.pressure.world import Process, World, running_world
from tests.bench.report import Figure, measured, median, publish
from tests.bench.scale.world import say

SLEEP_MS = 40
SLEEPS = f"sleep {SLEEP_MS}"
"""A run that takes time and no processor: slots bound the capacity, and not this machine's cores."""
WORKS = "output 1000"
"""A run of well below a millisecond: the processor bounds the capacity."""

RATE = 20.0
"""Executions per second of the tenant that suffers a flood."""
FLOOD = 10_000
FLOOD_IN_FLIGHT = 512
"""Of them at once. Above a thousand that its server has not looked at gRPC cancels calls by itself, at random."""
FEW, MANY = 64, 256
"""Callers at the peak, and four times as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    flood: int = FLOOD
    rounds: int = 3
    seconds: float = 10
    pressed_seconds: float = 40


QUICK = Plan(flood=2_000, rounds=1, seconds=4, pressed_seconds=8)


PARTS = ("flood", "callers", "overload")


async def measure(plan: Plan, parts: Sequence[str] = PARTS) -> list[Figure]:
    figures: list[Figure] = []
    async with running_world() as world:
        async with world.caller("admin", WORKS) as calm, world.caller("other", WORKS) as wild:
            await calm.do("closed", callers=FEW, seconds=plan.seconds)  # every path is warm
            if "flood" in parts:
                figures += await measure_flood(world, plan, calm, wild)
            if "callers" in parts:
                figures += await measure_callers(plan, calm)
        if "overload" in parts:
            async with world.caller("admin", SLEEPS) as caller:
                figures += await measure_overload(world, plan, caller)
    return figures


async def measure_flood(world: World, plan: Plan, calm: Process, wild: Process) -> list[Figure]:
    """Measure a calm tenant without and with the flood of another, one after the other, several times."""
    alone, beside, took = [], [], []
    roots = world.roots(calm) | {"flood": wild.process.pid}
    for number in range(plan.rounds):
        p95, _ = await calm.p95_ms(rate=RATE, seconds=plan.seconds)
        alone.append(p95)
        spent, stood = Spent.now(roots), await world.counts()
        flood = asyncio.create_task(wild.do("flood", submissions=plan.flood, in_flight=FLOOD_IN_FLIGHT))
        p95, calls = await calm.p95_ms(rate=RATE, seconds=plan.seconds)
        beside.append(p95)
        still, cpus = await world.waiting(), Spent.now(roots).cpus_since(spent)
        stored, ended = (now - then for now, then in zip(await world.counts(), stood, strict=True))
        answer = await flood
        took.append(answer["seconds"])
        await world.drain(by_hand=True)
        say(
            f"flood {number + 1}: p95 {alone[-1]:.1f} ms alone, {beside[-1]:.1f} ms beside {plan.flood:,}"
            f" submissions ({calls} calls, {still:,} wait at the end of the window); the flood was stored"
            f" within {took[-1]:.1f} s, {answer['refused']} refusals, {answer['turned_away']} turned away by gRPC;"
            f" in the window {stored:,} stored and {ended:,} ended; processors: {told(cpus)}"
        )
    ratio = median(beside) / median(alone)
    return [
        measured(
            f"p95 of a tenant at {RATE:.0f}/s while another floods {plan.flood:,} submissions",
            beside,
            "ms",
            beside=("without the flood", alone),
            bar="≤ 2 times",
            bar_ok=ratio <= 2,
        ),
        Figure(figure="the flood stored within", value=median(took), unit="s", repeats=plan.rounds),
    ]


async def measure_callers(plan: Plan, caller: Process) -> list[Figure]:
    """Measure four times the callers that the peak needs, where the processor is what is short."""
    few, many = [], []
    for number in range(plan.rounds):
        few.append((await caller.do("closed", callers=FEW, seconds=plan.seconds))["rate"])
        many.append((await caller.do("closed", callers=MANY, seconds=plan.seconds))["rate"])
        say(f"callers {number + 1}: {FEW}: {few[-1]:.0f}/s, {MANY}: {many[-1]:.0f}/s")
    return [
        measured(
            f"executions/s of {MANY} callers (processor bound)",
            many,
            "/s",
            beside=(f"{FEW} callers", few),
            bar="≥ 0.9 times",
            bar_ok=median(many) >= 0.9 * median(few),
        )
    ]


async def measure_overload(world: World, plan: Plan, caller: Process) -> list[Figure]:
    """Measure the peak of the fleet, then offer four times as much for a long time."""
    roots = world.roots(caller)
    calm = Spent.now(roots)
    peak = max([(await caller.do("closed", callers=FEW, seconds=plan.seconds))["rate"] for _ in range(2)])
    say(f"processors at the peak: {told(Spent.now(roots).cpus_since(calm))}")
    before_mib = world.control_plane_mib()
    offering = asyncio.create_task(caller.do("offer", rate=4 * peak, seconds=plan.pressed_seconds))
    half = plan.pressed_seconds / 2
    await asyncio.sleep(half)
    middle_mib, ended, loop = world.control_plane_mib(), await world.ended(), asyncio.get_running_loop()
    started, spent = loop.time(), Spent.now(roots)
    await asyncio.sleep(half * 0.9)
    rate = (await world.ended() - ended) / (loop.time() - started)
    cpus = Spent.now(roots).cpus_since(spent)
    end_mib, waiting = world.control_plane_mib(), await world.waiting()
    answer = await offering
    await world.drain(by_hand=True)
    say(
        f"peak {peak:.0f}/s; offered {answer['offered'] / plan.pressed_seconds:.0f}/s: {rate:.0f}/s ended,"
        f" {answer['refused']} refusals, {answer['turned_away']} turned away by gRPC, {waiting:,} wait at the end, {answer['late']:.1f} s late;"
        f" PSS {before_mib:.0f}, {middle_mib:.0f}, {end_mib:.0f} MiB; processors: {told(cpus)}"
    )
    return [
        Figure(
            figure=f"executions/s with 4 times the capacity offered ({SLEEP_MS} ms runs, slot bound)",
            value=rate,
            unit="/s",
            reference="peak",
            reference_value=peak,
            bar="≥ 0.9 times",
            bar_ok=rate >= 0.9 * peak,
        ),
        Figure(figure="refused calls meanwhile", value=answer["refused"], unit=""),
        Figure(
            figure="memory of the control plane at the end of it (PSS)",
            value=end_mib,
            unit="MiB",
            reference="half way",
            reference_value=middle_mib,
            bar="≤ 1.1 times",
            bar_ok=end_mib <= 1.1 * middle_mib,
        ),
        Figure(
            figure="memory of the control plane half way (PSS)",
            value=middle_mib,
            unit="MiB",
            reference="before",
            reference_value=before_mib,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pressure", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller flood, short windows, one round")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all unless named")
    given = parser.parse_args()
    if not set(given.parts) <= set(PARTS):
        parser.error(f"a part is one of {', '.join(PARTS)}")
    plan = QUICK if given.quick else Plan()
    name = "-".join(["pressure", *(["quick"] if given.quick else []), *given.parts])
    return publish(name, asyncio.run(measure(plan, given.parts or PARTS)))


if __name__ == "__main__":
    sys.exit(main())

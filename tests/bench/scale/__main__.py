"""How cost grows with nodes, replicas and history: ``python -m tests.bench.scale [--quick] [--only PART]``.

One open loop at one modest rate for every row. Writes build/bench/scale.json and exits 1 when a bar is missed; a
part of it writes build/bench/scale-part.json.
"""

import argparse
import asyncio
import sys
from dataclasses import dataclass

from tests.bench.report import Figure, publish
from tests.bench.scale import growth, history
from tests.bench.scale.world import running_world, say

PARTS = ("nodes", "replicas", "history")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    counts: tuple[int, ...]
    rate: float
    rounds: int
    idle_seconds: float
    seconds: float
    stored: int

    @property
    def few(self) -> int:
        """What growth is measured from: ten nodes, or fewer where only fewer are asked for."""
        return max(count for count in self.counts if count <= 10)


WHOLE = Plan(counts=(1, 10, 100, 1000), rate=60, rounds=3, idle_seconds=8, seconds=15, stored=1_000_000)
QUICK = Plan(counts=(1, 10, 100), rate=40, rounds=1, idle_seconds=3, seconds=5, stored=20_000)


async def measure(plan: Plan, parts: tuple[str, ...]) -> list[Figure]:
    figures: list[Figure] = []
    if "nodes" in parts:
        figures += await measure_nodes(plan)
    if "replicas" in parts:
        say("one replica, then two")
        figures += await growth.measure_replicas(
            plan.few,
            rate=plan.rate,
            rounds=plan.rounds,
            idle_seconds=plan.idle_seconds,
            seconds=plan.seconds,
        )
    if "history" in parts:
        figures += await history.measure(
            plan.few,
            stored=plan.stored,
            rate=plan.rate,
            rounds=plan.rounds,
            idle_seconds=plan.idle_seconds,
            seconds=plan.seconds,
        )
    return figures


async def measure_nodes(plan: Plan) -> list[Figure]:
    most = plan.counts[-1]
    say(f"enrolling {most:,} nodes")
    async with running_world(nodes=most, processes=2 if most > 500 else 1) as world:
        found = await growth.measure_nodes(
            world,
            plan.counts,
            rate=plan.rate,
            rounds=plan.rounds,
            idle_seconds=plan.idle_seconds,
            seconds=plan.seconds,
        )
        statements = {}
        for count in (plan.few, most):
            await world.connect(count)
            statements[count] = await world.statements(plan.rate, plan.idle_seconds)
            say(f"{count:,} nodes: {statements[count]:.2f} statements per execution")
        return growth.node_figures(found, statements, plan.few, most)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few nodes, short windows, one round")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--nodes", type=int, nargs="+", help="these counts of nodes")
    parser.add_argument("--stored", type=int, help="executions of history")
    given = parser.parse_args()
    plan = QUICK if given.quick else WHOLE
    changes = {"counts": tuple(sorted(given.nodes)) if given.nodes else None, "stored": given.stored}
    plan = Plan(**{**_fields(plan), **{name: value for name, value in changes.items() if value}})
    figures = asyncio.run(measure(plan, (given.only,) if given.only else PARTS))
    return publish("scale" if plan == WHOLE and not given.only else "scale-part", figures)


def _fields(plan: Plan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in Plan.__slots__}


if __name__ == "__main__":
    sys.exit(main())

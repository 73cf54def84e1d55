"""What one decision costs: `python -m tests.bench.policy`; µs, embedded and by an OPA server, evaluated and remembered."""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from control_plane.policy.builtin import builtin_policy
from control_plane.policy.domain import Question
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.opa_server import OpaPolicyEngines
from control_plane.policy.ports import PolicyEngine
from tests.fixtures.opa import opa_server
from tests.unit.control_plane.policy.test_policy import ASKED, service

ROUNDS = 1000


async def measured(act: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    times = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        await act(number)
        times.append((time.perf_counter() - started) * 1e6)
    cuts = statistics.quantiles(times, n=100)
    return {"p50_us": round(cuts[49], 1), "p99_us": round(cuts[98], 1)}


async def figures(engine: PolicyEngine) -> dict[str, dict[str, float]]:
    asked = service(engine)
    return {
        "evaluated": await measured(
            lambda number: asked.decide(Question.EXECUTE, replace(ASKED, input_bytes=number))
        ),
        "remembered": await measured(lambda _: asked.decide(Question.EXECUTE, ASKED)),
    }


async def main() -> None:
    bundle = builtin_policy()
    result = {"embedded": await figures(await EmbeddedPolicyEngines().load(bundle))}
    with tempfile.TemporaryDirectory() as folder, opa_server(Path(folder)) as server:
        await server.give(bundle)
        engines = OpaPolicyEngines([server.url], timeout=timedelta(seconds=10))
        result["opa"] = await figures(await engines.load(bundle))
        await engines.close()
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())

"""The first run of a new Python agent on a warm node: `python -m tests.bench.compiled`.

Its module was compiled by another machine beforehand, or is compiled by the node, which is what a node does unless it is
told to take the former. Each run is of an agent like no other: the starter with another table of constants. A node that
ran one of them before has the runtime's machine code already and fetches the rest; the first of all fetches everything.
Times are a caller's, over mTLS, with policy, signatures and receipts; what a second run of the same module takes stands
beside them.
"""

import asyncio
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from agentfactory.v1 import keys_pb2

from cli.run import execute_with
from tests.bench.report import Figure, measured, publish
from tests.e2e.stack import TestStack, new_request, running_stack
from tests.e2e.test_compiled_elsewhere import SUCCEEDED, compiled, elsewhere, here, pieces
from tests.fixtures.runtimes import weighing_module

MODULES: Final = 6
COMPILED_WITHIN: Final = timedelta(minutes=3)
BODY: Final = b'{"text": "to be or not to be"}'
BAR_MS: Final = 150


async def first_runs(stack: TestStack, names: list[str]) -> tuple[list[float], list[float]]:
    """Return ms of the first run of each agent, and of the second."""
    times: tuple[list[float], list[float]] = ([], [])
    async with stack.client() as client:
        await client.keys.ListKeys(keys_pb2.ListKeysRequest(), timeout=10)  # connects
        for name in names:
            for which in times:
                began = time.monotonic()
                execution, _ = await execute_with(client, new_request(name, BODY, 60))
                which.append((time.monotonic() - began) * 1e3)
                assert execution.state == SUCCEEDED, execution
    return times


async def agents(stack: TestStack, modules: list[Path]) -> list[str]:
    for module in modules:
        await stack.make_agent(module.stem, module)
    return [module.stem for module in modules]


def built(folder: Path) -> list[Path]:
    modules = [folder / f"weighs{number}.wasm" for number in range(MODULES)]
    for number, path in enumerate(modules):
        path.write_bytes(weighing_module(folder, number))
    return modules


async def figures(folder: Path) -> list[Figure]:
    modules = built(folder)
    async with running_stack(AF_NODE_ACCEPT_COMPILED_ARTIFACTS="true", AF_NODE_SLOTS="2") as stack:
        (node,) = stack.nodes
        compiler = await stack.add_compiler()
        names = await agents(stack, modules)
        await compiled(compiler, MODULES, within=COMPILED_WITHIN)
        # From then on the node has run Python before; the compiling machine has nothing to do.
        very_first, _ = await first_runs(stack, names[:1])
        before = await pieces(node)
        taken, second = await first_runs(stack, names[1:])
        assert (await here(node), await elsewhere(node)) == (0, MODULES)
        fetched, reused = (
            (after - had) / len(taken) for after, had in zip(await pieces(node), before, strict=True)
        )
    async with running_stack(AF_NODE_SLOTS="2") as stack:
        (node,) = stack.nodes
        names = await agents(stack, modules[:4])
        await first_runs(stack, names[:1])
        made, _ = await first_runs(stack, names[1:])
        assert await here(node) == len(names)
    return [
        measured(
            "first run of a new Python agent, compiled elsewhere",
            taken,
            "ms",
            beside=("compiled by the node", made),
            at_most=BAR_MS,
        ),
        measured("first run of the first Python agent of a node, compiled elsewhere", very_first, "ms"),
        measured("pieces that a new agent fetches", [fetched], "", beside=("had", [reused])),
        measured("second run of it", second, "ms"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="agentfactory-bench-") as name:
        sys.exit(publish("compiled", asyncio.run(figures(Path(name)))))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()

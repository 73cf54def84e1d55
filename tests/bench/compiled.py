"""The first run of a new Python agent on a warm node: `python -m tests.bench.compiled`.

Its module was compiled by another machine beforehand, or is compiled by the node, which is what a node does unless it is
told to take the former. Each run is of a module that is like no other: the saved Python of the starter with another
custom section. Times are a caller's, over mTLS, with policy, signatures and receipts; what a second run of the same module
takes stands beside them.
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

from cli.guests.build import Workshop
from cli.guests.new import make_project
from cli.guests.project import Language, find_project
from cli.run import execute_with
from tests.bench.report import Figure, measured, publish
from tests.e2e.stack import TestStack, new_request, running_stack
from tests.e2e.test_compiled_elsewhere import SUCCEEDED, compiled, elsewhere, here
from tests.fixtures.runtimes import runtime_folder

MODULES: Final = 6
COMPILED_WITHIN: Final = timedelta(minutes=3)
BODY: Final = b'{"text": "to be or not to be"}'
BAR_MS: Final = 150


def saved_python(folder: Path) -> bytes:
    runtimes = runtime_folder(Language.PYTHON)
    project = find_project(make_project("python-agent", Language.PYTHON, folder))
    return Workshop(cache=folder / "cache", runtimes=runtimes).build(project).module


def variant(module: bytes, number: int) -> bytes:
    """Return the same module with a custom section of its own: another digest, the same code."""
    content = bytes([7]) + b"variant" + number.to_bytes(4, "big")
    return module + bytes([0, len(content)]) + content


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


async def agents(stack: TestStack, module: bytes, folder: Path, label: str) -> list[str]:
    names = [f"{label}-{number}" for number in range(MODULES)]
    for number, name in enumerate(names):
        path = folder / f"{name}.wasm"
        path.write_bytes(variant(module, number))
        await stack.make_agent(name, path)
    return names


async def figures(folder: Path) -> list[Figure]:
    module = saved_python(folder)
    async with running_stack(AF_NODE_ACCEPT_COMPILED_ARTIFACTS="true", AF_NODE_SLOTS="2") as stack:
        (node,) = stack.nodes
        compiler = await stack.add_compiler()
        names = await agents(stack, module, folder, "elsewhere")
        await compiled(compiler, MODULES, within=COMPILED_WITHIN)
        # The node is warm: it has run Python before, and the compiling machine has nothing to do.
        await first_runs(stack, names[:1])
        taken, second = await first_runs(stack, names[1:])
        assert (await here(node), await elsewhere(node)) == (0, MODULES)
    async with running_stack(AF_NODE_SLOTS="2") as stack:
        (node,) = stack.nodes
        names = (await agents(stack, module, folder, "here"))[:4]
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
        measured("second run of it", second, "ms"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="agentfactory-bench-") as name:
        sys.exit(publish("compiled", asyncio.run(figures(Path(name)))))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()

"""What it costs that a worker belongs to one module: many agents taking turns on two slots, beside one agent."""

import itertools
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import wasmtime
from agentfactory.v1 import executions_pb2

from cli.client import Client
from tests.bench.execute import BODY, CALL_TIMEOUT, rate
from tests.bench.report import Figure, measured, median
from tests.e2e.stack import running_stack

REPEATS: Final = 3
AGENTS: Final = 20
SLOTS: Final = 2
EXECUTIONS: Final = 600
"""Of one repeat, on each side."""
IN_FLIGHT: Final = 8


def module_of(number: int) -> bytes:
    """Return a module that does nothing and is like no other."""
    text = f'(module (memory (export "memory") 1) (data (i32.const 0) "{number}") (func (export "_start")))'
    return bytes(wasmtime.wat2wasm(text))


async def many_agents(folder: Path) -> list[Figure]:
    """Executions per second, policy, signatures and receipts on."""
    names = [f"turn-{number}" for number in range(AGENTS)]
    one, many = [], []
    async with running_stack(nodes=1, AF_NODE_SLOTS=str(SLOTS)) as stack, stack.client() as client:
        for number, name in enumerate(names):
            module = folder / f"{name}.wasm"
            module.write_bytes(module_of(number))
            await stack.make_agent(name, module)
        await executions_per_second(client, names, 2 * AGENTS)
        for _ in range(REPEATS):
            one.append(await executions_per_second(client, names[:1], EXECUTIONS))
            many.append(await executions_per_second(client, names, EXECUTIONS))
    ratio = median(many) / median(one)
    return [
        measured(
            f"{AGENTS} agents taking turns on {SLOTS} slots, {IN_FLIGHT} executions in flight",
            many,
            "/s",
            beside=("one agent", one),
            bar="≥ 0.6 of one agent",
            bar_ok=ratio >= 0.6,
        )
    ]


async def executions_per_second(client: Client, agents: Iterable[str], count: int) -> float:
    turns: Iterator[str] = itertools.cycle(agents)

    async def call() -> None:
        request = executions_pb2.ExecutionRequest(
            agent=next(turns), request_id=str(uuid.uuid4()), inline=BODY
        )
        answer = await client.executions.Execute(
            executions_pb2.ExecuteRequest(execution=request), timeout=CALL_TIMEOUT
        )
        assert answer.execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED, answer

    return await rate(call, count, IN_FLIGHT)

"""The client of the chaos runs loads the system, and not its record of requests that it has answered before."""

import asyncio
from types import SimpleNamespace
from typing import Any

from agentfactory.v1 import executions_pb2

from tests.chaos.load import SUCCEEDED, Ledger, constant_load, measure_capacity


class Answering:
    """Ends every execution at once."""

    async def Execute(self, request: Any, *, timeout: float) -> Any:  # noqa: N802 - as the stub names it
        return SimpleNamespace(execution=self._execution(request.execution))

    async def SubmitExecution(self, request: Any, *, timeout: float) -> Any:  # noqa: N802
        return SimpleNamespace(execution=self._execution(request.execution))

    def _execution(self, request: executions_pb2.ExecutionRequest) -> executions_pb2.Execution:
        return executions_pb2.Execution(execution_id=f"exe_{request.request_id}", state=SUCCEEDED)


async def test_no_request_id_comes_twice_in_a_run() -> None:
    ledger, clients = Ledger(), [SimpleNamespace(executions=Answering())]

    for _ in range(2):
        await measure_capacity(clients, ledger, in_flight=2, seconds=0.05)  # type: ignore[arg-type]
    for _ in range(2):
        before = len(ledger.calls)
        async with constant_load(clients, ledger, rate=1000):  # type: ignore[arg-type]
            while len(ledger.calls) < before + 10:
                await asyncio.sleep(0.001)

    ids = [call.request_id for call in ledger.calls]
    assert len(ids) > 20
    assert len(set(ids)) == len(ids)

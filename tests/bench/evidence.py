"""What evidence costs an execution: ``python -m tests.bench.evidence``. Writes build/bench/evidence.json.

Throughput at 64 in flight with the transparency log on and off, in turn on one running system. Off means that the
database's triggers announce nothing, so nothing is integrated and signed either; no setting leads there. Beside it, how
long what is recorded waits for its place while the log is on.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import asyncpg
import wasmtime

from tests.bench.engine import NOOP
from tests.bench.execute import IN_FLIGHT, WARM_UP, executor, latencies_ms, rate
from tests.bench.report import TIMES, Figure, measured, median, publish, quantile
from tests.e2e.stack import running_stack

ROUNDS: Final = 6
CALLS: Final = 1500
"""Of one round of one side."""
LOOK_EVERY: Final = 0.05
SETTLE_SECONDS: Final = 60.0
RECORDED: Final = ("receipts", "audit_entries")

TRIGGERS: Final = """
SELECT tgrelid::regclass::text AS table, tgname AS name FROM pg_trigger
WHERE tgfoid::regproc::text LIKE 'announce_%' AND tgrelid::regclass::text = ANY ($1)
"""
OLDEST: Final = "SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 FROM log_pending"


async def announce(owner: asyncpg.Connection, verb: str) -> None:
    """ENABLE or DISABLE what announces receipts and audit entries to the log."""
    triggers = await owner.fetch(TRIGGERS, list(RECORDED))
    if len(triggers) < len(RECORDED):
        raise AssertionError(f"found only {triggers}")
    for trigger in triggers:
        await owner.execute(f'ALTER TABLE {trigger["table"]} {verb} TRIGGER "{trigger["name"]}"')


async def until_integrated(owner: asyncpg.Connection) -> None:
    async with asyncio.timeout(SETTLE_SECONDS):
        while await owner.fetchval("SELECT EXISTS (SELECT FROM log_pending)"):
            await asyncio.sleep(LOOK_EVERY)


@asynccontextmanager
async def looking(owner: asyncpg.Connection, waits: list[float]) -> AsyncIterator[None]:
    """Note, again and again, how long the oldest that waits has waited."""

    async def look() -> None:
        while True:
            waits.append(await owner.fetchval(OLDEST))
            await asyncio.sleep(LOOK_EVERY)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def run() -> list[Figure]:
    on: list[float] = []
    off: list[float] = []
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "noop.wasm"
        module.write_bytes(bytes(wasmtime.wat2wasm(NOOP)))
        async with running_stack(nodes=1) as stack, stack.client() as client:
            await stack.make_agent("noop", module)
            execute = executor(client)
            await latencies_ms(execute, WARM_UP)
            await rate(execute, CALLS, IN_FLIGHT)
            owner = await asyncpg.connect(stack.database.url())
            try:
                for number in range(ROUNDS):
                    sides = ("ENABLE", "DISABLE") if number % 2 else ("DISABLE", "ENABLE")
                    for verb in sides:
                        await until_integrated(owner)
                        await announce(owner, verb)
                        if verb == "ENABLE":
                            async with looking(owner, waits):
                                on.append(await rate(execute, CALLS, IN_FLIGHT))
                        else:
                            off.append(await rate(execute, CALLS, IN_FLIGHT))
            finally:
                await owner.close()
    ratios = [one / other for one, other in zip(on, off, strict=True)]
    return [
        measured(
            f"Execute, {IN_FLIGHT} in flight, log on ÷ off, median of {ROUNDS} pairs",
            ratios,
            TIMES,
            bar="≥ 0.95",
            bar_ok=median(ratios) >= 0.95,
        ),
        measured("the same: with the log", on, "/s", beside=("without", off)),
        measured("the oldest that waits for the log, p99", [quantile(waits, 0.99) * 1e3], "ms", at_most=2000),
    ]


def main() -> int:
    started = time.monotonic()
    code = publish("evidence", asyncio.run(run()))
    print(f"took {time.monotonic() - started:.0f} s")  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())

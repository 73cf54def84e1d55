"""How long a replay takes after its command has started: ``python -m tests.bench.replay``. Writes build/bench/replay.json.

An execution of some 10 ms of computing is run once by the worker, and then again: find the worker that the
receipt names, check the material, compile, run in the jail, compare. Beside it the same on wasmtime.
"""

import asyncio
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import wasmtime
from agentfactory_engine import worker_path

from data_plane.attempt import call_context_of, guest_request
from data_plane.replay.domain import Material, PartName, SaltedBody, StepResult
from data_plane.replay.ports import ReplayEngine
from data_plane.replay.recording import PlayedCalls, free_calls
from data_plane.replay.service import replay
from data_plane.replay.wasmtime_engine import WasmtimeEngine
from data_plane.replay.workers import WorkerEngine, find_worker
from data_plane.sandbox.domain import RunResult
from shared.digests import Digest, commit_body, sha256_digest
from shared.ids import BootId, NodeId
from shared.manifest import Manifest, ModuleFile, Profile
from shared.orders import Order
from shared.receipts import AttemptIdentity, EngineIdentity, ReceiptPredicate
from tests.bench.report import Figure, measured, publish, quantile
from tests.unit.data_plane.builders import order

REPEATS: Final = 30
SECONDS: Final = 300
SALT: Final = bytes(32)
NOW: Final = datetime(2026, 1, 2, tzinfo=UTC)
ROUNDS: Final = 18_000_000
"""Of the loop below: some 10 ms."""
BUSY: Final = f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $left i32) (local $sum i64)
    (local.set $left (i32.const {ROUNDS}))
    (loop $again
      (local.set $sum (i64.xor (i64.rotl (local.get $sum) (i64.const 5)) (i64.extend_i32_u (local.get $left))))
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (i64.store (i32.const 16) (local.get $sum))
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"""


def receipt_of(made: Order, result: RunResult) -> ReceiptPredicate:
    engine = result.engine
    return ReceiptPredicate(
        installation=made.installation,
        node_id=NodeId(made.node_id),
        boot_id=BootId(made.boot_id),
        sequence=1,
        previous=None,
        order_digest=sha256_digest(b"order"),
        attempt=AttemptIdentity(
            order_id=made.id,
            execution_id=made.execution_id,
            attempt_number=made.attempt_number,
            fencing_token=made.fencing_token,
        ),
        output_commitment=commit_body(result.stdout, SALT),
        outcome=result.outcome,
        exit_code=result.exit_code,
        resources=result.resources,
        engine=EngineIdentity(
            name=engine.name, version=engine.version, config_digest=Digest(engine.config_digest)
        ),
        received_at=NOW,
        started_at=NOW,
        finished_at=NOW,
    )


async def bench() -> list[Figure]:
    module = bytes(wasmtime.wat2wasm(BUSY))
    made = replace(
        order(),
        profile=Profile.PORTABLE,
        module_digest=sha256_digest(module),
        parameters_digest=sha256_digest(b"{}"),
        input_commitment=commit_body(b"", SALT),
    )
    manifest = Manifest(
        name="bench",
        version="1.0.0",
        module=ModuleFile(file_name="bench.wasm", digest=made.module_digest, size_bytes=len(module)),
        media_type="application/octet-stream",
    )
    worker = await WorkerEngine.open(worker_path())
    request = guest_request(made, limits=made.limits, parameters=b"{}", content=b"")
    calls = PlayedCalls((), free=free_calls(call_context_of(made, made.limits)))
    first = await worker.run(module, request, calls)
    receipt = receipt_of(made, first)
    bodies = {
        PartName.INPUT: SaltedBody(content=b"", salt=SALT),
        PartName.OUTPUT: SaltedBody(content=first.stdout, salt=SALT),
    }
    material = Material(module=module, parameters=b"{}", bodies=bodies)

    async def once(second: ReplayEngine | None) -> float:
        began = time.perf_counter()
        engine = second or await find_worker(
            receipt.engine, installed=worker_path(), archive=Path("/nowhere")
        )
        replayed = await replay(made, receipt, manifest, material, engine=engine)
        took = (time.perf_counter() - began) * 1e3
        assert not [step for step in replayed.steps if step.result is StepResult.DIFFERENT], replayed.steps
        return took

    times = [await once(None) for _ in range(REPEATS)]
    others = [await once(WasmtimeEngine.open()) for _ in range(5)]
    ran = first.resources.cpu.total_seconds() * 1e3
    return [
        measured(
            "replay of a 10 ms execution after start, p50",
            [quantile(times, 0.5)],
            "ms",
            beside=("CPU time of the guest", [ran]),
            at_most=100,
        ),
        measured("replay of a 10 ms execution after start, p95", [quantile(times, 0.95)], "ms"),
        measured("the same on wasmtime, p50", [quantile(others, 0.5)], "ms"),
    ]


def main() -> int:
    return publish("replay", asyncio.run(asyncio.wait_for(bench(), SECONDS)))


if __name__ == "__main__":
    sys.exit(main())

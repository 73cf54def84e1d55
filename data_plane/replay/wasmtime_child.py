"""The child process of a replay on wasmtime: reads one job, runs it, asks its parent for host calls, tells.

Started with an empty environment; gives up what it can before it reads a byte of the module. It is no jail:
what is promised is in docs/replay.md.
"""

import base64
import json
import resource
import struct
import sys
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Final

import wasmtime

from data_plane.replay.preview1 import GuestExit, LimitPassed, Preview1
from data_plane.replay.preview1_calls import I32, SIGNATURES, call
from data_plane.sandbox.domain import MAX_REQUEST_BYTES, STACK_BYTES, RunRequest
from shared.limits import Limits
from shared.manifest import Profile
from shared.outcomes import LimitName

LENGTH: Final = struct.Struct("<IB")
JOB, MODULE, CALL, REPLY, OUTCOME = range(5)
MAX_FRAME_BYTES: Final = 96 * 1024 * 1024
_WASI: Final = "wasi_snapshot_preview1"
_MAX_FILES: Final = 64
_ADDRESS_SPACE_BYTES: Final = 3 * 1024 * 1024 * 1024
"""Beside the guest's own memory: interpreter, compiler and compiled code."""
_UNBOUNDED_TABLE_ELEMENTS: Final = 100_000
_TOO_LARGE: Final = b'{"error":{"message":"a request has at most 524288 bytes","reason":"REQUEST_TOO_LARGE"}}'
TRAPS: Final = {
    "STACK_OVERFLOW": "StackOverflow",
    "MEMORY_OUT_OF_BOUNDS": "HeapAccessOutOfBounds",
    "HEAP_MISALIGNED": "HeapMisaligned",
    "TABLE_OUT_OF_BOUNDS": "TableAccessOutOfBounds",
    "INDIRECT_CALL_TO_NULL": "IndirectCallToNull",
    "BAD_SIGNATURE": "BadSignature",
    "INTEGER_OVERFLOW": "IntegerOverflow",
    "INTEGER_DIVISION_BY_ZERO": "IntegerDivisionByZero",
    "BAD_CONVERSION_TO_INTEGER": "BadConversionToInteger",
    "UNREACHABLE": "UnreachableCodeReached",
}
"""This engine's traps by the names that receipts have for them."""


class HostCallFault(Exception):  # noqa: N818 - an outcome
    """`agentfactory.call` was given a range that is not in the memory."""


def config() -> wasmtime.Config:
    """Return the features that agents have, and nothing by which engines may differ."""
    made = wasmtime.Config()
    made.cranelift_nan_canonicalization = True
    made.wasm_relaxed_simd = False
    made.wasm_threads = False
    made.wasm_memory64 = False
    made.wasm_multi_memory = False
    made.wasm_exceptions = False
    made.wasm_tail_call = False
    made.max_wasm_stack = STACK_BYTES
    made.memory_init_cow = False  # it would want a file
    made.memory_reservation = 0
    made.memory_reservation_for_growth = 16 * 1024 * 1024
    made.parallel_compilation = False
    return made


class Guest:
    """One run: the module, its WASI and its host calls."""

    def __init__(self, request: RunRequest, pipe: "Pipe") -> None:
        self._limits = request.limits
        self._pipe = pipe
        self.wasi = Preview1(request)
        self.calls = 0
        self.call_bytes = 0
        self.peak_memory_bytes = 0
        self._kept: tuple[bytes, bytes] | None = None
        self._store: wasmtime.Store | None = None

    def run(self, module: bytes) -> None:
        """Run `_start`; how it ended is what it raises."""
        engine = wasmtime.Engine(config())
        store = wasmtime.Store(engine)
        elements = min(self._limits.table_elements, _UNBOUNDED_TABLE_ELEMENTS)
        store.set_limits(memory_size=self._limits.memory_bytes, table_elements=elements)
        linker = wasmtime.Linker(engine)
        self._define(linker)
        instance = linker.instantiate(store, wasmtime.Module(engine, module))
        start = instance.exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        memory = instance.exports(store)["memory"]
        assert isinstance(memory, wasmtime.Memory)
        try:
            start(store)
        finally:
            self.peak_memory_bytes = memory.data_len(store)

    def _define(self, linker: wasmtime.Linker) -> None:
        i32, i64 = wasmtime.ValType.i32(), wasmtime.ValType.i64()
        for name, types in SIGNATURES.items():
            kinds = [i32 if kind == I32 else i64 for kind in types]
            results = [] if name == "proc_exit" else [i32]
            linker.define_func(
                _WASI, name, wasmtime.FuncType(kinds, results), self._wasi_call(name), access_caller=True
            )
        linker.define_func(
            "agentfactory",
            "call",
            wasmtime.FuncType([i32] * 4, [i32]),
            self._host_call,
            access_caller=True,
        )

    def _wasi_call(self, name: str) -> Any:
        def answer(caller: wasmtime.Caller, *arguments: int) -> int | None:
            errno = call(self.wasi, name, _memory(caller), arguments)
            return None if name == "proc_exit" else errno

        return answer

    def _host_call(self, caller: wasmtime.Caller, *arguments: int) -> int:
        at, size, to, cap = (value & 0xFFFFFFFF for value in arguments)
        memory = _memory(caller)
        if at + size > len(memory) or to + cap > len(memory):
            raise HostCallFault
        request = bytes(memory[at : at + size])
        kept, self._kept = self._kept, None
        response = kept[1] if kept is not None and kept[0] == request else self._ask(request, len(memory))
        if len(response) <= cap:
            memory[to : to + len(response)] = response
        elif size <= MAX_REQUEST_BYTES:
            self._kept = (request, response)
        return len(response)

    def _ask(self, request: bytes, memory_bytes: int) -> bytes:
        if self.calls >= self._limits.host_calls:
            raise LimitPassed(LimitName.HOST_CALLS)
        self.calls += 1
        if len(request) > MAX_REQUEST_BYTES:
            return _TOO_LARGE
        self._count(len(request))
        used = asdict(self.wasi.used) | {
            "host_calls": self.calls,
            "host_call_bytes": self.call_bytes,
            "peak_memory_bytes": memory_bytes,
        }
        self._pipe.send(
            CALL, json.dumps({"used": used, "request": base64.b64encode(request).decode()}).encode()
        )
        reply = json.loads(self._pipe.receive(REPLY))
        response = base64.b64decode(reply["response"])
        self._count(len(response))
        self.wasi.write_log(base64.b64decode(reply["log"]))
        return response

    def _count(self, size: int) -> None:
        if self.call_bytes + size > self._limits.host_call_bytes:
            raise LimitPassed(LimitName.HOST_CALL_BYTES)
        self.call_bytes += size


def _memory(caller: wasmtime.Caller) -> memoryview:
    memory = caller["memory"]
    assert isinstance(memory, wasmtime.Memory)
    return memoryview(memory.get_buffer_ptr(caller)).cast("B")


class Pipe:
    """Frames to and from the parent."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read, self._write = read, write

    def send(self, kind: int, payload: bytes) -> None:
        """Send one frame."""
        self._write.write(LENGTH.pack(len(payload), kind) + payload)
        self._write.flush()

    def receive(self, wanted: int) -> bytes:
        """Return the payload of the next frame, which has to be of this kind."""
        size, kind = LENGTH.unpack(self._exactly(LENGTH.size))
        if kind != wanted or size > MAX_FRAME_BYTES:
            raise ValueError(f"frame {kind} of {size} bytes where {wanted} was due")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = self._read.read(size)
        if len(data) != size:
            raise EOFError("the parent is gone")
        return data


def outcome_of(guest: Guest, module: bytes) -> dict[str, Any]:
    """Run and return how it ended, in the words of receipts."""
    try:
        guest.run(module)
    except GuestExit as ended:
        return {"outcome": "failed" if ended.code else "succeeded", "exit_code": ended.code}
    except LimitPassed as passed:
        return {"outcome": "killed", "limit": passed.limit}
    except HostCallFault:
        message = "agentfactory.call was given a range that is not in the memory"
        return {"outcome": "trapped", "trap": {"name": "HostCallFault", "message": message}}
    except wasmtime.Trap as trap:
        return _trapped(trap)
    except wasmtime.WasmtimeError as error:
        # The engine's own: it takes no such module, or got no memory. Says nothing about the guest.
        return {"outcome": "", "message": str(error)[:256]}
    return {"outcome": "succeeded", "exit_code": 0}


def _trapped(trap: wasmtime.Trap) -> dict[str, Any]:
    code = trap.trap_code
    name = "EngineError" if code is None else TRAPS.get(code.name, code.name)
    if name == "StackOverflow":
        return {"outcome": "killed", "limit": LimitName.STACK_BYTES}
    return {"outcome": "trapped", "trap": {"name": name, "message": trap.message[:256]}}


def bound_process(cpu_seconds: int, memory_bytes: int) -> None:
    """Give up what a run does not need: files, core dumps, more time and memory than the job says."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_FILES, _MAX_FILES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    address_space = _ADDRESS_SPACE_BYTES + 2 * memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def main() -> None:
    """Serve one job on standard input and output."""
    pipe = Pipe(sys.stdin.buffer, sys.stdout.buffer)
    job = json.loads(pipe.receive(JOB))
    bound_process(job["cpu_seconds"], job["limits"]["memory_bytes"])
    module = pipe.receive(MODULE)
    request = RunRequest(
        args=tuple(job["args"]),
        env=tuple((name, value) for name, value in job["env"]),
        stdin=base64.b64decode(job["stdin"]),
        limits=Limits(**job["limits"]),
        profile=Profile(job["profile"]),
        seed=bytes.fromhex(job["seed"]),
        clock=datetime.fromisoformat(job["clock"]),
    )
    guest = Guest(request, pipe)
    started = time.monotonic()
    ended = outcome_of(guest, module)
    used = guest.wasi.used
    told = {
        **ended,
        "stdout": base64.b64encode(guest.wasi.stdout).decode(),
        "stderr": base64.b64encode(guest.wasi.stderr).decode(),
        "used": asdict(used)
        | {
            "host_calls": guest.calls,
            "host_call_bytes": guest.call_bytes,
            "peak_memory_bytes": guest.peak_memory_bytes,
        },
        "wall_us": timedelta(seconds=time.monotonic() - started) // timedelta(microseconds=1),
    }
    pipe.send(OUTCOME, json.dumps(told).encode())


if __name__ == "__main__":
    main()

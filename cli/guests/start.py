"""Starts a runtime with an agent's files and saves it as a module whose `_start` is one execution."""

import contextlib
import ctypes
import json
import os
import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import wasmtime

from cli.guests import wasm, written
from cli.guests.build_wasi import BuildWasi, Exited, Phase
from cli.guests.frozen import HINT, WORDS, Frozen
from cli.guests.project import Language
from data_plane.replay.preview1_calls import I32, SIGNATURES
from shared.errors import AgentBuildError

PREPARE: Final = "agentfactory_prepare"
RUN: Final = "agentfactory_run"
STACK: Final = "agentfactory_stack"
MAX_START_MEMORY_BYTES: Final = 256 * 1024 * 1024
START_FUEL: Final = {Language.PYTHON: 30_000_000_000, Language.JAVASCRIPT: 5_000_000_000}
"""Instructions of a start, which must end. Python alone takes 3 thousand million, with many imports 9."""
EXAMPLE_FUEL: Final = 2_000_000_000
"""Instructions of the run that shows which pages runs write; it need not end."""
MAX_REQUEST_BYTES: Final = 512 * 1024
_PLACE: Final = re.compile(r"\bat (?:.*\()?([\w./-]+\.js:\d+)")
"""In QuickJS's stacks: the innermost is the first."""
_WASI: Final = "wasi_snapshot_preview1"


@dataclass(slots=True)
class Told:
    """What the runtime said while it started."""

    schemas: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A saved start: the module, and the schemas that the agent's annotations say."""

    module: bytes
    schemas: Mapping[str, Any]
    log: str


class Start:
    """One start of one runtime at build time."""

    def __init__(self, language: Language, runtime: bytes, files: Mapping[str, bytes], cache: Path) -> None:
        self._fuel = START_FUEL[language]
        self._runtime = wasm.with_globals_exported(runtime)
        self._wasi = BuildWasi(files)
        self._cache = cache
        self._told = Told()

    def save(self, example: bytes) -> Started:
        """Run the start to its end and return it saved, and with it which pages a run of `example` writes.

        Raises:
            AgentBuildError: The agent cannot be loaded, or something would be frozen into it; says what.
        """
        store, exports = self.run()
        memory = exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        content = bytearray(memory.read(store))
        values = {
            index: _global(exports[f"{wasm.GLOBAL_EXPORT}{index}"], store)
            for index in wasm.mutable_globals(wasm.split(self._runtime))
        }
        _forget_stack(content, _called(exports, STACK, store), values[0])
        log, saved = self._log(), bytes(content)
        module = wasm.saved(
            self._runtime,
            memory=saved,
            globals_=values,
            entry=RUN,
            kept=("memory",),
            written=self._written_by(example, saved, store, exports),
        )
        return Started(module=module, schemas=self._told.schemas, log=log)

    def _written_by(self, example: bytes, saved: bytes, store: wasmtime.Store, exports: Any) -> list[int]:
        """Return the pages that a run writes, whatever becomes of it: its input may be wrong for it."""
        if not written.can_tell():
            return []
        address = ctypes.addressof(exports["memory"].data_ptr(store).contents)
        written.begin(address, saved)
        store.set_fuel(EXAMPLE_FUEL)
        self._wasi.begin_example(example)
        # Out of fuel, at its end, or wrong: the same each time.
        with contextlib.suppress(Exited, wasmtime.Trap, struct.error, ValueError, IndexError):
            _called(exports, RUN, store)
        return written.pages(address, len(saved))

    def run(self) -> tuple[wasmtime.Store, Any]:
        """Run the start to its end, and return what it left; raises as `save`."""
        engine = wasmtime.Engine(_config())
        store = wasmtime.Store(engine)
        store.set_limits(memory_size=MAX_START_MEMORY_BYTES)
        store.set_fuel(self._fuel)
        linker = wasmtime.Linker(engine)
        self._define(linker)
        instance = linker.instantiate(store, _compiled(engine, self._runtime, self._cache))
        exports = instance.exports(store)
        self._prepare(store, exports)
        return store, exports

    def _prepare(self, store: wasmtime.Store, exports: Any) -> None:
        try:
            _called(exports, "_initialize", store)
            _called(exports, PREPARE, store)
        except Exited as ended:
            raise self._error(f"the runtime ended with code {ended.code}") from ended
        except wasmtime.Trap as trap:
            if trap.trap_code is wasmtime.TrapCode.OUT_OF_FUEL:
                raise self._error("loading the agent does not come to an end") from trap
            raise self._error(f"the runtime trapped: {trap.message.splitlines()[0][:200]}") from trap
        except (struct.error, ValueError, IndexError) as error:
            raise self._error("the runtime gave a call a range that is not in its memory") from error
        if self._told.refusal or self._wasi.frozen:
            raise self._error("")

    def _error(self, how: str) -> AgentBuildError:
        for what in Frozen:
            if what in self._wasi.frozen:
                return AgentBuildError(self._told.refusal or WORDS[what], hint=self._told.hint or HINT)
        if self._told.refusal:
            return AgentBuildError(self._told.refusal, hint=self._told.hint or None)
        lines = self._log().strip().splitlines()
        where = next(filter(None, map(_PLACE.search, lines)), None)
        said = " · ".join(line.strip() for line in lines[-1:]) or how
        return AgentBuildError(f"{where[1]}: {said}" if where else said)

    def _log(self) -> str:
        return self._wasi.log.decode("utf-8", "replace")

    def _define(self, linker: wasmtime.Linker) -> None:
        i32, i64 = wasmtime.ValType.i32(), wasmtime.ValType.i64()
        for name, types in SIGNATURES.items():
            results = [] if name == "proc_exit" else [i32]
            kind = wasmtime.FuncType([i32 if each == I32 else i64 for each in types], results)
            linker.define_func(_WASI, name, kind, self._wasi_call(name), access_caller=True)
        linker.define_func(
            "agentfactory", "call", wasmtime.FuncType([i32] * 4, [i32]), self._host_call, access_caller=True
        )

    def _wasi_call(self, name: str) -> Any:
        def answer(caller: wasmtime.Caller, *arguments: int) -> int:
            return self._wasi.call(name, _memory(caller), arguments)

        return answer

    def _host_call(self, caller: wasmtime.Caller, *arguments: int) -> int:
        at, size, to, cap = (value & 0xFFFFFFFF for value in arguments)
        memory = _memory(caller)
        answer = json.dumps(self._answer(bytes(memory[at : at + min(size, MAX_REQUEST_BYTES)]))).encode()
        if len(answer) <= cap:
            memory[to : to + len(answer)] = answer
        return len(answer)

    def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(request)
            method, params = asked["method"], asked.get("params", {})
            return (
                self._example(method) if self._wasi.phase is Phase.EXAMPLE else self._told_by(method, params)
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            return {"error": {"reason": "INVALID_REQUEST", "message": "no request"}}

    def _example(self, method: str) -> dict[str, Any]:
        """Answer a run that is no start any more: what it says of the build counts for nothing."""
        return {"ok": {}} if method == "log" else _denied()

    def _told_by(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        match method:
            case "build.phase":
                self._wasi.phase = Phase(params["phase"])
            case "build.schemas":
                self._told.schemas = {name: params[name] for name in ("input", "output") if name in params}
            case "build.refuse":
                self._told.refusal = self._told.refusal or str(params["message"])[:2000]
                self._told.hint = self._told.hint or str(params.get("hint", ""))[:500]
            case _:
                self._wasi.frozen.add(Frozen.HOST_CALL)
                return _denied()
        return {"ok": {}}


def _denied() -> dict[str, Any]:
    return {"error": {"reason": "NOT_GRANTED", "message": WORDS[Frozen.HOST_CALL]}}


def _config() -> wasmtime.Config:
    made = wasmtime.Config()
    made.consume_fuel = True
    made.wasm_threads = False
    made.memory_init_cow = False
    return made


def _compiled(engine: wasmtime.Engine, module: bytes, cache: Path) -> wasmtime.Module:
    """Compile a runtime once; it is taken from the cache afterwards, which belongs to whoever builds."""
    kept = cache / f"start-{version('wasmtime')}-{sha256(module).hexdigest()[:32]}.cwasm"
    if kept.exists():
        try:
            return wasmtime.Module.deserialize_file(engine, str(kept))
        except wasmtime.WasmtimeError:
            kept.unlink(missing_ok=True)
    compiled = wasmtime.Module(engine, module)
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
        file.write(compiled.serialize())
    os.replace(file.name, kept)  # noqa: PTH105 - the same as Path.replace
    return compiled


def _forget_stack(memory: bytearray, low: int, pointer: int) -> None:
    """Clear what calls that returned have left below the stack's pointer."""
    if not 0 <= low <= pointer <= len(memory):
        raise AgentBuildError(f"the runtime's stack is not where it says: {low} to {pointer}")
    memory[low:pointer] = bytes(pointer - low)


def _called(exports: Any, name: str, store: wasmtime.Store) -> int:
    function = exports[name]
    assert isinstance(function, wasmtime.Func)
    answer = function(store)
    return answer if isinstance(answer, int) else 0


def _global(value: Any, store: wasmtime.Store) -> int:
    assert isinstance(value, wasmtime.Global)
    found = value.value(store)
    assert isinstance(found, int)
    return found


def _memory(caller: wasmtime.Caller) -> memoryview:
    memory = caller["memory"]
    assert isinstance(memory, wasmtime.Memory)
    return memoryview(memory.get_buffer_ptr(caller)).cast("B")

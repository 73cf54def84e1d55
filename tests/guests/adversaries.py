"""Which guest attacks which limit, and how its run must end. The source of docs/security/limits.md and of its tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import wasmtime

from data_plane.sandbox.domain import DEFAULT_COMPILE_LIMITS, CompileLimits
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome

FOLDER: Final = Path(__file__).resolve().parent / "limits"
KIB: Final = 1024
MIB: Final = 1024 * KIB
_MEMORY: Final = '(memory (export "memory") 1)'
_START: Final = '(func (export "_start"))'


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A guest of ``limits/`` that passes one limit of a run."""

    guest: str
    limit: LimitName
    granted: dict[str, Any] = field(default_factory=dict)
    """Fields of ``Limits`` that differ from the default."""
    profile: Profile = Profile.DEFAULT
    outcome: Outcome = Outcome.KILLED
    """TRAPPED where the guest is only refused: then no limit is named."""

    @property
    def module(self) -> bytes:
        return (FOLDER / f"{self.guest}.wasm").read_bytes()

    @property
    def why(self) -> str:
        """The first line of its source."""
        first, _, _ = (FOLDER / f"{self.guest}.wat").read_text().partition("\n")
        return first.removeprefix(";; ")


def _attacks(limit: LimitName, granted: dict[str, Any], *guests: str, **changes: Any) -> tuple[Attack, ...]:
    return tuple(Attack(guest=guest, limit=limit, granted=granted, **changes) for guest in guests)


_LOOPS: Final = ("loop", "loop_in_start", "loop_of_calls", "loop_of_fills", "loop_of_copies", "loop_of_roots")
_BUSY: Final = (*_LOOPS, "loop_of_empty_growths", "loop_of_clocks", "loop_of_yields")
_DEAR: Final = (
    "loop_of_table_fills",
    "loop_of_polls",
    "loop_of_deep_paths",
    "loop_of_divisions",
    "random_by_bytes",
)
_DEEP: Final = ("recurse", "recurse_by_two", "recurse_through_a_table", "recurse_in_start")
_LONG: Final = 60_000
_SHORT: Final = 100
_FILES: Final = {"scratch_bytes": MIB, "scratch_inodes": 100}

ATTACKS: Final = (
    *_attacks(LimitName.WALL_MS, {"wall_ms": _SHORT, "cpu_ms": _LONG}, *_BUSY, "sleep", "many_sleeps"),
    *_attacks(LimitName.CPU_MS, {"wall_ms": _LONG, "cpu_ms": _SHORT}, *_BUSY),
    *_attacks(
        LimitName.FUEL,
        {"fuel": 20_000_000, "wall_ms": _LONG, "cpu_ms": _LONG},
        *_BUSY, *_DEAR, profile=Profile.DETERMINISTIC,
    ),
    *_attacks(LimitName.FUEL, {"fuel": 10_000}, *_DEEP, profile=Profile.DETERMINISTIC),
    *_attacks(LimitName.FUEL, {"fuel": 20_000_000}, "loop", "loop_of_roots", profile=Profile.PORTABLE),
    *_attacks(
        LimitName.MEMORY_BYTES,
        {"memory_bytes": 32 * MIB},
        "grow_at_once", "grow_by_pages", "grow_in_start", "begin_large", "begin_with_all",
    ),
    *_attacks(LimitName.TABLE_ELEMENTS, {}, "large_table", "large_reference_table", "many_tables"),
    *_attacks(LimitName.TABLE_ELEMENTS, {}, "table_grows", outcome=Outcome.TRAPPED),
    *_attacks(
        LimitName.STACK_BYTES,
        {},
        "recurse", "recurse_by_two", "recurse_through_a_table", "recurse_with_large_frames", "recurse_in_start",
        "recurse_into_the_host",
    ),
    *_attacks(
        LimitName.OUTPUT_BYTES,
        {"output_bytes": 100_000},
        "flood_output", "flood_output_by_bytes", "flood_output_at_once", "flood_output_in_parts",
    ),
    *_attacks(LimitName.LOG_BYTES, {"log_bytes": 10_000}, "flood_log", "flood_log_at_once"),
    *_attacks(LimitName.LOG_LINES, {"log_lines": 1_000}, "flood_lines", "flood_lines_at_once"),
    *_attacks(LimitName.RANDOM_BYTES, {"random_bytes": 100_000}, "random_by_bytes"),
    *_attacks(LimitName.RANDOM_BYTES, {}, "random_at_once"),
    *_attacks(LimitName.OPEN_FILES, {"open_files": 8, "scratch_bytes": MIB, "scratch_inodes": 100}, "open_directories", "open_new_files"),
    *_attacks(
        LimitName.SCRATCH_BYTES,
        _FILES,
        "fill_a_file", "fill_by_appending", "fill_by_holes", "fill_and_remove", "set_a_large_size",
        "allocate_a_large_file",
    ),
    *_attacks(
        LimitName.SCRATCH_INODES,
        {"scratch_bytes": MIB, "scratch_inodes": 100},
        "make_files", "make_directories", "make_symlinks", "make_hard_links", "make_and_remove_files",
    ),
    *_attacks(LimitName.HOST_CALLS, {"host_calls": 100}, "call_forever", "call_and_never_take"),
    *_attacks(LimitName.HOST_CALL_BYTES, {"host_call_bytes": MIB}, "call_with_large_requests"),
    *_attacks(LimitName.HOST_CALL_MS, {"host_call_ms": 20, "host_calls": 100_000}, "call_forever"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleAttack:
    """A module that passes a limit before it runs; it is made when it is needed, for most of them are large."""

    name: str
    limit: str
    why: str
    make: Callable[[], str]
    """Its text."""
    limits: CompileLimits = DEFAULT_COMPILE_LIMITS
    says: str
    """What the refusal matches."""

    @property
    def module(self) -> bytes:
        return bytes(wasmtime.wat2wasm(self.make()))


def _module(*parts: str) -> str:
    return f"(module {_MEMORY} {_START} {' '.join(parts)})"


def many_variables(variables: int = 1000, loops: int = 200) -> str:
    """Return 58 kB that take the optimiser some 100 MiB: each loop may change each of many variables."""
    change = "".join(
        f"(local.set {index + 1} (i64.add (local.get {(index * 7 + 1) % variables + 1}) (local.get {index + 1})))"
        for index in range(variables)
    )
    leave = "(br_if 0 (local.get 0))"
    body = "".join(f"(loop {leave} {change if index % 40 == 0 else ''} {leave})" for index in range(loops))
    use = "".join(
        f"(local.set 1 (i64.xor (local.get 1) (local.get {index + 1})))" for index in range(variables)
    )
    return _module(f"(func (param i32) (result i64) (local {'i64 ' * variables}) {body} {use} (local.get 1))")


MODULE_ATTACKS: Final = (
    ModuleAttack(
        name="large_data", limit="module_bytes", why="Carries 128 KiB of data.",
        make=lambda: _module(f'(data (i32.const 0) "{"x" * 65536}")' * 2),
        limits=CompileLimits(module_bytes=100_000), says="more than 100000 bytes",
    ),
    ModuleAttack(
        name="many_functions", limit="functions", why="Has 100,001 functions that do nothing.",
        make=lambda: _module("(func)" * 100_000), says="100001 functions, the limit functions is 100000",
    ),
    ModuleAttack(
        name="many_locals", limit="locals", why="Has a function of 10,001 locals.",
        make=lambda: _module(f"(func (local {'i64 ' * 10_001}))"),
        says="10001 locals, the limit locals is 10000",
    ),
    ModuleAttack(
        name="many_globals", limit="globals", why="Has 10,001 globals.",
        make=lambda: _module("(global i32 (i32.const 0))" * 10_001),
        says="10001 globals, the limit globals is 10000",
    ),
    ModuleAttack(
        name="too_many_tables", limit="tables", why="Has 17 tables.",
        make=lambda: _module("(table 1 funcref)" * 17), says="17 tables, the limit tables is 16",
    ),
    ModuleAttack(
        name="many_imports", limit="imports", why="Imports one call 257 times.",
        make=lambda: "(module {} {} {})".format(
            '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))' * 257, _MEMORY, _START
        ),
        says="257 imports, the bound is 256",
    ),
    ModuleAttack(
        name="many_variables_for_long", limit="compile_wall", limits=CompileLimits(wall=timedelta(milliseconds=50)),
        why="Each of 200 loops may change each of 1,000 variables: the optimiser takes long.",
        make=many_variables, says=r"does not compile within 0:00:00\.05",
    ),
    ModuleAttack(
        name="many_variables_for_cpu", limit="compile_cpu", limits=CompileLimits(cpu=timedelta(seconds=1)),
        why="The same with 2,000 variables and 2,000 loops: seconds of CPU time.",
        make=lambda: many_variables(2000, 2000), says="of CPU time",
    ),
    ModuleAttack(
        name="many_variables_in_memory", limit="compile_memory", limits=CompileLimits(memory_bytes=64 * MIB),
        why="The same with 1,000 variables: the optimiser takes some 100 MiB.",
        make=many_variables, says="bytes of memory",
    ),
    ModuleAttack(
        name="expands", limit="artifact_bytes", limits=CompileLimits(artifact_bytes=100_000),
        why="Small code that becomes large: 4,000 calls through a table, each checked.",
        make=lambda: _module(
            "(type $t (func)) (table 1 1 funcref) (func " + "(call_indirect (type $t) (i32.const 0))" * 4000 + ")"
        ),
        says="artifact has",
    ),
)  # fmt: skip

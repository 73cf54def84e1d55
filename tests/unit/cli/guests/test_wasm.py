"""Rewriting a module to what it is after its start."""

import agentfactory_engine
import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.guests import wasm
from shared.errors import ModuleInvalidError

COUNTER = """
(module
  (memory (export "memory") 2 10)
  (global $sp (mut i32) (i32.const 1000))
  (global $fixed i32 (i32.const 11))
  (func (export "_initialize"))
  (func (export "prepare")
    (i32.store (i32.const 70000) (i32.const 41))
    (i32.store8 (i32.const 8) (i32.const 7))
    (global.set $sp (i32.const -5)))
  (func (export "run")
    (i32.store (i32.const 70000) (i32.add (i32.load (i32.const 70000)) (i32.const 1))))
  (func (export "sp") (result i32) (global.get $sp))
  (data (i32.const 8) "old"))
"""


def started() -> tuple[bytes, bytes, int]:
    module = wasm.with_globals_exported(bytes(wasmtime.wat2wasm(COUNTER)))
    store = wasmtime.Store()
    exports = wasmtime.Instance(store, wasmtime.Module(store.engine, module), []).exports(store)
    exports["prepare"](store)
    return module, bytes(exports["memory"].read(store)), exports[f"{wasm.GLOBAL_EXPORT}0"].value(store)


def test_a_saved_module_goes_on_where_its_start_ended() -> None:
    module, memory, pointer = started()
    assert pointer == -5
    made = wasm.saved(module, memory=memory, globals_={0: pointer}, entry="run", kept=("memory", "sp"))
    store = wasmtime.Store()
    exports = wasmtime.Instance(store, wasmtime.Module(store.engine, made), []).exports(store)
    assert exports["sp"](store) == -5
    assert {each.name for each in wasmtime.Module(store.engine, made).exports} == {"memory", "sp", "_start"}
    exports["_start"](store)
    assert exports["memory"].read(store, 70000, 70001) == bytes([42])
    assert exports["memory"].read(store, 8, 11) == b"\7ld"


def test_memory_that_grew_is_as_large_afterwards() -> None:
    module, memory, pointer = started()
    grown = memory + bytes(wasm.PAGE_BYTES)
    made = wasm.saved(module, memory=grown, globals_={0: pointer}, entry="run", kept=("memory",))
    store = wasmtime.Store()
    exports = wasmtime.Instance(store, wasmtime.Module(store.engine, made), []).exports(store)
    assert exports["memory"].size(store) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('(module (memory 1) (func $f) (start $f) (func (export "run")))', "start function"),
        ('(module (memory 1) (memory 1) (func (export "run")))', "not one memory"),
    ],
)
def test_what_a_saved_start_cannot_stand_for_is_refused(text: str, words: str) -> None:
    module = bytes(wasmtime.wat2wasm(text))
    with pytest.raises(ModuleInvalidError, match=words):
        wasm.saved(module, memory=bytes(wasm.PAGE_BYTES), globals_={}, entry="run", kept=())


def test_a_global_that_cannot_be_saved_is_refused() -> None:
    module = bytes(wasmtime.wat2wasm("(module (global (mut i64) (i64.const 1)))"))
    with pytest.raises(ModuleInvalidError, match="no i32"):
        wasm.with_globals_exported(module)


def test_a_module_that_ends_early_is_refused() -> None:
    module = bytes(wasmtime.wat2wasm(COUNTER))
    for size in range(8, len(module)):
        try:
            wasm.with_globals_exported(module[:size])
        except ModuleInvalidError:
            continue


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_unsigned_numbers_are_read_as_they_were_written(value: int) -> None:
    assert wasm.Reader(wasm.unsigned(value)).number() == value


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, wasm.PAGE_BYTES - 64), st.binary(max_size=64)), max_size=8))
def test_every_bit_of_memory_is_saved(writes: list[tuple[int, bytes]]) -> None:
    memory = bytearray(wasm.PAGE_BYTES)
    for at, data in writes:
        memory[at : at + len(data)] = data
    back = bytearray(len(memory))
    for at, data in wasm._runs(bytes(memory)):
        assert data[0]
        assert data[-1]
        back[at : at + len(data)] = data
    assert back == memory


def test_a_module_that_is_split_and_joined_is_the_same() -> None:
    module = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "run")))'))
    assert wasm.join(wasm.split(module)) == module


def test_the_memory_before_a_run_is_found_without_the_rest() -> None:
    module = bytes(wasmtime.wat2wasm(COUNTER))
    types = "".join(f"(func (param {'i64 ' * count}))" for count in range(40))
    many = bytes(wasmtime.wat2wasm(f"(module (memory 300) {types})"))
    assert wasm.minimum_memory_bytes(many) == 300 * wasm.PAGE_BYTES
    assert wasm.minimum_memory_bytes(module) == 2 * wasm.PAGE_BYTES
    with pytest.raises(ModuleInvalidError):
        wasm.minimum_memory_bytes(module[:12])
    with pytest.raises(ModuleInvalidError):
        wasm.minimum_memory_bytes(bytes(wasmtime.wat2wasm("(module (func))")))


def test_the_pages_that_runs_write_are_said_in_a_section_that_the_engine_takes() -> None:
    module, memory, pointer = started()
    options = {"memory": memory, "globals_": {0: pointer}, "entry": "run", "kept": ("memory",)}
    said = wasm.saved(module, **options, written=[2, 17, 18])
    assert b"\x12agentfactory.pages\2\0\0\0\x11\0\0\0\x12\0\0\0" in said
    agentfactory_engine.validate_module(said)
    assert b"agentfactory.pages" not in wasm.saved(module, **options)
    with pytest.raises(agentfactory_engine.InvalidModuleError, match="the memory begins with 131072"):
        agentfactory_engine.validate_module(wasm.saved(module, **options, written=[32]))

"""The common job: 1 kB of JSON in, a small module over it, 1 kB of JSON out. The same bytes run on every peer.

Agent Factory runs the module in its jailed worker. The peers run it in their worker process with wasmtime-py, the
way somebody would who writes the agent into a task of a queue: compiled once, a fresh store and instance for each
job. That favours them: no second process, no pipe, no jail, no limit.
"""

import itertools
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import wasmtime

BODY_BYTES = 1024
TEXT = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func $require_ok (param i32) (if (local.get 0) (then unreachable)))
  (func (export "_start") (local $length i32) (local $at i32) (local $byte i32)
    (i32.store (i32.const 0) (i32.const 4096))
    (loop $more
      (i32.store (i32.const 4) (i32.const 65536))
      (call $require_ok (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $length (i32.load (i32.const 8)))
      (if (local.get $length) (then
        (local.set $at (i32.const 4096))
        (loop $next
          (local.set $byte (i32.load8_u (local.get $at)))
          (if (i32.lt_u (i32.sub (local.get $byte) (i32.const 97)) (i32.const 26))
            (then (i32.store8 (local.get $at) (i32.sub (local.get $byte) (i32.const 32)))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $at) (i32.add (i32.const 4096) (local.get $length)))))
        (i32.store (i32.const 4) (local.get $length))
        (call $require_ok (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $require_ok (i32.ne (i32.load (i32.const 8)) (local.get $length)))
        (br $more))))))
"""
"""Copies standard input to standard output with the letters a-z made capital, so that a result proves a run."""


class WrongResultError(AssertionError):
    """A peer answered something else than the module writes: none of its figures counts."""


def module_bytes() -> bytes:
    return bytes(wasmtime.wat2wasm(TEXT))


def bodies() -> Iterator[bytes]:
    """Return inputs without end, no two of them alike."""
    for number in itertools.count():
        head = b'{"id": %d, "text": "' % number
        yield head + b"x" * (BODY_BYTES - len(head) - 2) + b'"}'


def number_of(body: bytes) -> int:
    """Return how many bodies came before this one."""
    number: int = json.loads(body)["id"]
    return number


def require_right(body: bytes, output: bytes) -> None:
    """Raise WrongResultError unless the output is what the module makes of the body."""
    if output != body.upper():
        raise WrongResultError(f"for {body[:40]!r} came {output[:80]!r}")


class Guest:
    """Runs the module in this process. Threads may share it."""

    def __init__(self) -> None:
        self._engine = wasmtime.Engine()
        self._module = wasmtime.Module(self._engine, TEXT)
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._threads = threading.local()

    def run(self, body: bytes) -> bytes:
        """Return what the module writes for a body."""
        folder = self._folder()
        stdin, stdout = folder / "in", folder / "out"
        stdin.write_bytes(body)
        store = wasmtime.Store(self._engine)
        wasi = wasmtime.WasiConfig()
        wasi.stdin_file = stdin
        wasi.stdout_file = str(stdout)
        store.set_wasi(wasi)
        start = self._linker.instantiate(store, self._module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
        store.close()
        return stdout.read_bytes()

    def _folder(self) -> Path:
        """Return where this thread hands bytes over: wasmtime-py takes files, these lie in memory."""
        folder: Path | None = getattr(self._threads, "folder", None)
        if folder is None:
            memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            holder = tempfile.TemporaryDirectory(prefix="peers-guest-", dir=memory)
            # Its finalizer removes it when the process ends.
            self._threads.holder = holder
            folder = self._threads.folder = Path(holder.name)
        return folder

"""What a runtime sees while it starts at build time: a few files in memory, and nothing of this machine.

No environment, no folder of the author's, a clock that stands still, random numbers that are always the same:
so the saved start is the same wherever it was made, and nothing of whoever builds can be frozen into it.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import shake_256
from typing import Final

from cli.guests.frozen import Frozen

OK, BADF, EXIST, INVAL, NOENT, NOSYS, NOTDIR, SPIPE, ROFS = 0, 8, 20, 28, 44, 52, 54, 70, 69
CLOCK_NS: Final = 1_735_689_600 * 10**9
"""2025-01-01: what the clock says, each time that it is read."""
MAX_LOG_BYTES: Final = 64 * 1024
MAX_FILES: Final = 64
_CHARACTER_DEVICE, _DIRECTORY, _REGULAR_FILE = 2, 3, 4
_ROOT_FD, _FIRST_FD = 3, 4
_ALL_RIGHTS: Final = (1 << 30) - 1


class Phase(StrEnum):
    """What of the start is under way: before the author's own code nothing can be frozen by mistake."""

    RUNTIME = "runtime"
    AGENT = "agent"
    DONE = "done"
    EXAMPLE = "example"
    """A run after the start, of which nothing is kept."""


class Exited(Exception):  # noqa: N818 - an outcome
    """The guest called proc_exit."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


@dataclass(slots=True)
class _Open:
    data: bytes
    path: str
    at: int = 0


class BuildWasi:
    """WASI preview 1 as far as a start needs it. Methods are named as the calls are."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = dict(files)
        self._folders = {"", *(path.rpartition("/")[0] for path in files)}
        self._open: dict[int, _Open] = {}
        self._random = 0
        self.phase = Phase.RUNTIME
        self._input = _Open(b"", "")
        self.frozen: set[Frozen] = set()
        self.log = bytearray()

    def begin_example(self, data: bytes) -> None:
        """Let standard input, which is empty until then, be this, and what follows be a run."""
        self.phase, self._input = Phase.EXAMPLE, _Open(data, "")

    def call(self, name: str, memory: memoryview, arguments: tuple[int, ...]) -> int:
        """Answer one call with its errno; what a start has no business with is ENOSYS."""
        answer: Callable[..., int] | None = getattr(self, name, None)
        if (
            answer is None
            or name.startswith("_")
            or name in {"call", "log", "phase", "frozen", "begin_example"}
        ):
            return NOSYS
        return answer(memory, *(each & 0xFFFFFFFFFFFFFFFF for each in arguments))

    def args_sizes_get(self, memory: memoryview, count: int, size: int) -> int:
        _u32(memory, count, 0)
        _u32(memory, size, 0)
        return OK

    environ_sizes_get = args_sizes_get

    def args_get(self, memory: memoryview, at: int, buffer: int) -> int:  # noqa: ARG002 - there are none
        return OK

    environ_get = args_get

    def clock_res_get(self, memory: memoryview, clock: int, to: int) -> int:  # noqa: ARG002 - all are the same
        _u64(memory, to, 1)
        return OK

    def clock_time_get(self, memory: memoryview, clock: int, precision: int, to: int) -> int:  # noqa: ARG002
        self._froze(Frozen.CLOCK)
        _u64(memory, to, CLOCK_NS)
        return OK

    def random_get(self, memory: memoryview, to: int, size: int) -> int:
        self._froze(Frozen.RANDOM)
        self._random += 1
        memory[to : to + size] = shake_256(b"agentfactory build %d" % self._random).digest(size)
        return OK

    def sched_yield(self, memory: memoryview) -> int:  # noqa: ARG002 - the call's form
        return OK

    def proc_exit(self, memory: memoryview, code: int) -> int:  # noqa: ARG002 - the call's form
        raise Exited(code)

    def fd_prestat_get(self, memory: memoryview, fd: int, to: int) -> int:
        if fd != _ROOT_FD:
            return BADF
        memory[to : to + 8] = struct.pack("<II", 0, 1)
        return OK

    def fd_prestat_dir_name(self, memory: memoryview, fd: int, to: int, size: int) -> int:
        if fd != _ROOT_FD or size < 1:
            return BADF
        memory[to : to + 1] = b"/"
        return OK

    def fd_fdstat_get(self, memory: memoryview, fd: int, to: int) -> int:
        kind = self._kind(fd)
        if kind is None:
            return BADF
        rights = 0 if kind == _CHARACTER_DEVICE else _ALL_RIGHTS
        memory[to : to + 24] = struct.pack("<BxHxxxxQQ", kind, 0, rights or 1 << 6 | 1 << 1, _ALL_RIGHTS)
        return OK

    def fd_fdstat_set_flags(self, memory: memoryview, fd: int, flags: int) -> int:  # noqa: ARG002
        return OK

    def fd_filestat_get(self, memory: memoryview, fd: int, to: int) -> int:
        kind = self._kind(fd)
        if kind is None:
            return BADF
        size = len(self._open[fd].data) if fd in self._open else 0
        return _filestat(memory, to, kind, size)

    def path_filestat_get(self, memory: memoryview, fd: int, flags: int, at: int, size: int, to: int) -> int:
        del flags
        path = _path(memory, at, size)
        if fd != _ROOT_FD:
            return BADF
        if path in self._files:
            return _filestat(memory, to, _REGULAR_FILE, len(self._files[path]))
        return _filestat(memory, to, _DIRECTORY, 0) if path in self._folders else NOENT

    def path_open(
        self,
        memory: memoryview,
        fd: int,
        lookup: int,
        at: int,
        size: int,
        flags: int,
        rights: int,
        inheriting: int,
        fd_flags: int,
        to: int,
    ) -> int:
        del lookup, rights, inheriting, fd_flags
        path = _path(memory, at, size)
        if fd != _ROOT_FD:
            return BADF
        if flags & 0b1101:
            return ROFS  # creating, exclusively, or cutting
        if path not in self._files:
            return NOENT
        free = next((n for n in range(_FIRST_FD, _FIRST_FD + MAX_FILES) if n not in self._open), None)
        if free is None:
            return INVAL
        self._open[free] = _Open(self._files[path], path)
        _u32(memory, to, free)
        return OK

    def fd_read(self, memory: memoryview, fd: int, vectors: int, count: int, to: int) -> int:
        file = self._open.get(fd) if fd else self._input
        if file is None:
            return BADF
        total = 0
        for n in range(count):
            pointer, size = struct.unpack_from("<II", memory, vectors + 8 * n)
            part = file.data[file.at : file.at + size]
            memory[pointer : pointer + len(part)] = part
            file.at += len(part)
            total += len(part)
        _u32(memory, to, total)
        return OK

    def fd_seek(self, memory: memoryview, fd: int, offset: int, whence: int, to: int) -> int:
        file = self._open.get(fd)
        if file is None:
            return SPIPE if fd <= _ROOT_FD else BADF
        by = offset - 2**64 if offset >= 2**63 else offset
        target = (0, file.at, len(file.data))[whence % 3] + by
        if target < 0:
            return INVAL
        file.at = target
        _u64(memory, to, target)
        return OK

    def fd_tell(self, memory: memoryview, fd: int, to: int) -> int:
        return self.fd_seek(memory, fd, 0, 1, to)

    def fd_write(self, memory: memoryview, fd: int, vectors: int, count: int, to: int) -> int:
        if fd not in {1, 2}:
            return BADF
        total = 0
        for n in range(count):
            pointer, size = struct.unpack_from("<II", memory, vectors + 8 * n)
            self.log += bytes(memory[pointer : pointer + size])[: max(0, MAX_LOG_BYTES - len(self.log))]
            total += size
        _u32(memory, to, total)
        return OK

    def fd_close(self, memory: memoryview, fd: int) -> int:  # noqa: ARG002 - the call's form
        return OK if self._open.pop(fd, None) is not None or fd <= _ROOT_FD else BADF

    def _kind(self, fd: int) -> int | None:
        if fd in self._open:
            return _REGULAR_FILE
        return {0: _CHARACTER_DEVICE, 1: _CHARACTER_DEVICE, 2: _CHARACTER_DEVICE, 3: _DIRECTORY}.get(fd)

    def _froze(self, what: Frozen) -> None:
        if self.phase is Phase.AGENT:
            self.frozen.add(what)


def _path(memory: memoryview, at: int, size: int) -> str:
    text = bytes(memory[at : at + size]).decode("utf-8", "replace")
    return "/".join(part for part in text.split("/") if part not in {"", "."})


def _filestat(memory: memoryview, to: int, kind: int, size: int) -> int:
    memory[to : to + 64] = struct.pack("<QQBxxxxxxxQQQQQ", 1, 1, kind, 1, size, 0, 0, 0)
    return OK


def _u32(memory: memoryview, at: int, value: int) -> None:
    struct.pack_into("<I", memory, at, value)


def _u64(memory: memoryview, at: int, value: int) -> None:
    struct.pack_into("<Q", memory, at, value)

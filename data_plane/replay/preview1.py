"""WASI preview 1 for a replay on a second engine: what a run without directories can see, and nothing else.

Written by hand against the table of data_plane/engine/wasi/README.md, so that two implementations are
compared and not one with itself. Clocks and random numbers are those of the order; a sleep does not wait.
Makes no system call. Every pointer of the guest's is checked before anything is read or written.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from data_plane.sandbox.domain import RunRequest
from shared.outcomes import LimitName

BADF, FAULT, INVAL, NOSYS, NOTDIR, NOTSOCK, NOTSUP, SPIPE, NOTCAPABLE = 8, 21, 28, 52, 54, 57, 58, 70, 76
REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU = range(4)
MONOTONIC_START_NS: Final = 1_000_000_000
TICK_NS: Final = 1_000
MAX_PARTS: Final = 1024
MAX_U32: Final = 2**32 - 1
MAX_U64: Final = 2**64 - 1
_FD_READ, _FD_WRITE, _FILESTAT_GET, _POLL = 1 << 1, 1 << 6, 1 << 21, 1 << 27
_EVENT_CLOCK, _EVENT_READ, _EVENT_WRITE = range(3)
_ABSTIME: Final = 1
_KNOWN_FDFLAGS: Final = 31
_STDERR: Final = 2


class GuestExit(Exception):  # noqa: N818 - it is no error: a guest may end
    """The guest ended itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


class LimitPassed(Exception):  # noqa: N818 - an outcome, not an error
    """The guest passed a limit and must not run on."""

    def __init__(self, limit: LimitName) -> None:
        super().__init__(f"limit {limit}")
        self.limit = limit


class Refused(Exception):  # noqa: N818 - an answer to the guest
    """A call is answered by an errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"errno {errno}")
        self.errno = errno


@dataclass(slots=True, kw_only=True)
class Stream:
    """One open standard stream."""

    number: int
    rights: int
    inheriting: int = 0

    def require(self, rights: int) -> None:
        """Refuse unless all of them are there."""
        if self.rights & rights != rights:
            raise Refused(NOTCAPABLE)


@dataclass(slots=True, kw_only=True)
class Used:
    """What was used until now."""

    output_bytes: int = 0
    log_bytes: int = 0
    log_lines: int = 0
    random_bytes: int = 0


@dataclass(slots=True)
class Preview1:
    """The calls of one guest. Each is named as its import and takes the guest's memory first."""

    request: RunRequest
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    used: Used = field(default_factory=Used)
    _elapsed_ns: int = 0
    _stdin_at: int = 0
    _open: dict[int, Stream] = field(default_factory=dict)
    _random: Callable[[int], bytes] | None = None
    _start_ns: int = 0

    def __post_init__(self) -> None:
        request = self.request
        assert request.seed is not None
        assert request.clock is not None
        # RFC 8439 with a block counter from 0 and nonce zero.
        stream = Cipher(algorithms.ChaCha20(request.seed, bytes(16)), mode=None).encryptor()
        self._random = lambda size: stream.update(bytes(size))
        self._start_ns = int(request.clock.timestamp()) * 10**9 + request.clock.microsecond * 1000
        self._open = {
            0: Stream(number=0, rights=_FD_READ | _FILESTAT_GET | _POLL),
            1: Stream(number=1, rights=_FD_WRITE | _FILESTAT_GET | _POLL),
            2: Stream(number=2, rights=_FD_WRITE | _FILESTAT_GET | _POLL),
        }

    # --- arguments and environment ---

    def args_sizes_get(self, mem: memoryview, count: int, size: int) -> None:
        _write_sizes(mem, self._args(), count, size)

    def args_get(self, mem: memoryview, argv: int, buf: int) -> None:
        _write_strings(mem, self._args(), argv, buf)

    def environ_sizes_get(self, mem: memoryview, count: int, size: int) -> None:
        _write_sizes(mem, self._environ(), count, size)

    def environ_get(self, mem: memoryview, environ: int, buf: int) -> None:
        _write_strings(mem, self._environ(), environ, buf)

    def _args(self) -> list[bytes]:
        return [arg.encode() for arg in self.request.args]

    def _environ(self) -> list[bytes]:
        return [f"{name}={value}".encode() for name, value in self.request.env]

    # --- clocks and randomness ---

    def clock_res_get(self, mem: memoryview, clock: int, resolution: int) -> None:
        self._peek(clock)
        _write(mem, resolution, struct.pack("<Q", TICK_NS))

    def clock_time_get(self, mem: memoryview, clock: int, _precision: int, time: int) -> None:
        self._peek(clock)
        self._elapsed_ns = min(MAX_U64, self._elapsed_ns + TICK_NS)
        _write(mem, time, struct.pack("<Q", self._peek(clock)))

    def random_get(self, mem: memoryview, buf: int, size: int) -> None:
        _check(mem, buf, size)
        if self.used.random_bytes + size > self.request.limits.random_bytes:
            raise LimitPassed(LimitName.RANDOM_BYTES)
        assert self._random is not None
        _write(mem, buf, self._random(size))
        self.used.random_bytes += size

    def _peek(self, clock: int) -> int:
        if clock not in {REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU}:
            raise Refused(INVAL)
        starts = {REALTIME: self._start_ns, MONOTONIC: MONOTONIC_START_NS}
        return min(MAX_U64, starts.get(clock, 0) + self._elapsed_ns)

    def sched_yield(self, _mem: memoryview) -> None:
        """Nobody else runs."""

    def proc_exit(self, _mem: memoryview, code: int) -> None:
        raise GuestExit(code)

    def proc_raise(self, _mem: memoryview, _signal: int) -> None:
        raise Refused(NOSYS)

    # --- streams ---

    def fd_read(self, mem: memoryview, fd: int, iovs: int, count: int, nread: int) -> None:
        self._stream(fd).require(_FD_READ)
        _check(mem, nread, 4)
        parts = _parts(mem, iovs, count)
        chunk = b""
        if parts:
            at, size = parts[0]
            chunk = self.request.stdin[self._stdin_at : self._stdin_at + size]
            _write(mem, at, chunk)
            self._stdin_at += len(chunk)
        _write(mem, nread, struct.pack("<I", len(chunk)))

    def fd_write(self, mem: memoryview, fd: int, iovs: int, count: int, nwritten: int) -> None:
        stream = self._stream(fd)
        stream.require(_FD_WRITE)
        _check(mem, nwritten, 4)
        parts = _parts(mem, iovs, count)
        total = 0
        for at, size in parts:
            self._put(stream.number, bytes(mem[at : at + size]))
            total += size
        _write(mem, nwritten, struct.pack("<I", total))

    def write_log(self, line: bytes) -> None:
        """Add a line of the host's as if the guest had written it."""
        self._put(_STDERR, line)

    def _put(self, number: int, data: bytes) -> None:
        if not data:
            return
        limits, used = self.request.limits, self.used
        if number != _STDERR:
            fits = data[: limits.output_bytes - used.output_bytes]
            self.stdout += fits
            used.output_bytes += len(fits)
            if len(fits) < len(data):
                raise LimitPassed(LimitName.OUTPUT_BYTES)
            return
        fits = data[: limits.log_bytes - used.log_bytes]
        lines = _cut_lines(fits, limits.log_lines - used.log_lines)
        self.stderr += lines
        used.log_bytes += len(lines)
        used.log_lines += lines.count(b"\n")
        if len(lines) < len(fits):
            raise LimitPassed(LimitName.LOG_LINES)
        if len(fits) < len(data):
            raise LimitPassed(LimitName.LOG_BYTES)

    # --- descriptors ---

    def fd_close(self, _mem: memoryview, fd: int) -> None:
        self._stream(fd)
        del self._open[fd]

    def fd_renumber(self, _mem: memoryview, origin: int, to: int) -> None:
        stream = self._stream(origin)
        self._stream(to)
        if origin != to:
            self._open[to] = stream
            del self._open[origin]

    def fd_fdstat_get(self, mem: memoryview, fd: int, stat: int) -> None:
        stream = self._stream(fd)
        _write(mem, stat, struct.pack("<BxHxxxxQQ", 0, 0, stream.rights, stream.inheriting))

    def fd_fdstat_set_flags(self, _mem: memoryview, fd: int, flags: int) -> None:
        self._stream(fd)
        if flags & ~_KNOWN_FDFLAGS:
            raise Refused(INVAL)
        if flags:
            raise Refused(NOTSUP)

    def fd_fdstat_set_rights(self, _mem: memoryview, fd: int, base: int, inheriting: int) -> None:
        stream = self._stream(fd)
        base, inheriting = base & MAX_U64, inheriting & MAX_U64
        if base & ~stream.rights or inheriting & ~stream.inheriting:
            raise Refused(NOTCAPABLE)
        stream.rights, stream.inheriting = base, inheriting

    def fd_filestat_get(self, mem: memoryview, fd: int, stat: int) -> None:
        self._stream(fd).require(_FILESTAT_GET)
        _write(mem, stat, bytes(64))

    def answer_stream(self, fd: int, errno: int) -> None:
        """Refuse what standard streams do not do."""
        self._stream(fd)
        raise Refused(errno)

    def _stream(self, fd: int) -> Stream:
        if fd not in self._open:
            raise Refused(BADF)
        return self._open[fd]

    # --- waiting ---

    def poll_oneoff(self, mem: memoryview, subscriptions: int, events: int, count: int, stored: int) -> None:
        if not 1 <= count <= MAX_PARTS:
            raise Refused(INVAL)
        _check(mem, events, count * 32)
        _check(mem, stored, 4)
        _check(mem, subscriptions, count * 48)
        wanted = [_Wanted.read(mem[subscriptions + 48 * n :][:48], self._peek) for n in range(count)]
        ready = [event for one in wanted if (event := self._event(one))]
        if not ready:
            # A sleep moves the clock and does not wait.
            wait = min(max(0, one.deadline_ns - self._peek(one.clock)) for one in wanted)
            self._elapsed_ns = min(MAX_U64, self._elapsed_ns + wait)
            ready = [event for one in wanted if (event := self._event(one))]
        _write(mem, events, b"".join(ready))
        _write(mem, stored, struct.pack("<I", len(ready)))

    def _event(self, one: "_Wanted") -> bytes | None:
        errno, size = one.errno, 0
        if one.kind == _EVENT_CLOCK:
            if not errno and self._peek(one.clock) < one.deadline_ns:
                return None
        else:
            needed = _POLL | (_FD_READ if one.kind == _EVENT_READ else _FD_WRITE)
            try:
                self._stream(one.clock).require(needed)
                size = 1
            except Refused as error:
                errno = error.errno
        return struct.pack("<QHBxxxxxQQ", one.userdata, errno, one.kind, size, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    userdata: int
    kind: int
    clock: int
    """Or the descriptor."""
    deadline_ns: int = 0
    errno: int = 0

    @classmethod
    def read(cls, data: memoryview, peek: Callable[[int], int]) -> "_Wanted":
        userdata, kind = struct.unpack_from("<QB", data)
        clock, timeout_ns = struct.unpack_from("<IxxxxQ", data, 16)
        (flags,) = struct.unpack_from("<H", data, 40)
        if kind > _EVENT_WRITE:
            raise Refused(INVAL)
        if kind != _EVENT_CLOCK:
            return cls(userdata=userdata, kind=kind, clock=clock)
        if flags & ~_ABSTIME or clock > THREAD_CPU:
            return cls(userdata=userdata, kind=kind, clock=clock, errno=INVAL)
        if clock > MONOTONIC:
            return cls(userdata=userdata, kind=kind, clock=clock, errno=NOTSUP)
        deadline = timeout_ns if flags & _ABSTIME else min(MAX_U64, peek(clock) + timeout_ns)
        return cls(userdata=userdata, kind=kind, clock=clock, deadline_ns=deadline)


def _check(mem: memoryview, at: int, size: int) -> None:
    if at + size > len(mem):
        raise Refused(FAULT)


def _write(mem: memoryview, at: int, data: bytes) -> None:
    _check(mem, at, len(data))
    mem[at : at + len(data)] = data


def _parts(mem: memoryview, iovs: int, count: int) -> list[tuple[int, int]]:
    if count > MAX_PARTS:
        raise Refused(INVAL)
    _check(mem, iovs, count * 8)
    parts, total = [], 0
    for at, size in struct.iter_unpack("<II", bytes(mem[iovs : iovs + count * 8])):
        _check(mem, at, size)
        total += size
        if total > MAX_U32:
            raise Refused(INVAL)
        if size:
            parts.append((at, size))
    return parts


def _write_sizes(mem: memoryview, strings: Sequence[bytes], count: int, size: int) -> None:
    _write(mem, count, struct.pack("<I", len(strings)))
    _write(mem, size, struct.pack("<I", sum(len(one) + 1 for one in strings)))


def _write_strings(mem: memoryview, strings: Sequence[bytes], slots: int, buf: int) -> None:
    _check(mem, slots, 4 * len(strings))
    _check(mem, buf, sum(len(one) + 1 for one in strings))
    for number, one in enumerate(strings):
        _write(mem, slots + 4 * number, struct.pack("<I", buf))
        _write(mem, buf, one + b"\0")
        buf += len(one) + 1


def _cut_lines(data: bytes, room: int) -> bytes:
    """Return the beginning that ends at most ``room`` lines."""
    at = -1
    for _ in range(room + 1):
        at = data.find(b"\n", at + 1)
        if at < 0:
            return data
    return data[:at]

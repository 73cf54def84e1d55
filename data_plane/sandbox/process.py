"""One worker process: started, killed, reaped. Knows nothing of what is said on its socket."""

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum, StrEnum
from typing import Final

from data_plane.sandbox.cgroup import GroupBounds, OutOfMemory, WorkerGroup, WorkerGroups
from data_plane.sandbox.domain import Layer
from shared.errors import UnavailableError

MAX_STDERR_BYTES: Final = 2048
"""How much of a crashed worker's last words is kept."""

WORKER_NICE: Final = 5
"""How much less urgent than its node a worker is: guests that loop must not keep the node from a processor,
since it renews leases and serves everybody else's runs. Measured in docs/performance.md."""

_MAX_NICE: Final = 19
_SOCKET_BUFFER_BYTES: Final = 1024 * 1024
_MONITOR_PATIENCE: Final = timedelta(seconds=1)
"""How long the monitor may take to kill its worker."""


class Mode(StrEnum):
    """What the worker binary is started for."""

    RUN = "run"
    COMPILE = "compile"


class User(StrEnum):
    """Whose rights a worker has outside its namespace, by the argument that it is started with."""

    NOBODY = ""
    """Nobody's, where the node is root."""
    OWN = "--own-user"
    """The node's own: for guests that are given directories of that user."""


class ExitCode(IntEnum):
    """How the worker binary says why it ended by itself (watchdog.rs, `exit`)."""

    WALL_LIMIT = 66
    CPU_LIMIT = 67
    ABORTED = 70
    """It aborts when there is no memory for the compiler."""
    ALARM = 71
    """The wall time of a compilation is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended: by ``code``, or by ``signal_number``."""

    code: int | None = None
    signal_number: int | None = None
    out_of_memory: OutOfMemory | None = None
    """Set when the kernel killed it for memory, as far as its group tells."""
    last_words: str = ""
    """What it wrote to stderr: for the log only, since a panic names paths of whoever built the worker."""

    def __str__(self) -> str:
        if self.signal_number is not None:
            return f"was killed by {signal.Signals(self.signal_number).name}"
        return f"ended with code {self.code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """A process that has just been started, and what its node holds of it."""

    pid: int
    pidfd: int
    stderr_fd: int
    sock: socket.socket


class WorkerProcess:
    """A started worker. It has an empty environment, its socket as descriptor 0 and nothing else of ours."""

    def __init__(
        self, spawned: Spawned, groups: WorkerGroups | None = None, group: WorkerGroup | None = None
    ) -> None:
        self.pid = spawned.pid
        self.socket = spawned.sock
        self.group = group
        """Which its node has started it in."""
        self._groups = groups
        self._pidfd = spawned.pidfd
        self._stderr_fd = spawned.stderr_fd
        self._killing = False
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = self._loop.create_future()
        """Set when the process has been reaped."""
        self._loop.add_reader(spawned.pidfd, self._reap)

    @classmethod
    def start(
        cls, worker_path: str, mode: Mode, require: Sequence[Layer] = (), user: User = User.NOBODY
    ) -> "WorkerProcess":
        """Start a worker; takes about a millisecond and does not wait for it to say anything.

        It refuses to work when a layer of its jail that ``require`` names does not hold. The process started
        is the monitor in front of the worker: it ends as the worker does, with its code or by its signal.

        Raises:
            UnavailableError: The binary is missing, or the kernel gives no process or descriptor.
        """
        return cls(_spawn(worker_path, mode, require, user))

    @classmethod
    async def start_in_group(
        cls,
        groups: WorkerGroups,
        bounds: GroupBounds,
        worker_path: str,
        mode: Mode,
        require: Sequence[Layer] = (),
        user: User = User.NOBODY,
    ) -> "WorkerProcess":
        """As ``start``, in a new group, which is removed when the process has been reaped.

        Raises:
            UnavailableError: As ``start``, or the kernel makes no group.
        """
        group = groups.make(bounds)
        spawning = groups.begin(group, lambda: _spawn(worker_path, mode, require, user))
        try:
            return cls(await asyncio.shield(spawning), groups, group)
        except asyncio.CancelledError:
            # What is being started is nobody's yet: it is waited for, and ended.
            await asyncio.wait([spawning])
            if spawning.exception() is None:
                cls(spawning.result(), groups, group).kill()
            else:
                groups.done_with(group)
            raise
        except OSError as error:
            groups.done_with(group)
            raise UnavailableError(f"no worker can be started in a cgroup: {error}") from error
        except UnavailableError:
            groups.done_with(group)
            raise

    def kill(self) -> None:
        """End the worker at once. One that has ended already is no error.

        The monitor is told to kill the worker, so that it reaps it: killed itself it would leave that to
        whoever is process 1 here, in a container perhaps the node. What is left a second later is killed.
        """
        if self._killing or self.ended.done():
            return
        self._killing = True
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
        self._loop.call_later(_MONITOR_PATIENCE.total_seconds(), self._kill_both)

    def _kill_both(self) -> None:
        if not self.ended.done():
            # Not reaped yet, so the number is still that of the group both of them are in.
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> Ended:
        """Wait until the process has ended and been reaped."""
        return await asyncio.shield(self.ended)

    def _reap(self) -> None:
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        last_words = os.pread(self._stderr_fd, MAX_STDERR_BYTES, 0).decode(errors="replace").strip("\0 \n")
        os.close(self._pidfd)
        os.close(self._stderr_fd)
        if status.si_code == os.CLD_EXITED:
            self.ended.set_result(Ended(code=status.si_status, last_words=last_words))
        else:
            self.ended.set_result(
                Ended(
                    signal_number=status.si_status,
                    out_of_memory=None if self.group is None else self.group.out_of_memory(),
                    last_words=last_words,
                )
            )
        if self.group is not None and self._groups is not None:
            self._groups.done_with(self.group)


def _spawn(worker_path: str, mode: Mode, require: Sequence[Layer], user: User) -> Spawned:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stderr_fd = -1
    try:
        ours.setblocking(False)
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        stderr_fd = _last_words_file()
        pid = os.posix_spawn(
            worker_path,
            # The worker cannot see its group: that layer is its node's to put around it.
            [
                worker_path,
                mode,
                *filter(None, [user]),
                *(layer for layer in require if layer is not Layer.CGROUP),
            ],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, stderr_fd, 2),
            ],
            # Ctrl-C reaches a whole process group: a worker ends by the node's decision, not by a key.
            setpgroup=0,
            setsigdef=[signal.SIGPIPE],
        )
        nice = min(_MAX_NICE, os.getpriority(os.PRIO_PROCESS, 0) + WORKER_NICE)
        # The group, so that it meets whatever the started process starts in its turn.
        os.setpriority(os.PRIO_PGRP, pid, nice)
    except OSError as error:
        ours.close()
        if stderr_fd >= 0:
            os.close(stderr_fd)
        raise UnavailableError(f"worker {worker_path} cannot be started: {error}") from error
    finally:
        theirs.close()
    return Spawned(pid=pid, pidfd=os.pidfd_open(pid), stderr_fd=stderr_fd, sock=ours)


def _last_words_file() -> int:
    """A file in memory takes a panic's text without anybody reading along. It cannot grow."""
    descriptor = os.memfd_create("worker-stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, MAX_STDERR_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor

"""Control groups of workers: a bound on the memory and the tasks of each, which the kernel keeps.

Made below the group that the node itself is in, so no bound of the node's is ever left. Every method blocks
a little.
"""

import asyncio
import itertools
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Final, Protocol, TypeVar

from data_plane.sandbox.domain import CompileLimits, Layer, LayerState
from data_plane.sandbox.look import HiddenError, worker_behind
from shared.errors import UnavailableError

logger = logging.getLogger(__name__)

RUN_TASKS: Final = 8
"""Monitor, watchdog and guest thread, and one more while a module is loaded; the rest is room."""
COMPILE_TASKS: Final = 16
RUN_OVERHEAD_BYTES: Final = 512 * 1024 * 1024
"""Beside the guest's memories: code (128 MiB at most, twice while it is loaded), the image of its data (32
MiB at most), tables, buffers."""
COMPILE_OVERHEAD_BYTES: Final = 256 * 1024 * 1024
"""Beside the compiler's address space: the artifact, which is kept in memory."""

_numbers_of_groups: Final = itertools.count(1)
_MOUNTS: Final = Path("/proc/self/mountinfo")
_OWN: Final = Path("/proc/self/cgroup")
_LEAF: Final = "node"
"""Where the node goes in its own v2 group: one that hands controllers down may hold no process itself."""
_CONTROLLERS: Final = ("memory", "pids")
_NAME: Final = re.compile(r"af-worker-([0-9]+)-([0-9]+)-[0-9]+")
_CHARGED_AT_ONCE_BYTES: Final = 1024 * 1024
"""More than the kernel asks for at once: a v1 group that came so near to its bound was at it."""
_REMOVAL_PATIENCE: Final = timedelta(seconds=1)
_REMOVAL_PAUSE: Final = timedelta(milliseconds=10)


class NoGroupsError(Exception):
    """Workers cannot be put into groups here; the text says why."""


class OutOfMemory(Enum):
    """Whose memory had run out when the kernel killed a process of a group for memory."""

    GROUP = "group"
    """The group was at its own bound."""
    MACHINE = "machine"
    """The machine, or a group around the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBounds:
    """What the processes of one worker may use together."""

    memory_bytes: int
    tasks: int


def run_bounds(memory_bytes: int) -> GroupBounds:
    """Return the bounds of a worker whose runs are granted at most ``memory_bytes``."""
    return GroupBounds(memory_bytes=memory_bytes + RUN_OVERHEAD_BYTES, tasks=RUN_TASKS)


def compile_bounds(limits: CompileLimits) -> GroupBounds:
    """Return the bounds of a compile worker."""
    return GroupBounds(memory_bytes=limits.memory_bytes + COMPILE_OVERHEAD_BYTES, tasks=COMPILE_TASKS)


class Started(Protocol):
    """A process that has been started."""

    @property
    def pid(self) -> int: ...


StartedT = TypeVar("StartedT", bound=Started)


class _Hierarchy(Protocol):
    """One version of the kernel's interface; groups are directories beneath each of ``bases``."""

    bases: Sequence[Path]
    detail: str

    def bound(self, folders: Sequence[Path], bounds: GroupBounds) -> None: ...

    def out_of_memory(self, folders: Sequence[Path]) -> OutOfMemory | None: ...

    def begin(self, group: "WorkerGroup", spawn: Callable[[], "StartedT"]) -> "StartedT": ...

    def close(self) -> None: ...


class WorkerGroup:
    """The group of one worker: its monitor and itself."""

    def __init__(self, hierarchy: _Hierarchy, name: str) -> None:
        self._hierarchy = hierarchy
        self.folders = tuple(base / name for base in hierarchy.bases)

    def make(self, bounds: GroupBounds) -> None:
        """Make the group and bound it.

        Raises:
            OSError: The kernel does not; nothing of it is left.
        """
        try:
            for folder in self.folders:
                folder.mkdir()
            self._hierarchy.bound(self.folders, bounds)
        except OSError:
            self.remove()
            raise

    def take(self, monitor_pid: int) -> None:
        """Put a monitor into the group, and the worker behind it if there is one already.

        What the monitor starts later is in the group from its birth.

        Raises:
            OSError: The kernel refuses. A process that is gone is no error.
        """
        with suppress(ProcessLookupError):
            self._put(monitor_pid)
            with suppress(HiddenError):
                worker_pid = worker_behind(monitor_pid)
                if worker_pid is not None:
                    self._put(worker_pid)

    def holds(self, processes: int) -> bool:
        """Whether so many processes are in the group, by the kernel's own list."""
        with suppress(OSError):  # gone with its last process
            return all(len(_read(folder / "cgroup.procs").split()) >= processes for folder in self.folders)
        return False

    def out_of_memory(self) -> OutOfMemory | None:
        """Say whose memory had run out, if the kernel killed a process of the group for memory."""
        try:
            return self._hierarchy.out_of_memory(self.folders)
        except OSError:
            return None

    def remove(self) -> bool:
        """Remove the group; False while a process in it is still ending."""
        left = [folder for folder in self.folders if not _remove(folder)]
        return not left

    def _put(self, pid: int) -> None:
        for folder in self.folders:
            _write(folder / "cgroup.procs", str(pid))


class WorkerGroups:
    """The groups of one node's workers. Close it when the last worker is gone."""

    def __init__(self, hierarchy: _Hierarchy) -> None:
        self._hierarchy = hierarchy
        self._prefix = f"af-worker-{os.getpid()}-{_started_at(os.getpid())}"
        self._ending: list[WorkerGroup] = []
        # One thread for its whole life: workers die with the thread that started them.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker-groups")

    @classmethod
    def open(cls) -> "WorkerGroups":
        """Find where groups can be made, try it, and remove what dead nodes left there.

        Raises:
            NoGroupsError: They cannot; says why.
        """
        own, mounts = _own_groups(_read(_OWN)), _mounts(_read(_MOUNTS))
        hierarchy = _find(own, mounts)
        groups = cls(hierarchy)
        try:
            for base in hierarchy.bases:
                _remove_leftovers(base)
            groups.done_with(groups.make(GroupBounds(memory_bytes=RUN_OVERHEAD_BYTES, tasks=RUN_TASKS)))
        except (OSError, UnavailableError) as error:
            groups.close()
            raise NoGroupsError(f"no group can be made in {hierarchy.bases[0]}: {error}") from error
        return groups

    @property
    def state(self) -> LayerState:
        """The layer, for those who show it."""
        return LayerState(layer=Layer.CGROUP, active=True, detail=self._hierarchy.detail)

    def make(self, bounds: GroupBounds) -> WorkerGroup:
        """Make a group for one worker.

        Raises:
            UnavailableError: The kernel makes none.
        """
        self._ending = [group for group in self._ending if not group.remove()]
        group = WorkerGroup(self._hierarchy, f"{self._prefix}-{next(_numbers_of_groups)}")
        try:
            group.make(bounds)
        except OSError as error:
            raise UnavailableError(f"no cgroup can be made for a worker: {error}") from error
        return group

    def begin(self, group: WorkerGroup, spawn: Callable[[], StartedT]) -> "asyncio.Future[StartedT]":
        """Start a process in the group, by a function that is called in a thread; passes on what that raises.

        On v2 it is moved when it has been started; one that cannot be moved is ended at once.
        """
        return asyncio.get_running_loop().run_in_executor(self._thread, self._hierarchy.begin, group, spawn)

    def done_with(self, group: WorkerGroup) -> None:
        """Remove the group of a worker that has been reaped, now or as soon as it is empty."""
        if not group.remove():
            self._ending.append(group)

    def close(self) -> None:
        """Remove what is left, and give the node's own group back as it was."""
        deadline = time.monotonic() + _REMOVAL_PATIENCE.total_seconds()
        while self._ending and time.monotonic() < deadline:
            self._ending = [group for group in self._ending if not group.remove()]
            if self._ending:
                time.sleep(_REMOVAL_PAUSE.total_seconds())
        self._thread.shutdown()
        with suppress(OSError):
            self._hierarchy.close()


def open_groups() -> tuple[WorkerGroups | None, LayerState]:
    """Return the groups, None where there can be none, and the layer as it is shown."""
    try:
        groups = WorkerGroups.open()
    except NoGroupsError as error:
        return None, LayerState(layer=Layer.CGROUP, active=False, detail=str(error))
    return groups, groups.state


def check_demand(require: Sequence[Layer], groups: WorkerGroups | None) -> None:
    """Look whether groups are there if they are demanded; no worker can tell.

    Raises:
        UnavailableError: They are demanded and not there.
    """
    if Layer.CGROUP in require and groups is None:
        raise UnavailableError("demanded and not possible here: cgroup")


def with_layer(layers: Iterable[LayerState], state: LayerState) -> tuple[LayerState, ...]:
    """Return the layers with this one in the place of what a worker says: it cannot see its group."""
    return tuple(state if each.layer is state.layer else each for each in layers)


class _Second:
    """cgroup v2: one tree with all controllers."""

    def __init__(self, own: Path) -> None:
        self._own_pid = str(os.getpid())
        self._base = own.parent if own.name == _LEAF else own
        self._moved = False
        self.bases: Sequence[Path] = (self._base,)
        self.detail = "v2: memory, swap, tasks"
        self._hand_down(is_in_leaf=own.name == _LEAF)

    def bound(self, folders: Sequence[Path], bounds: GroupBounds) -> None:
        (folder,) = folders
        _write(folder / "memory.max", str(bounds.memory_bytes))
        _write(folder / "pids.max", str(bounds.tasks))
        with suppress(FileNotFoundError):  # a kernel without accounting of swap
            _write(folder / "memory.swap.max", "0")

    def out_of_memory(self, folders: Sequence[Path]) -> OutOfMemory | None:
        events = _numbers(_read(folders[0] / "memory.events"))
        if not events.get("oom_kill"):
            return None
        return OutOfMemory.GROUP if events.get("oom") else OutOfMemory.MACHINE

    def begin(self, group: WorkerGroup, spawn: Callable[[], StartedT]) -> StartedT:
        started = spawn()
        try:
            group.take(started.pid)
        except OSError:
            # It may have ended by itself; either way it does nothing outside its group.
            logger.warning("worker cannot be put into its cgroup", exc_info=True)
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
        return started

    def close(self) -> None:
        if self._moved:
            self._set_controllers("-")
            _write(self._base / "cgroup.procs", self._own_pid)
            _remove(self._base / _LEAF)
            self._moved = False

    def _hand_down(self, *, is_in_leaf: bool) -> None:
        handed = _read(self._base / "cgroup.subtree_control").split()
        if set(_CONTROLLERS) <= set(handed):
            return
        is_root = not (self._base / "cgroup.events").exists()
        if not is_root and not is_in_leaf:
            if _read(self._base / "cgroup.procs").split() != [self._own_pid]:
                raise NoGroupsError(f"other processes share the node's cgroup {self._base}")
            (self._base / _LEAF).mkdir(exist_ok=True)
            _write(self._base / _LEAF / "cgroup.procs", self._own_pid)
            self._moved = True
        try:
            self._set_controllers("+")
        except OSError:
            with suppress(OSError):
                self.close()
            raise

    def _set_controllers(self, sign: str) -> None:
        _write(self._base / "cgroup.subtree_control", " ".join(sign + name for name in _CONTROLLERS))


class _First:
    """cgroup v1: a tree for each controller, memory before pids."""

    def __init__(self, bases: Sequence[Path]) -> None:
        self.bases: Sequence[Path] = tuple(bases)
        self._homes = self.bases
        self.detail = "v1: memory, swap, tasks"

    def bound(self, folders: Sequence[Path], bounds: GroupBounds) -> None:
        memory, pids = folders
        _write(memory / "memory.limit_in_bytes", str(bounds.memory_bytes))
        with suppress(FileNotFoundError):  # a kernel without accounting of swap
            _write(memory / "memory.memsw.limit_in_bytes", str(bounds.memory_bytes))
        _write(pids / "pids.max", str(bounds.tasks))

    def out_of_memory(self, folders: Sequence[Path]) -> OutOfMemory | None:
        memory = folders[0]
        if not _numbers(_read(memory / "memory.oom_control")).get("oom_kill"):
            return None
        # Not by memory.failcnt, which newer kernels leave at zero.
        bound, most = (int(_read(memory / f"memory.{name}_in_bytes")) for name in ("limit", "max_usage"))
        return OutOfMemory.GROUP if most >= bound - _CHARGED_AT_ONCE_BYTES else OutOfMemory.MACHINE

    def begin(self, group: WorkerGroup, spawn: Callable[[], StartedT]) -> StartedT:
        # A thread that moves itself does not wait for the kernel, as whoever moves a process does (17 ms
        # after a pause), and what it starts is born in its group.
        for folder in group.folders:
            _write(folder / "tasks", "0")
        try:
            return spawn()
        finally:
            with suppress(OSError):  # the next start moves it on
                for home in self._homes:
                    _write(home / "tasks", "0")

    def close(self) -> None:
        """Nothing was changed but the groups."""


def _find(own: Mapping[str, str], mounts: Mapping[str, tuple[str, Path]]) -> _Hierarchy:
    try:
        second = _folder("", own, mounts)
        if second is not None:
            base = second.parent if second.name == _LEAF else second
            if set(_CONTROLLERS) <= set(_read(base / "cgroup.controllers").split()):
                return _Second(second)
        first = [_folder(name, own, mounts) for name in _CONTROLLERS]
        bases = [folder for folder in first if folder is not None]
    except OSError as error:
        raise NoGroupsError(f"the node's cgroup cannot be changed: {error}") from error
    if len(bases) == len(_CONTROLLERS):
        return _First(bases)
    raise NoGroupsError("the node's cgroup has no memory and pids controllers of its own")


def _folder(controller: str, own: Mapping[str, str], mounts: Mapping[str, tuple[str, Path]]) -> Path | None:
    """Where the node's own group of a controller lies; of v2, which has no name, under the empty one."""
    if controller not in own or controller not in mounts:
        return None
    root, point = mounts[controller]
    path = Path(own[controller])
    if not path.is_relative_to(root):
        return None  # the mount shows another part of the tree
    folder = point / path.relative_to(root)
    return folder if folder.is_dir() else None


def _own_groups(text: str) -> Mapping[str, str]:
    """Lines of ``id:controllers:path``; v2 has none named."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _mounts(text: str) -> Mapping[str, tuple[str, Path]]:
    """Root and mount point of each controller's tree (proc(5), mountinfo)."""
    found: dict[str, tuple[str, Path]] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        place = (left.split()[3], Path(left.split()[4]))
        if kind == "cgroup2":
            found.setdefault("", place)
        elif kind == "cgroup":
            for name in set(options.split(",")) & set(_CONTROLLERS):
                found.setdefault(name, place)
    return found


def _remove_leftovers(base: Path) -> None:
    """Remove the empty groups of nodes that are dead; what holds a process the kernel does not let go."""
    for folder in base.iterdir():
        match = _NAME.fullmatch(folder.name)
        if match is not None and _started_at(int(match[1])) != match[2]:
            _remove(folder)


def _started_at(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None when there is none."""
    with suppress(OSError):
        # The name in brackets may hold anything, so what follows the last bracket is read.
        return _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[19]
    return None


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _numbers(text: str) -> Mapping[str, int]:
    return {name: int(number) for name, number in (line.split() for line in text.splitlines())}


def _write(path: Path, text: str) -> None:
    # Without O_CREAT: for a file that is not there these file systems would say that it is forbidden.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    return path.read_text()

"""What the node sees of a worker itself, in the kernel's own files, so that it does not have to believe it.

What cannot be seen from outside (landlock) stays the worker's word.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Final

from data_plane.sandbox.domain import Layer, LayerState
from shared.errors import WorkerCrashedError

MAX_DESCRIPTORS: Final = 1088
"""What a worker leaves itself (resources.rs)."""
FILTERS: Final = 3
"""On a worker that has locked itself: what the runtime lives without, and the list of each stage."""
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

_PROC: Final = "/proc"
_MAX_FILE_BYTES: Final = 64 * 1024
_FILTERING: Final = "2"
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_NAMESPACES: Final = ("user", "pid", "net", "mnt", "ipc", "uts")
_CPU_FIELDS: Final = slice(11, 13)


class HiddenError(Exception):
    """Processes are hidden from this node (``hidepid`` of proc): nothing can be looked at."""


def worker_behind(monitor_pid: int) -> int | None:
    """Return the process that a monitor started, by its number out here; None while there is none.

    Raises:
        HiddenError: The monitor, which has not been reaped, cannot be seen.
    """
    try:
        children = _read(f"{_PROC}/{monitor_pid}/task/{monitor_pid}/children").split()
    except OSError as error:
        raise HiddenError from error
    return int(children[0]) if len(children) == 1 else None


def confirm(monitor_pid: int, claimed: Iterable[LayerState], require: Iterable[Layer]) -> bool:
    """Look whether a worker tells the truth about its jail. False when it was gone already.

    Where processes are hidden the worker is believed.

    Raises:
        WorkerCrashedError: The kernel knows nothing of a layer that it claims, or it does not claim one that
            is required.
    """
    active = {state.layer for state in claimed if state.active}
    if missing := set(require) - active:
        raise WorkerCrashedError(f"worker runs without {', '.join(sorted(missing))}, which is demanded")
    try:
        seen = _seen_behind(monitor_pid)
    except HiddenError:
        return True
    if seen is None:
        return False
    if lies := {layer for layer, holds in seen.items() if not holds} & active:
        raise WorkerCrashedError(
            f"worker claims {', '.join(sorted(lies))}, and the kernel knows nothing of it"
        )
    return True


def _seen_behind(monitor_pid: int) -> Mapping[Layer, bool] | None:
    pid = worker_behind(monitor_pid)
    seen = None if pid is None else layers_seen(pid)
    if seen is None and pid is not None and worker_behind(monitor_pid) == pid:
        raise HiddenError  # it is there, and shows nothing
    return seen


def layers_seen(pid: int) -> Mapping[Layer, bool] | None:
    """Return what holds around a worker that is ready, as far as the kernel tells; None when it is gone.

    Raises:
        HiddenError: It is there and may not be looked at.
    """
    folder = f"{_PROC}/{pid}"
    try:
        status = dict(line.split(":", 1) for line in _read(f"{folder}/status").splitlines() if ":" in line)
        limits = _read(f"{folder}/limits")
        numbers = status["NSpid"].split()
        bare = all(int(status[name], 16) == 0 for name in _CAPABILITIES)
        return {
            Layer.SECCOMP: status["Seccomp"].strip() == _FILTERING
            and int(status.get("Seccomp_filters", FILTERS)) >= FILTERS,
            Layer.NO_NEW_PRIVS: status["NoNewPrivs"].strip() == "1",
            Layer.NOT_ROOT: bare and "0" not in status["Uid"].split(),
            Layer.NAMESPACES: len(numbers) > 1 and numbers[-1] == "1" and _apart(folder),
            Layer.RLIMITS: _limit(limits, "Max core file size") == 0
            and _limit(limits, "Max open files") <= MAX_DESCRIPTORS,
        }
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError as error:
        raise HiddenError from error


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a process has used; None when it is gone."""
    with suppress(OSError, ValueError):
        # The name in brackets may hold anything, so what follows the last bracket is read.
        fields = _read(f"{_PROC}/{pid}/stat").rpartition(")")[2].split()
        return sum(map(int, fields[_CPU_FIELDS])) / CLOCK_TICKS
    return None


def _apart(folder: str) -> bool:
    """Whether no namespace is the node's own. Those of a process that is not dumpable only root may see."""
    with suppress(PermissionError):
        return all(
            os.readlink(f"{folder}/ns/{kind}") != own  # noqa: PTH115 - see _read
            for kind, own in _own_namespaces().items()
        )
    return True


@cache
def _own_namespaces() -> Mapping[str, str]:
    """Those of this process, which it never leaves."""
    return {kind: os.readlink(f"{_PROC}/self/ns/{kind}") for kind in _NAMESPACES}  # noqa: PTH115 - see _read


def _read(path: str) -> str:
    # Every start of a worker waits for several of these; pathlib and text files cost ten times the calls.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _MAX_FILE_BYTES).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def _limit(limits: str, name: str) -> float:
    found = re.search(rf"^{name} +\S+ +(\d+)", limits, re.MULTILINE)
    return float(found[1]) if found else float("inf")

"""Memory of process trees: the sum of PSS, in which a page that n processes share counts 1/n in each."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

PROC = Path("/proc")


def pss_bytes(rollup: str) -> int:
    """Return the PSS that a `smaps_rollup` file tells.

    Raises:
        ValueError: It tells none.
    """
    for line in rollup.splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0]) * 1024
    raise ValueError("no line 'Pss:' in smaps_rollup")


def tree(root: int) -> list[int]:
    """Return a process and all below it."""
    process = psutil.Process(root)
    return [root, *(child.pid for child in process.children(recursive=True))]


def tree_bytes(roots: Iterable[int]) -> int:
    """Return the sum of PSS over the trees; a process that ends meanwhile counts nothing."""
    return sum(_of_process(pid) for pid in {pid for root in roots for pid in tree(root)})


def trees_bytes(roots: Mapping[str, int]) -> dict[str, int]:
    """Return the sum of PSS for each named tree."""
    return {name: tree_bytes([root]) for name, root in roots.items()}


def _of_process(pid: int) -> int:
    try:
        return pss_bytes((PROC / str(pid) / "smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0

"""Scratch folders of workers: one for a worker's life, empty before each run and gone after it.

What a guest left behind is hostile: nothing here follows a symbolic link, leaves the folder, needs a stack or
a path that grows with the depth, or works without a bound. Every method blocks; callers use a thread.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import DiskFullError, ResourceExhaustedError

GUEST_PATH: Final = "/scratch"
"""Where the guest finds it."""
KEPT_FREE_BYTES: Final = 256 * 1024 * 1024
"""What scratch leaves of the disk: the receipts of what runs lie there too."""
MAX_LEFT_ENTRIES: Final = 10_000_000
"""What a node removes at its start; more than that is no leftover of its own."""
_ENTRIES_PER_INODE: Final = 4
"""Looks at one name while a folder is emptied: in its directory, beside it, again when it has changed."""
_SPARE_ENTRIES: Final = 1_000
_CHANGED: Final = frozenset(
    {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP}
)
"""Somebody changes the folder meanwhile, or names it as we do: it is looked at again, within the bound."""
_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def max_entries(inodes: int) -> int:
    """Return the bound of emptying a folder in which a guest could make `inodes` names."""
    return _SPARE_ENTRIES + _ENTRIES_PER_INODE * inodes


class ScratchFolders:
    """The folders of one pool, below a directory that is nobody else's."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: set[Path] = set()
        self._promised_bytes = 0

    def clear(self) -> None:
        """Begin: remove whatever earlier processes left.

        Raises:
            ResourceExhaustedError: There is more than any node leaves.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(stat.S_IRWXU)  # nobody comes to a folder in it by its path
        empty_folder(self._root, max_entries=MAX_LEFT_ENTRIES)

    @contextmanager
    def promised(self, size_bytes: int) -> Iterator[None]:
        """Hold room on the disk for what one run may write.

        Raises:
            DiskFullError: There is none beside what other runs may still write; another node may have it.
        """
        disk = os.statvfs(self._root)
        free = disk.f_bavail * disk.f_frsize
        if free < self._promised_bytes + size_bytes + KEPT_FREE_BYTES:
            raise DiskFullError(f"no room for {size_bytes} bytes of scratch in {self._root}")
        self._promised_bytes += size_bytes
        try:
            yield
        finally:
            self._promised_bytes -= size_bytes

    def make(self) -> Path:
        """Return a new empty folder, for one worker to be given as a descriptor."""
        folder = Path(tempfile.mkdtemp(dir=self._root))
        self._made.add(folder)
        if os.geteuid() == 0:
            folder.chmod(0o777)  # the worker has no right of root, and need not be root's
        return folder

    def remove(self, folder: Path) -> None:
        """Remove a folder whose worker is gone."""
        empty_folder(folder, max_entries=MAX_LEFT_ENTRIES)
        folder.rmdir()
        self._made.discard(folder)

    def close(self) -> None:
        """End: remove what was made here, and nothing of whoever begins meanwhile."""
        for folder in tuple(self._made):
            self.remove(folder)


def empty_folder(folder: Path, *, max_entries: int) -> None:
    """Remove everything in a folder that its node alone may replace.

    Raises:
        ResourceExhaustedError: That takes more than `max_entries` looks; some of it is left.
        OSError: Something cannot be removed.
    """
    descriptor = _open_ours(str(folder), None)
    try:
        cleaning = _Cleaning(folder=descriptor, left=max_entries)
        while cleaning.look():
            pass
    finally:
        os.close(descriptor)


@dataclass(slots=True, kw_only=True)
class _Cleaning:
    """Emptying of one folder: directories within directories are moved up, and never entered there."""

    folder: int
    left: int

    def look(self) -> bool:
        """Remove what a first look finds; False when it found nothing."""
        found = False
        with os.scandir(self.folder) as entries:
            for entry in entries:
                found = True
                try:
                    if entry.is_dir(follow_symlinks=False):
                        self._remove_directory(entry.name)
                    else:
                        self._unlink(entry.name, self.folder)
                except OSError as error:
                    if error.errno not in _CHANGED:
                        raise
        return found

    def _unlink(self, name: str, folder: int) -> None:
        self._spend()
        os.unlink(name, dir_fd=folder)

    def _remove_directory(self, name: str) -> None:
        self._spend()
        directory = _open_ours(name, self.folder)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self._move_up(entry.name, directory)
                    else:
                        self._unlink(entry.name, directory)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=self.folder)

    def _move_up(self, name: str, directory: int) -> None:
        self._spend()
        # Moving a directory changes its "..", which needs the right to write there.
        os.close(_open_ours(name, directory))
        os.rename(name, f".up-{self.left}", src_dir_fd=directory, dst_dir_fd=self.folder)

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ResourceExhaustedError("a scratch folder holds more than its guest may make")


def _open_ours(name: str, folder: int | None) -> int:
    """Open a directory, whatever its permissions say: they are the guest's to set."""
    handle = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=folder)
    try:
        path = f"/proc/self/fd/{handle}"  # leads to this very directory, whatever its name means by now
        if stat.S_IMODE(os.fstat(handle).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(path, stat.S_IRWXU)  # noqa: PTH101 - of the descriptor
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)

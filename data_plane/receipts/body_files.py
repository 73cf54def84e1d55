"""Bodies of the spool that are files of their own. Knows nothing of records, segments and event loops.

A body goes when its receipt is acknowledged; the record of the receipt stays until its whole segment goes. A
mark in the place of the body tells the start after that from the loss of a body.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from data_plane.files import sync_folder, write_all
from data_plane.receipts.domain import Body, SpooledBody
from shared.errors import DiskFullError, NotFoundError, SpoolCorruptError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_MARK: Final = ".dropped"


class BodyFiles:
    """The folder of bodies. `read` is called from any thread, the others from the spool's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self.used_bytes = 0

    def write(self, bodies: Sequence[Body]) -> tuple[str, ...]:
        """Store bodies, synchronised; returns the files' names.

        Raises:
            DiskFullError: There is no space; none of them is stored.
        """
        names = tuple(file_name(body.commitment) for body in bodies)
        try:
            for name, body in zip(names, bodies, strict=True):
                _write_file(self._folder / name, body.content)
            if bodies:
                sync_folder(self._folder)
        except OSError as error:
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
            raise disk_full(error, self._folder) from error
        for name, body in zip(names, bodies, strict=True):
            self._note(name, len(body.content))
        return names

    def read(self, body: SpooledBody) -> bytes:
        """Return a body that has a file; see `Spool.read_body` for what is raised."""
        try:
            return (self._folder / file_name(body.commitment)).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"body {body.commitment} is not in the spool any more") from error

    def drop(self, names: Sequence[str]) -> None:
        """Give the room of bodies back and mark them as dropped. Takes no space, so a full disk can do it."""
        if not names:
            return
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).rename(self._folder / f"{name}{_MARK}")
        sync_folder(self._folder)  # a body must not be empty on the disk before it is marked there
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(self._folder / f"{name}{_MARK}", 0)
            self.used_bytes -= self._sizes.pop(name, 0)

    def forget(self, names: Iterable[str]) -> None:
        """Remove the marks of dropped bodies: no record names them any more."""
        for name in names:
            (self._folder / f"{name}{_MARK}").unlink(missing_ok=True)

    def recover(self, receipts: Mapping[int, tuple[str, ...]]) -> frozenset[int]:
        """Find the bodies of these receipts; returns those whose bodies were dropped. Removes the rest.

        Raises:
            SpoolCorruptError: A body is gone that was not dropped.
        """
        found = {path.name for path in self._folder.iterdir()}
        marked = {name.removesuffix(_MARK) for name in found if name.endswith(_MARK)}
        gone = frozenset(one for one, names in receipts.items() if not marked.isdisjoint(names))
        wanted = {name for one, names in receipts.items() if one not in gone for name in names}
        dropped = {f"{name}{_MARK}" for one in gone for name in receipts[one]}
        for name in found:
            path = self._folder / name
            if name in wanted:
                self._note(name, path.stat().st_size)
            elif name in dropped:
                os.truncate(path, 0)
            else:
                path.unlink()
        missing = wanted - self._sizes.keys()
        if missing:
            raise SpoolCorruptError(f"the spool lacks the body {min(missing)} of a receipt that it holds")
        return gone

    def _note(self, name: str, size_bytes: int) -> None:
        self._sizes[name] = size_bytes
        self.used_bytes += size_bytes


def file_name(commitment: str) -> str:
    """Return the name of the file of a body."""
    return hashlib.sha256(commitment.encode()).hexdigest()


def disk_full(error: OSError, folder: Path) -> Exception:
    """Return the typed error of a full disk; any other error as it is."""
    if error.errno in _FULL:
        return DiskFullError(f"no space for receipts left in {folder}")
    return error


def _write_file(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

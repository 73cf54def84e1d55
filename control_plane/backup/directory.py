"""Archives in a folder: one file each, whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from control_plane.backup.domain import Stored, is_archive
from shared.errors import AlreadyExistsError, InvalidInputError, NotFoundError, UnavailableError

_MODE = 0o600


class DirectoryPlace:
    """Implements `ArchivePlace`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        """See `ArchivePlace.name`."""
        return str(self._folder.resolve())

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """See `ArchivePlace.writing`."""
        path = self._path(name)
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            # link() refuses an existing target, rename() would replace it.
            os.link(temporary, path)
            _sync(self._folder)
        except FileExistsError as error:
            raise AlreadyExistsError(f"{path} exists and is not overwritten") from error
        except OSError as error:
            raise UnavailableError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """See `ArchivePlace.reading`."""
        path = self._path(name)
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no backup {path}", hint="agentfactory backup list") from error
        except OSError as error:
            raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error
        with file:
            yield file

    def all(self) -> Sequence[Stored]:
        """See `ArchivePlace.all`."""
        try:
            found = [
                Stored(name=one.name, size_bytes=one.stat().st_size)
                for one in self._folder.iterdir()
                if is_archive(one.name)
            ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnavailableError(f"{self._folder} cannot be read: {error.strerror}") from error
        return sorted(found, key=lambda one: one.name, reverse=True)

    def remove(self, name: str) -> None:
        """See `ArchivePlace.remove`."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise UnavailableError(f"{name} cannot be removed: {error.strerror}") from error

    def _path(self, name: str) -> Path:
        if not is_archive(name):
            raise InvalidInputError(f"{name[:80]!r} is no name of a backup", hint="agentfactory backup list")
        return self._folder / name


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Private key files: written once with mode 0600, read only when nobody else can. Prints no key material."""

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from shared.errors import AlreadyExistsError, KeyFileModeError, KeyFormatError, NotFoundError
from shared.signatures import MAX_PEM_BYTES, PrivateKey, PublicKey

SECRET_FILE_MODE: Final = 0o600

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_private_key(path: Path) -> PrivateKey:
    """Return the key in a file.

    Raises:
        NotFoundError: There is no such file, or it is no regular file.
        KeyFileModeError: Group or others have any right on it, or it belongs to another user than this
            process's or root.
        KeyFormatError: As `PrivateKey.from_pem`.
    """
    pem = read_secret_file(path, max_bytes=MAX_PEM_BYTES)
    try:
        return PrivateKey.from_pem(pem)
    except KeyFormatError as error:
        raise KeyFormatError(f"{path}: {error}") from error


def write_private_key(path: Path, key: PrivateKey) -> None:
    """Store a key under a path that is free, whole or not at all.

    Raises:
        AlreadyExistsError: The path is taken; a key is never overwritten.
    """
    write_secret_file(path, key.to_pem())


def read_public_key(path: Path) -> PublicKey:
    """Return the public key in a PEM file; anybody may read such a file.

    Raises:
        NotFoundError: There is no such file.
        KeyFormatError: As `PublicKey.from_pem`.
    """
    try:
        with path.open("rb") as file:
            pem = file.read(MAX_PEM_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError(f"there is no public key file {path}") from error
    try:
        return PublicKey.from_pem(pem)
    except KeyFormatError as error:
        raise KeyFormatError(f"{path}: {error}") from error


def read_secret_file(path: Path, *, max_bytes: int) -> bytes:
    """Return the bytes of a file that only its owner may read. The open file is checked, not the path.

    Raises:
        NotFoundError: There is no such file, or it is no regular file (a symbolic link included).
        KeyFileModeError: As `read_private_key`.
        KeyFormatError: It is larger than `max_bytes`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotFoundError(f"cannot read key file {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotFoundError(f"key file {path} is not a regular file")
        if found.st_mode & _OTHERS:
            raise KeyFileModeError(
                f"key file {path} has mode {stat.S_IMODE(found.st_mode):04o}, open to others than its owner",
                hint=f"chmod 600 {path}",
            )
        if found.st_uid not in {os.geteuid(), 0}:
            raise KeyFileModeError(
                f"key file {path} belongs to user {found.st_uid}, this process is user {os.geteuid()}",
                hint=f"chown {os.geteuid()} {path}",
            )
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise KeyFormatError(f"key file {path} is larger than {max_bytes} bytes")
    return data


def write_secret_file(path: Path, data: bytes) -> None:
    """Store bytes under a free path with mode 0600: written and synced beside it, then linked into place.

    Raises:
        AlreadyExistsError: The path is taken.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A random name, so that two processes that race to make a key do not share the half-written file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, SECRET_FILE_MODE
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        # link() refuses an existing target, rename() would replace it.
        os.link(temporary, path)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists and is not overwritten") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

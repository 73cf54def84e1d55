"""A policy bundle as a folder: its files, and beside them the envelope that signs them. Verifies nothing."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.errors import MalformedError, NotFoundError, PackageTooLargeError, UnsignedError
from shared.policy_bundle import (
    DATA_FILE,
    MAX_BUNDLE_BYTES,
    MAX_ENVELOPE_BYTES,
    MAX_FILES,
    check_files,
)

ENVELOPE_FILE: Final = "policy.dsse"
MAX_ENTRIES: Final = 1024
"""Files and folders looked at, whatever they are."""


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the bundle's files by path: every .rego below the folder, and its data.json.

    Other files are left out, as are hidden ones.

    Raises:
        NotFoundError: There is no such folder, or a file cannot be read or is a link.
        PackageTooLargeError, MalformedError, PackageTruncatedError: As `check_files`.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a folder", hint="make one with 'agentfactory policy init'")
    files: dict[str, bytes] = {}
    left = MAX_BUNDLE_BYTES
    for path in _found(folder):
        if len(files) == MAX_FILES:
            raise PackageTooLargeError(f"{folder} holds more than {MAX_FILES} files of a policy")
        content = read_regular(path, left)
        left -= len(content)
        files[path.relative_to(folder).as_posix()] = content
    check_files(files)
    return files


def read_envelope(folder: Path) -> bytes:
    """Return the envelope of a signed bundle.

    Raises:
        UnsignedError: There is none.
        PackageTooLargeError: It exceeds its bound.
    """
    path = folder / ENVELOPE_FILE
    if not path.exists():
        raise UnsignedError(f"policy {folder} is not signed", hint="sign it with 'agentfactory policy sign'")
    return read_regular(path, MAX_ENVELOPE_BYTES)


def write_envelope(folder: Path, envelope: bytes) -> Path:
    """Put the envelope beside the files that it signs, replacing an older one."""
    path = folder / ENVELOPE_FILE
    temporary = folder / f".{ENVELOPE_FILE}.tmp"
    temporary.write_bytes(envelope)
    temporary.replace(path)
    return path


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file, not by way of a link.

    Raises:
        NotFoundError: It cannot be read, or is something else.
        PackageTooLargeError: It has more bytes.
    """
    # O_NOFOLLOW: a bundle from somebody else must not name files of this machine.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotFoundError(f"{path} is not a regular file")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise PackageTooLargeError(
            f"{path} leads beyond {max_bytes} bytes; a policy has at most {MAX_BUNDLE_BYTES} together"
        )
    return data


def _found(folder: Path) -> Iterator[Path]:
    seen = 0
    for parent, folders, names in os.walk(folder, onerror=_refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            seen += 1
            if seen > MAX_ENTRIES:
                raise MalformedError(
                    f"{folder} holds more than {MAX_ENTRIES} files: it is no policy's folder"
                )
            path = Path(parent, name)
            if not name.startswith(".") and (name.endswith(".rego") or path == folder / DATA_FILE):
                yield path


def _refused(error: OSError) -> None:
    raise NotFoundError(f"cannot read {error.filename}: {error.strerror}") from error

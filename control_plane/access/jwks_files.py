"""Where issuers' keys lie on this machine: in a file."""

import asyncio
from pathlib import Path
from typing import Final

from shared.errors import UnavailableError

MAX_DOCUMENT_BYTES: Final = 256 * 1024


class FileKeys:
    """Keys in a file. Implements `KeySource`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> bytes:
        """See `KeySource.read`."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            raise UnavailableError(f"cannot read {self._path}: {error.strerror}") from error
        if len(data) > MAX_DOCUMENT_BYTES:
            raise UnavailableError(f"{self._path} has more than {MAX_DOCUMENT_BYTES} bytes")
        return data

"""Key-encryption keys in files of the data folder, for development and single machines."""

import asyncio
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from control_plane.body_keys.domain import KEY_BYTES, BodyKeyId
from shared.errors import AgentFactoryError, AlreadyExistsError, KeyUnavailableError
from shared.key_files import read_secret_file, write_secret_file

_NONCE_BYTES: Final = 12
_CONTEXT: Final = b"af-body-key-v1:"


class FileWrapping:
    """Implements `KeyWrapping`: ``<name>.key`` of a folder, 32 random bytes, mode 0600."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def prepare(self, name: str) -> None:
        """See `KeyWrapping.prepare`."""
        await asyncio.to_thread(self._prepare, name)

    async def wrap(self, name: str, key_id: BodyKeyId, key: bytes) -> bytes:
        """See `KeyWrapping.wrap`. A random nonce: a key-encryption key wraps a handful of keys."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + (await self._cipher(name)).encrypt(nonce, key, _CONTEXT + key_id.encode())

    async def unwrap(self, name: str, key_id: BodyKeyId, wrapped: bytes) -> bytes:
        """See `KeyWrapping.unwrap`."""
        cipher = await self._cipher(name)
        nonce, sealed = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, sealed, _CONTEXT + key_id.encode())
        except (InvalidTag, ValueError) as error:
            raise KeyUnavailableError(f"{name}.key does not open body key {key_id}") from error

    async def destroy(self, name: str) -> None:
        """See `KeyWrapping.destroy`. The file goes; what a disk keeps of it is for who runs the disk."""
        try:
            await asyncio.to_thread(self._path(name).unlink, missing_ok=True)
        except OSError as error:
            raise KeyUnavailableError(f"{name}.key cannot be removed: {error.strerror}") from error

    async def _cipher(self, name: str) -> AESGCM:
        try:
            key = await asyncio.to_thread(read_secret_file, self._path(name), max_bytes=KEY_BYTES)
        except AgentFactoryError as error:
            raise KeyUnavailableError(str(error), hint=error.hint) from error
        if len(key) != KEY_BYTES:
            raise KeyUnavailableError(f"{name}.key holds no key of {KEY_BYTES} bytes")
        return AESGCM(key)

    def _prepare(self, name: str) -> None:
        path = self._path(name)
        if path.exists():
            return
        try:
            write_secret_file(path, secrets.token_bytes(KEY_BYTES))
        except AlreadyExistsError:
            return  # another replica was first
        except OSError as error:
            raise KeyUnavailableError(f"{path} cannot be written: {error.strerror}") from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.key"

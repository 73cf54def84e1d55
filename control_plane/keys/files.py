"""Custody in files of mode 0600 in the data folder: for development, and for one machine.

Implements `KeyCustody`. A key is read once and held in memory; there is one file for each key, numbered from
the second on.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control_plane.keys.domain import CustodyKey, require_custody
from shared.errors import AgentFactoryError, AlreadyExistsError, KeyUnavailableError
from shared.key_files import read_private_key, write_private_key
from shared.keyset import KeyPurpose
from shared.signatures import Algorithm, PrivateKey, Signature

MAX_KEYS: Final = 64
"""Of one purpose."""


class FileCustody:
    """Keys of a folder: ``order.key``, then ``order-2.key`` and so on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[Path, PrivateKey] = {}

    async def keys(self, purpose: KeyPurpose) -> Sequence[CustodyKey]:
        """See `KeyCustody.keys`."""
        require_custody(purpose)
        return await asyncio.to_thread(self._read_all, purpose)

    async def create(self, purpose: KeyPurpose) -> CustodyKey:
        """See `KeyCustody.create`."""
        algorithm = require_custody(purpose)
        return await asyncio.to_thread(self._create, purpose, algorithm)

    async def sign(self, key: CustodyKey, data: bytes) -> Signature:
        """See `KeyCustody.sign`. At once, on the loop: a thread would cost more than the 0.3 ms."""
        path = self._path(key.purpose, key.version)
        held = self._held.get(path)
        if held is None:
            held = await asyncio.to_thread(self._read, path)
        if held.key_id != key.key_id:
            raise KeyUnavailableError(f"{key.name} holds another key than {key.key_id}")
        return Signature(key_id=key.key_id, key_version=key.version, value=held.sign(data))

    async def check(self) -> None:
        """See `KeyCustody.check`."""
        await self.keys(KeyPurpose.ORDER)

    def require_usable(self, purpose: KeyPurpose) -> None:
        """Return when every key of a purpose can be read, and there is one: for a start that says why not.

        Raises:
            NotFoundError, KeyFileModeError, KeyFormatError: There is none, or one is not as it must be.
        """
        version = 1
        while version == 1 or self._path(purpose, version).exists():
            read_private_key(self._path(purpose, version))
            version += 1

    def _read_all(self, purpose: KeyPurpose) -> list[CustodyKey]:
        found = []
        for version in range(1, MAX_KEYS + 1):
            path = self._path(purpose, version)
            if not path.exists():
                break
            public = self._read(path).public
            found.append(CustodyKey(purpose=purpose, name=path.name, version=version, public=public))
        return found

    def _create(self, purpose: KeyPurpose, algorithm: Algorithm) -> CustodyKey:
        made = (
            PrivateKey.generate_rsa()
            if algorithm is Algorithm.RSA_PKCS1_SHA256
            else PrivateKey.generate_ed25519()
        )
        for version in range(len(self._read_all(purpose)) + 1, MAX_KEYS + 1):
            path = self._path(purpose, version)
            try:
                write_private_key(path, made)
            except AlreadyExistsError:
                continue  # somebody else was first
            except OSError as error:
                raise KeyUnavailableError(f"{path} cannot be written: {error.strerror}") from error
            self._held[path] = made
            return CustodyKey(purpose=purpose, name=path.name, version=version, public=made.public)
        raise KeyUnavailableError(
            f"{self._folder} holds {MAX_KEYS} keys of purpose {purpose}",
            hint="remove those that have ended, and number the others anew",
        )

    def _read(self, path: Path) -> PrivateKey:
        try:
            key = read_private_key(path)
        except AgentFactoryError as error:
            raise KeyUnavailableError(str(error), hint=error.hint) from error
        return self._held.setdefault(path, key)

    def _path(self, purpose: KeyPurpose, version: int) -> Path:
        return self._folder / (f"{purpose}.key" if version == 1 else f"{purpose}-{version}.key")

"""Key-encryption keys in the transit engine of Vault or OpenBao: they never leave it."""

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

import hvac

from control_plane.body_keys.domain import KEY_BYTES, BodyKeyId
from shared.errors import KeyUnavailableError, NotFoundError
from shared.vault import VaultClient

KEY_TYPE: Final = "aes256-gcm96"


class VaultWrapping:
    """Implements `KeyWrapping` with keys ``<prefix>-<name>`` of one transit engine."""

    def __init__(self, vault: VaultClient, *, mount: str = "transit", prefix: str = "agentfactory") -> None:
        self._vault = vault
        self._mount = mount
        self._prefix = prefix

    async def prepare(self, name: str) -> None:
        """See `KeyWrapping.prepare`. It may be deleted from the first: that is what it is for."""
        if await self._is_there(name):
            return
        path = self._path(name)

        def make(client: hvac.Client) -> None:
            transit = client.secrets.transit
            transit.create_key(path, key_type=KEY_TYPE, exportable=False, mount_point=self._mount)

        await self._vault.call(make)

    async def wrap(self, name: str, key_id: BodyKeyId, key: bytes) -> bytes:
        """See `KeyWrapping.wrap`."""
        answer = await self._asked(
            name,
            lambda client: client.secrets.transit.encrypt_data(
                self._path(name),
                plaintext=_text(key),
                associated_data=_text(key_id.encode()),
                mount_point=self._mount,
            ),
        )
        ciphertext = _field(answer, "ciphertext")
        if not ciphertext.startswith("vault:v"):
            raise KeyUnavailableError("the vault's answer holds no ciphertext")
        return ciphertext.encode("ascii")

    async def unwrap(self, name: str, key_id: BodyKeyId, wrapped: bytes) -> bytes:
        """See `KeyWrapping.unwrap`."""
        answer = await self._asked(
            name,
            lambda client: client.secrets.transit.decrypt_data(
                self._path(name),
                ciphertext=wrapped.decode("ascii", "replace"),
                associated_data=_text(key_id.encode()),
                mount_point=self._mount,
            ),
        )
        try:
            key = base64.b64decode(_field(answer, "plaintext"), validate=True)
        except binascii.Error as error:
            raise KeyUnavailableError("the vault's answer is not base64") from error
        if len(key) != KEY_BYTES:
            raise KeyUnavailableError(f"the vault's answer is no key of {KEY_BYTES} bytes")
        return key

    async def destroy(self, name: str) -> None:
        """See `KeyWrapping.destroy`."""
        if not await self._is_there(name):
            return
        path = self._path(name)

        def delete(client: hvac.Client) -> None:
            transit = client.secrets.transit
            transit.update_key_configuration(path, deletion_allowed=True, mount_point=self._mount)
            transit.delete_key(path, mount_point=self._mount)

        await self._vault.call(delete)

    async def _is_there(self, name: str) -> bool:
        path = self._path(name)
        try:
            await self._vault.call(
                lambda client: client.secrets.transit.read_key(path, mount_point=self._mount)
            )
        except NotFoundError:
            return False
        return True

    async def _asked(self, name: str, work: Callable[[hvac.Client], Any]) -> Any:
        try:
            return await self._vault.call(work)
        except NotFoundError as error:
            raise KeyUnavailableError(f"the vault holds no key {self._path(name)}") from error

    def _path(self, name: str) -> str:
        return f"{self._prefix}-{name}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _field(answer: Any, name: str) -> str:
    try:
        return str(answer["data"][name])
    except (KeyError, TypeError) as error:
        raise KeyUnavailableError(f"the vault's answer holds no {name}") from error

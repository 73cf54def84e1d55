"""Secrets from a file that only its owner may read: `{tenant: {name: {"value", "urls"}}}`.

Read again when it changes.
"""

import asyncio
from pathlib import Path
from typing import Final

from data_plane.host_calls.secrets import MAX_SECRET_CHARS, MIN_SECRET_CHARS, Secret
from shared.canonical import parse_strict
from shared.errors import (
    AgentFactoryError,
    HostCallRefusedError,
    KeyFormatError,
    MalformedError,
    UnavailableError,
)
from shared.fields import Fields
from shared.ids import TenantId
from shared.key_files import read_secret_file
from shared.logs import get_logger
from shared.manifest import SECRET_NAME
from shared.urls import parse_url

logger = get_logger(__name__)

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_URLS: Final = 16

_Stamp = tuple[int, int, int]
_Secrets = dict[tuple[str, str], Secret]


class NoSecrets:
    """Implements `SecretStore` for a node without any."""

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:  # noqa: ARG002 - the port's
        """See `SecretStore.find`."""
        return None


class SecretsFile:
    """Implements `SecretStore`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: _Stamp | None = None
        self._secrets: _Secrets = {}

    def load(self) -> None:
        """Read the file if it changed.

        Raises:
            NotFoundError, KeyFileModeError, KeyFormatError: It is not there, others may read it, or it is not
                of the form above. No message holds a value.
        """
        stamp = self._look()
        if stamp is None or stamp != self._stamp:
            self._secrets = _parse(read_secret_file(self._path, max_bytes=MAX_FILE_BYTES), self._path)
            self._stamp = stamp

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:
        """See `SecretStore.find`."""
        try:
            await asyncio.to_thread(self.load)
        except AgentFactoryError as error:
            # Fail closed: an old value may be the one that was taken back.
            logger.warning("the secrets cannot be read", error=str(error))
            raise UnavailableError("the node's secrets cannot be read now") from error
        return self._secrets.get((tenant_id, name))

    def names(self, tenant_id: TenantId) -> tuple[str, ...]:
        """Return the names of a tenant's secrets as they were when last read."""
        return tuple(name for tenant, name in self._secrets if tenant == tenant_id)

    def _look(self) -> _Stamp | None:
        try:
            found = self._path.lstat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _parse(data: bytes, path: Path) -> _Secrets:
    try:
        tenants = parse_strict(data, max_bytes=MAX_FILE_BYTES)
        return {
            (tenant, name): _secret(Fields(entry, f"{tenant}.{name}", error=MalformedError), name)
            for tenant, entries in tenants.items()
            for name, entry in _object(entries, tenant).items()
        }
    except KeyFormatError:
        raise
    except AgentFactoryError as error:
        raise KeyFormatError(f"{path} does not hold secrets: {error}") from error


def _object(value: object, name: str) -> dict[str, dict[str, object]]:
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise KeyFormatError(f"secrets of {name} are not objects by name")
    return value


def _secret(entry: Fields, name: str) -> Secret:
    if not SECRET_NAME.fullmatch(name):
        raise entry.invalid("name", "is not of the form [a-z][a-z0-9-]{0,62}")
    value = entry.text("value", max_chars=MAX_SECRET_CHARS)
    if len(value) < MIN_SECRET_CHARS or not value.isascii() or not value.isprintable():
        raise entry.invalid("value", f"does not have {MIN_SECRET_CHARS} printable ASCII characters or more")
    try:
        urls = tuple(map(parse_url, entry.texts("urls", max_items=MAX_URLS, max_chars=2048)))
    except HostCallRefusedError as error:
        raise entry.invalid("urls", f"hold a URL that is none: {error}") from error
    if not urls:
        raise entry.invalid("urls", "are empty: the secret could go nowhere")
    entry.end()
    return Secret(value=value, urls=urls)

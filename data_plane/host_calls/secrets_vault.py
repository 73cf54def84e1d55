"""Secrets from the key-value engine (version 2) of Vault or OpenBao: `<prefix>/<tenant>/<name>`.

Each holds the fields `value` and `urls`, the URL prefixes that it may go to, one a line. Asked for when a
call needs one and remembered for some seconds, in this process alone; stored nowhere.
"""

import asyncio
from collections import OrderedDict
from datetime import timedelta
from typing import Any, Final

import hvac

from data_plane.host_calls.secrets import MAX_SECRET_CHARS, MIN_SECRET_CHARS, Secret
from data_plane.host_calls.secrets_file import MAX_URLS
from shared.clock import Clock
from shared.errors import HostCallRefusedError, NotFoundError, UnavailableError
from shared.ids import TenantId
from shared.logs import get_logger
from shared.manifest import SECRET_NAME
from shared.urls import parse_url
from shared.vault import VaultClient

logger = get_logger(__name__)

REMEMBERED_FOR: Final = timedelta(seconds=5)
"""How long a value that was taken back may still be used."""
MAX_REMEMBERED: Final = 1024
MAX_URL_CHARS: Final = 2048
MAX_TENANT_CHARS: Final = 128

_Key = tuple[TenantId, str]


class VaultSecrets:
    """Implements `SecretStore`."""

    def __init__(
        self, vault: VaultClient, *, clock: Clock, mount: str = "secret", prefix: str = "agentfactory"
    ) -> None:
        self._vault = vault
        self._clock = clock
        self._mount = mount
        self._prefix = prefix
        self._remembered: OrderedDict[_Key, tuple[float, Secret | None]] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[Secret | None]] = {}

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:
        """See `SecretStore.find`. Several that ask for the same at once ask the vault once."""
        if not SECRET_NAME.fullmatch(name) or not _is_one_segment(tenant_id):
            return None
        key = (tenant_id, name)
        remembered = self._remembered.get(key)
        if remembered is not None and self._clock.monotonic() < remembered[0]:
            return remembered[1]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        # Whoever asks may be cancelled with its guest; the others wait on.
        return await asyncio.shield(asking)

    async def _ask(self, key: _Key) -> Secret | None:
        path = f"{self._prefix}/{key[0]}/{key[1]}"

        def read(client: hvac.Client) -> Any:
            return client.secrets.kv.v2.read_secret_version(
                path, mount_point=self._mount, raise_on_deleted_version=True
            )

        until = self._clock.monotonic() + REMEMBERED_FOR.total_seconds()
        try:
            secret = _secret(await self._vault.call(read), path)
        except NotFoundError:
            secret = None
        self._remembered[key] = (until, secret)
        self._remembered.move_to_end(key)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return secret


def _is_one_segment(tenant_id: str) -> bool:
    """Whether a tenant's name is one part of a path: another's secrets are not reached through it."""
    return (
        0 < len(tenant_id) <= MAX_TENANT_CHARS
        and tenant_id.isascii()
        and all(one.isalnum() or one in "._-" for one in tenant_id)
        and not tenant_id.startswith(".")
    )


def _secret(answer: object, path: str) -> Secret:
    """Return the secret in an answer. No message holds a value.

    Raises:
        UnavailableError: It is none that may be used.
    """
    try:
        fields = answer["data"]["data"]  # type: ignore[index]
        value, urls = fields["value"], fields["urls"].split()
    except (KeyError, TypeError, AttributeError):
        raise _unusable(path, "lacks the field 'value' or 'urls'") from None
    if not isinstance(value, str) or not MIN_SECRET_CHARS <= len(value) <= MAX_SECRET_CHARS:
        raise _unusable(path, f"has no value of {MIN_SECRET_CHARS} to {MAX_SECRET_CHARS} characters")
    if not value.isascii() or not value.isprintable():
        raise _unusable(path, "has a value that is not printable ASCII")
    if not 1 <= len(urls) <= MAX_URLS or any(len(url) > MAX_URL_CHARS for url in urls):
        raise _unusable(path, f"names no URL, or more than {MAX_URLS}")
    try:
        return Secret(value=value, urls=tuple(map(parse_url, urls)))
    except HostCallRefusedError:
        raise _unusable(path, "names a URL that is none") from None


def _unusable(path: str, problem: str) -> UnavailableError:
    logger.warning("a secret of the vault cannot be used", path=path, problem=problem)
    return UnavailableError(f"the secret {path} {problem}")

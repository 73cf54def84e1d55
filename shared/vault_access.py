"""Where a Vault or OpenBao server is and who logs in there. Loads no client of it."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from shared.errors import SettingsError

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultAccess:
    """Where the server is and who logs in there."""

    url: str
    role_id: str
    secret_id_file: Path
    """Mode 0600; read at each login, so that it can be replaced."""
    approle_mount: str = "approle"
    namespace: str | None = None
    ca_file: Path | None = None
    """Certificates that the server's is checked against; absent: the system's."""
    timeout: timedelta = timedelta(seconds=3)
    """Of one request."""

    def __post_init__(self) -> None:
        """Refuse what would send a secret in the clear, or nowhere.

        Raises:
            SettingsError: The URL is none, or is neither https nor of this machine; there is no role.
        """
        url = urlsplit(self.url)
        if url.scheme not in {"http", "https"} or not url.hostname or url.query or url.username:
            raise SettingsError(f"{self.url[:128]!r} is no URL of a vault such as https://vault.test:8200")
        if url.scheme == "http" and url.hostname not in LOOPBACK:
            raise SettingsError(
                f"{url.hostname[:128]} would be sent secrets in the clear", hint="use https, or a local proxy"
            )
        if not self.role_id:
            raise SettingsError("the vault is named and no role that logs in there")

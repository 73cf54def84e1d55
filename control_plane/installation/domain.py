"""An installation and what its birth asks for. No I/O, no clock."""

import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from shared.errors import InvalidInputError
from shared.ids import InstallationId, KeyId, TenantId
from shared.paths import InstallationPaths

DEFAULT_INSTALLATION: Final = InstallationId("local")
DEFAULT_TENANT: Final = TenantId("default")
DEFAULT_SERVER_NAMES: Final = ("localhost", "127.0.0.1", "::1")
DEFAULT_ADMIN: Final = "admin"
CONTROL_PLANE_SERVICE: Final = "control-plane"

ORDER_KEY_LIFE: Final = timedelta(days=730)
POLICY_KEY_LIFE: Final = timedelta(days=730)
PUBLISHER_KEY_LIFE: Final = timedelta(days=1825)
SERVER_CERTIFICATE_LIFE: Final = timedelta(days=30)
CLIENT_CERTIFICATE_LIFE: Final = timedelta(days=90)
RENEW_BELOW: Final = 1 / 3
"""A certificate with less than this share of its life left is replaced."""

BACKDATE: Final = timedelta(seconds=30)
"""Keys are valid from a little earlier: clocks may be apart by the skew that is allowed."""

BOOTSTRAP_LIFE: Final = timedelta(hours=24)
BOOTSTRAP_SECRET_BYTES: Final = 32
BOOTSTRAP_PREFIX: Final = "afb_"

_INSTALLATION: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_CALLER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitRequest:
    """What `agentfactory init` is told."""

    data_dir: Path
    owner_database_url: str = field(repr=False)
    """Of the role that owns the schema; the control plane itself logs in as another one."""
    installation: InstallationId = DEFAULT_INSTALLATION
    server_names: tuple[str, ...] = DEFAULT_SERVER_NAMES
    """DNS names and addresses under which the control plane is reached."""
    admin: str = DEFAULT_ADMIN
    bootstrap_life: timedelta | None = None
    """Make a bootstrap secret that lives so long, when the installation is new; None: make none."""
    service_password: str | None = field(default=None, repr=False)
    """Set for the service's database role; None leaves how it logs in to the operator of Postgres."""

    def __post_init__(self) -> None:
        if not _INSTALLATION.fullmatch(self.installation):
            raise InvalidInputError(
                f"{self.installation[:80]!r} is not an installation's name: [a-z0-9][a-z0-9._-]{{0,62}}"
            )
        if not _CALLER.fullmatch(self.admin):
            raise InvalidInputError(f"{self.admin[:80]!r} is not a caller's name: letters, digits, . _ -")
        if not self.server_names:
            raise InvalidInputError("the control plane needs at least one server name")

    @property
    def paths(self) -> InstallationPaths:
        """Where its files go."""
        return InstallationPaths(data_dir=self.data_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialized:
    """What `initialize` leaves behind, or found."""

    installation: InstallationId
    paths: InstallationPaths
    root_key_id: KeyId
    order_key_id: KeyId
    keyset_version: int
    admin_identity: str
    created: bool
    """False: everything was there already."""
    bootstrap_secret: str | None = field(default=None, repr=False)
    """Shown once; only its hash is stored."""

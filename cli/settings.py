"""Settings of the command line (AF_CLI_…, table [cli]) and where its client files lie. Reads no key."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Final

import typer
from pydantic import Field, SecretStr

from shared.errors import SettingsError
from shared.settings import Plane, PlaneSettings, default_config_file, default_data_dir, load_settings

DEFAULT_TARGET: Final = "127.0.0.1:7443"
DEFAULT_TLS_TARGET: Final = "127.0.0.1:7445"

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="State of the installation (AF_CLI_DATA_DIR).", show_default=False),
]
Target = Annotated[
    str | None,
    typer.Option("--target", help="host:port of the control plane (AF_CLI_TARGET).", show_default=False),
]


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="postgresql://… of the role that owns the schema (AF_CLI_OWNER_DATABASE_URL).",
        show_default=False,
    ),
]


class CliSettings(PlaneSettings):
    """What the command line may be told by environment or file."""

    plane: ClassVar[Plane] = Plane.CLI

    data_dir: Path = Field(default_factory=default_data_dir)
    target: str | None = None
    """Control plane; unset: the one that `up` started on this data folder, else 127.0.0.1:7443."""
    client: str = Field(default="admin", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Name of the client certificate in <data dir>/clients."""
    token: SecretStr | None = None
    """Be the bearer of this token, on the port without client certificates, not the certificate's client."""
    tenant: str = Field(default="", max_length=64)
    """Tenant to act in, where the identity is bound in several."""
    owner_database_url: SecretStr | None = None
    """For `init`, `keys trust`, `retention run`, `backup`: postgresql://… as the schema's owner."""
    backup_place: str = Field(default="", max_length=1024)
    """Where backups are kept: a folder, or s3://bucket/prefix."""
    postgres_programs: Path | None = None
    """Folder of pg_dump and pg_restore; unset: of the embedded Postgres, PATH, Debian's packages."""
    call_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0), le=timedelta(hours=1))
    """Deadline of one call that is not told otherwise."""


def read_settings(data_dir: Path | None = None, target: str | None = None) -> CliSettings:
    """Return the settings: options over environment over ./agentfactory.toml over defaults.

    Raises:
        SettingsError: Something in them is unknown or refused.
    """
    return load_settings(
        CliSettings,
        config_file=default_config_file(Path.cwd()),
        overrides={"data_dir": data_dir, "target": target},
    )


def owner_database_url(settings: CliSettings, option: str | None) -> str:
    """Return the URL of the schema's owner, from the option or the settings.

    Raises:
        SettingsError: Neither names one.
    """
    if option is not None:
        return option
    if settings.owner_database_url is None:
        raise SettingsError("no database is named: use --database-url or AF_CLI_OWNER_DATABASE_URL")
    return settings.owner_database_url.get_secret_value()

"""`agentfactory init`: makes an installation for a Postgres that is there. Starts nothing."""

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.settings import DatabaseUrl, DataDir, owner_database_url, read_settings
from shared.key_files import read_secret_file

MAX_PASSWORD_BYTES: Final = 1024

PasswordFile = Annotated[
    Path | None,
    typer.Option("--service-password-file", help="Holds the password that af_service gets; mode 0600."),
]

app = typer.Typer(add_completion=False)


@app.command()
def init(
    name: Annotated[str, typer.Option("--name", help="Name of the installation.")] = "local",
    server_name: Annotated[
        list[str] | None, typer.Option("--server-name", help="Name of the control plane; repeatable.")
    ] = None,
    service_password_file: PasswordFile = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make keys, certificates, database schema and the first administrator, as far as they are missing.

    Example: agentfactory init --database-url postgresql://owner@/agentfactory?host=/run/postgresql
    """
    from control_plane.installation.domain import BOOTSTRAP_LIFE, DEFAULT_SERVER_NAMES, InitRequest
    from control_plane.setup import initialize
    from shared.ids import InstallationId

    settings = read_settings(data_dir)
    request = InitRequest(
        data_dir=settings.data_dir,
        owner_database_url=owner_database_url(settings, database_url),
        installation=InstallationId(name),
        server_names=tuple(server_name) if server_name else DEFAULT_SERVER_NAMES,
        bootstrap_life=BOOTSTRAP_LIFE,
        service_password=read_password(service_password_file) if service_password_file else None,
    )
    made = asyncio.run(initialize(request))
    if output.wants_json():
        output.data(
            {
                "installation": made.installation,
                "created": made.created,
                "root_key_id": made.root_key_id,
                "order_key_id": made.order_key_id,
                "keyset_version": made.keyset_version,
                "admin": made.admin_identity,
                "bootstrap_secret": made.bootstrap_secret,
            }
        )
        return
    output.note(f"{'made' if made.created else 'found'} installation {made.installation}")
    output.fields(
        [
            ("root key", f"{made.paths.root_key} ({made.root_key_id}); move it to a safe place offline"),
            ("order key", made.order_key_id),
            ("keyset", f"version {made.keyset_version}"),
            ("admin", made.admin_identity),
            ("trust for nodes", made.paths.data_dir / "trust.json"),
            ("bootstrap secret", made.bootstrap_secret),
        ]
    )
    if made.bootstrap_secret is not None:
        output.note(
            "the bootstrap secret is shown this once, makes one identity an administrator and expires in "
            "24 hours: agentfactory access bootstrap"
        )


def read_password(path: Path) -> str:
    """Return the password that a file of mode 0600 holds."""
    return read_secret_file(path, max_bytes=MAX_PASSWORD_BYTES).decode().strip()

"""`agentfactory migrate`: brings the schema forward, before new control planes start. Starts nothing."""

import asyncio

import typer

from cli import output
from cli.init import PasswordFile, read_password
from cli.output import Json
from cli.settings import DatabaseUrl, owner_database_url, read_settings

app = typer.Typer(add_completion=False)


@app.command()
def migrate(
    service_password_file: PasswordFile = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Bring the database's schema to this version and nothing else; needs no key. Older control planes go on.

    Example: agentfactory migrate --database-url postgresql://owner@/agentfactory?host=/run/postgresql
    """
    from control_plane.setup import migrate as migrate_in

    url = owner_database_url(read_settings(), database_url)
    password = read_password(service_password_file) if service_password_file else None
    revision = asyncio.run(migrate_in(url, service_password=password))
    if output.wants_json():
        output.data({"schema": revision})
        return
    output.note(f"the database has schema {revision}")

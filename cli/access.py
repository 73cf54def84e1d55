"""`agentfactory access …`: who may do what."""

from datetime import timedelta
from typing import Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, read_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Tokens, roles and who holds them.")


@app.command()
def token(
    minutes: Annotated[float, typer.Option("--ttl", min=0.1, max=1440, help="Life in minutes.")] = 60.0,
    tenant: Annotated[str, typer.Option("--tenant", help="The one tenant that it counts in.")] = "",
    subject: Annotated[
        str | None, typer.Option("--subject", help="Who it names; default: the client's name.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sign a bearer token with the key in the data folder; it names oidc:local/SUBJECT.

    Example: agentfactory access token --ttl 15
    """
    from cli.local_token import make_token
    from shared.local_tokens import identity_of
    from shared.paths import InstallationPaths

    settings = read_settings(data_dir)
    name = subject or settings.client
    made = make_token(
        InstallationPaths(data_dir=settings.data_dir),
        subject=name,
        life=timedelta(minutes=minutes),
        tenant=tenant,
    )
    if output.wants_json():
        output.data({"token": made, "identity": identity_of(name), "tenant": tenant})
        return
    output.note(f"names {identity_of(name)}, valid for {minutes:g} minutes")
    print(made)

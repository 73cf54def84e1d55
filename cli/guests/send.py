"""`agentfactory sign` and `publish`: the package that `build` made of a folder, signed and sent."""

from pathlib import Path
from typing import Annotated

import typer

from cli import output, templates
from cli.guests.make import Folder
from cli.output import Json
from cli.settings import DataDir, Target, read_settings
from shared.errors import NotFoundError
from shared.package_files import read_author

sign_app = typer.Typer(add_completion=False)
publish_app = typer.Typer(add_completion=False)


def package_folder(folder: Path) -> Path:
    """Return where `build` put the package of a folder as it is now.

    Raises:
        NotFoundError: It was not built.
    """
    author = read_author(folder)
    package = folder / "build" / f"{author.name}-{author.version}.template"
    if not package.is_dir():
        raise NotFoundError(f"{package} is not there", hint=f"build it first: agentfactory build {folder}")
    return package


@sign_app.command()
def sign(
    folder: Folder = Path(),
    key: Annotated[Path | None, typer.Option("--key", help="Publisher's private key (PEM, 0600).")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sign what `build` made of a folder. The same as: template sign PACKAGE.

    Example: agentfactory sign my-agent
    """
    templates.sign(package_folder(folder), key, data_dir, as_json)


@publish_app.command()
def publish(
    folder: Folder = Path(),
    create: Annotated[
        bool, typer.Option("--agent/--no-agent", help="Also make an agent of the template's name.")
    ] = True,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Send what was signed to the registry; make an agent of its name where there is none, for `run NAME`.

    A repeat changes nothing. An agent that exists stays at its version: `agent update` or a rollout moves it.

    Example: agentfactory publish my-agent
    """
    from cli.agents import create_agent
    from shared.errors import AlreadyExistsError

    settings = read_settings(data_dir, target)
    version = templates.publish_package(settings, package_folder(folder))
    reference, words = f"{version.name}@{version.version}", ""
    if create:
        try:
            made = create_agent(settings, version.name, reference, b"{}")
            words = f"agent {made.name} runs {made.template_name} {made.template_version}"
        except AlreadyExistsError:
            words = (
                f"agent {version.name} exists and stays: agent update {version.name} --template {reference}"
            )
    if output.wants_json():
        output.message(version)
        return
    output.note(f"published {reference}")
    if words:
        output.note(words)
    print(version.digest)

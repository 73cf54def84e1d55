"""`agentfactory build`: an author's folder becomes an unsigned package."""

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import output
from cli.guests.build import Built, Progress, Workshop, package_of
from cli.guests.project import Project, find_project
from cli.output import Json
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.package_files import (
    ENVELOPE_FILE,
    holds_package,
    package_folder_name,
    read_author,
    write_package,
)
from shared.packages import UnsignedPackage

app = typer.Typer(add_completion=False)

Folder = Annotated[Path, typer.Argument(help="Folder with agent.toml and the agent.", file_okay=False)]
Out = Annotated[
    Path | None, typer.Option("--out", help="Where the package goes; absent: build/ in the folder.")
]


@app.command()
def build(
    folder: Folder = Path(),
    out: Out = None,
    parent: Annotated[
        Path | None,
        typer.Option("--parent", help="Package that it extends; absent: asked of the registry.", exists=True),
    ] = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Build an agent: its runtime is started once with all that it imports, and saved as a module.

    The same files give the same bytes. A package that is signed is not replaced: raise the version.

    Example: agentfactory build my-agent
    """
    began = time.monotonic()
    settings = read_settings(data_dir, target)
    project = find_project(folder)
    built, package = build_project(settings, project, parent)
    written = keep_package(package, out or folder / "build")
    took = time.monotonic() - began
    if output.wants_json():
        told = {"package": str(written), "digest": package.digest, "module_bytes": len(built.module)}
        output.data(told | {"unchanged": not built.is_new, "seconds": round(took, 3)})
        return
    words = "built" if built.is_new else "unchanged:"
    output.note(
        f"{words} {package.manifest.name} {package.manifest.version} {package.digest} "
        f"({len(built.module) / 1e6:.1f} MB, {took:.1f} s)"
    )
    print(written)


def build_project(
    settings: CliSettings, project: Project, parent: Path | None = None
) -> tuple[Built, UnsignedPackage]:
    """Return module and package of a folder, with a progress bar meanwhile where somebody looks."""
    from cli.template_parents import find_parent

    extends = read_author(project.folder).extends
    inherited = None if extends is None else find_parent(extends, parent, settings)
    with progress() as tell:
        workshop = Workshop(cache=settings.cache_dir, runtimes=settings.runtimes, progress=tell)
        built = workshop.build(project)
    return built, package_of(project, built, inherited)


def keep_package(package: UnsignedPackage, out: Path) -> Path:
    """Write the package in place of one that nobody has signed; return its folder.

    Raises:
        AlreadyExistsError: There is a signed one of this version with another content.
    """
    out.mkdir(parents=True, exist_ok=True)
    older = out / package_folder_name(package.manifest)
    if older.is_dir() and not older.is_symlink() and not (older / ENVELOPE_FILE).exists():
        if holds_package(older, package):
            return older
        shutil.rmtree(older)
    return write_package(package, out)


class progress:  # noqa: N801 - reads as a statement
    """A line on a terminal that says what is done now; nothing where nobody looks or nothing is done."""

    def __init__(self) -> None:
        self._status: Any = None

    def __enter__(self) -> Progress:
        return (lambda _: None) if output.wants_json() or not sys.stderr.isatty() else self._tell

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def _tell(self, what: str) -> None:
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status(what)
            self._status.start()
        self._status.update(what)

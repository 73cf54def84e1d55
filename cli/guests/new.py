"""`agentfactory new NAME`: a folder that builds and runs as it is."""

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from cli import output
from cli.guests.project import MAIN_FILES, Language
from cli.output import Json
from shared.errors import AlreadyExistsError, InvalidInputError

app = typer.Typer(add_completion=False)

STARTERS: Final = Path(__file__).parent / "starters"
MEMORY_BYTES: Final = {
    Language.PYTHON: 64 * 1024 * 1024,
    Language.JAVASCRIPT: 16 * 1024 * 1024,
    Language.C: 4 * 1024 * 1024,
}


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the template and its folder.")],
    language: Annotated[
        Language, typer.Option("--lang", help="What the agent is written in.")
    ] = Language.JAVASCRIPT,
    parent: Annotated[Path, typer.Option("--in", help="Where to make the folder.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a folder with an agent, its agent.toml, a test and a README.

    Example: agentfactory new my-agent --lang javascript
    """
    folder = make_project(name, language, parent)
    if output.wants_json():
        output.data({"folder": str(folder), "language": language})
        return
    output.note(f"made {folder}; next: cd {folder} && agentfactory test")
    print(folder)


def make_project(name: str, language: Language, parent: Path) -> Path:
    """Make the folder and return it.

    Raises:
        InvalidInputError: The name is none of a template.
        AlreadyExistsError: There is something of that name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
        raise InvalidInputError(f"template name {name!r} is not [a-z][a-z0-9-]{{0,62}}")
    folder = parent / name
    if folder.exists():
        raise AlreadyExistsError(f"{folder} exists", hint="choose another name, or remove the folder")
    filled = {
        "agent.toml": {"name": name, "memory_bytes": str(MEMORY_BYTES[language])},
        "README.md": {"name": name, "main": MAIN_FILES[language]},
    }
    (folder / "tests").mkdir(parents=True)
    for file, values in filled.items():
        text = (STARTERS / file).read_text(encoding="utf-8").format(**values)
        (folder / file).write_text(text, encoding="utf-8")
    for path in sorted((STARTERS / language).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            (folder / path.relative_to(STARTERS / language)).write_bytes(path.read_bytes())
    return folder

"""`agentfactory dev`: builds and runs again whenever a file of the folder changes."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from cli import output
from cli.guests.check import ANSWERS, INPUT, Secrets, find_cases, how_it_ended, show_log, summary
from cli.guests.make import Folder, build_project
from cli.guests.project import find_project
from cli.guests.recording import Recorded
from cli.guests.sandbox import Bench
from cli.settings import CliSettings, DataDir, read_settings
from shared.errors import AgentFactoryError
from shared.outcomes import Outcome

app = typer.Typer(add_completion=False)

LOOK_EVERY_S: Final = 0.3
_LEFT_OUT: Final = frozenset({"build", "dist", "node_modules", "__pycache__"})

Seen = dict[str, tuple[int, int]]


@app.command()
def dev(
    folder: Folder = Path(),
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            help="Input, and NAME.http.json beside it; absent: those of the first case in tests/.",
        ),
    ] = None,
    secrets: Secrets = None,
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="End after so many; 0: never.")] = 0,
    data_dir: DataDir = None,
) -> None:
    """Build and run an agent again whenever a file changes; show output, log, resources and denials.

    Example: agentfactory dev my-agent --input ticket.json
    """
    settings = read_settings(data_dir)
    done = 0
    while True:
        seen = look(folder)
        _round(settings, folder, input_file, secrets)
        done += 1
        if done == rounds:
            return
        output.note(f"— waiting for a change in {folder.resolve()} (Ctrl-C ends) —")
        while look(folder) == seen:
            time.sleep(LOOK_EVERY_S)


def look(folder: Path) -> Seen:
    """Return size and time of each file that a build may depend on."""
    found: Seen = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if _LEFT_OUT.intersection(name.parts) or not path.is_file():
            continue
        facts = path.stat()
        found[name.as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return found


def _round(settings: CliSettings, folder: Path, input_file: Path | None, secrets: Path | None) -> None:
    try:
        body, recording = _input(folder, input_file)
        built, package = build_project(settings, find_project(folder))
        bench = Bench(cache=settings.cache_dir, secrets=secrets)
        ran = asyncio.run(bench.run(package.manifest, built.module, body, recording=recording))
    except AgentFactoryError as error:
        output.note(f"error: {error}")
        if error.hint:
            output.note(f"       {error.hint}")
        return
    show_log(ran)
    if ran.result.outcome is Outcome.SUCCEEDED:
        print(ran.result.stdout.decode("utf-8", "replace").rstrip("\n"), flush=True)
    else:
        output.note(how_it_ended(ran))
    output.note(summary(ran))


def _input(folder: Path, input_file: Path | None) -> tuple[bytes, Recorded | None]:
    if input_file is not None:
        answers = input_file.with_name(input_file.name.removesuffix(INPUT) + ANSWERS)
        return input_file.read_bytes(), Recorded.read(answers) if answers.is_file() else None
    case = find_cases(folder)[0]
    return case.body, case.recording

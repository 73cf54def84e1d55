"""`agentfactory test`: every case of tests/ in the real sandbox."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli import output
from cli.guests.make import Folder, build_project
from cli.guests.project import find_project
from cli.guests.recording import Recorded
from cli.guests.sandbox import Bench, Ran
from cli.output import Json
from cli.settings import DataDir, read_settings
from shared.errors import InvalidInputError, NotFoundError
from shared.manifest import Manifest
from shared.outcomes import Outcome
from shared.schemas import JsonSchema

app = typer.Typer(add_completion=False)

MAX_CASES: Final = 1_000
INPUT, OUTPUT, ANSWERS = ".input.json", ".output.json", ".http.json"

Secrets = Annotated[
    Path | None, typer.Option("--secrets", help="A node's file of secrets; those of tenant default are used.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: an input, what should come of it, and what the outside answers meanwhile."""

    name: str
    body: bytes
    expected: Any
    has_expected: bool
    recording: Recorded | None


@app.command("test")
def check(
    folder: Folder = Path(), secrets: Secrets = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Build an agent and run its cases in the sandbox with the limits and capabilities of its manifest.

    A case is tests/NAME.input.json with tests/NAME.output.json beside it. With tests/NAME.http.json, a list
    of {"method", "url", "status", "body"}, host calls get those answers and no network is used.

    Exit codes: 0 all hold, 1 one does not, 2 wrong use, 3 the module is refused, 4 no sandbox here.

    Example: agentfactory test my-agent
    """
    settings = read_settings(data_dir)
    project = find_project(folder)
    cases = find_cases(folder)
    built, package = build_project(settings, project)
    bench = Bench(cache=settings.cache_dir, secrets=secrets)
    told = [tell(case, bench, package.manifest, built.module) for case in cases]
    if output.wants_json():
        output.data({"cases": told})
    if any(not each["ok"] for each in told):
        raise typer.Exit(output.NOT_SUCCEEDED)


def tell(case: Case, bench: Bench, manifest: Manifest, module: bytes) -> dict[str, Any]:
    """Run one case, print how it went for people, and return it for programs."""
    wrong = broken(manifest.input_schema, json_of(case.body, f"tests/{case.name}{INPUT}"), "input")
    if wrong:
        if not output.wants_json():
            output.note(f"FAIL {case.name}\n     {wrong}")
        return {"case": case.name, "ok": False, "wrong": wrong}
    ran = asyncio.run(bench.run(manifest, module, case.body, recording=case.recording))
    wrong = verdict(case, ran, manifest.output_schema)
    if not output.wants_json():
        output.note(f"{'FAIL' if wrong else 'ok  '} {case.name}  {summary(ran)}")
        if wrong:
            show_log(ran)
            output.note(f"     {wrong}")
    log = ran.result.stderr.decode("utf-8", "replace")
    return {"case": case.name, "ok": not wrong, "wrong": wrong, "log": log, **resources(ran)}


def json_of(data: bytes, name: str) -> Any:
    """Return a file's JSON.

    Raises:
        InvalidInputError: It is none.
    """
    try:
        return json.loads(data)
    except ValueError as error:
        raise InvalidInputError(f"{name} is no JSON: {error}") from error


def find_cases(folder: Path) -> list[Case]:
    """Return the cases of a folder.

    Raises:
        NotFoundError: It has none.
        InvalidInputError: A recording is not of its form.
    """
    cases = []
    for path in sorted((folder / "tests").glob(f"*{INPUT}"))[:MAX_CASES]:
        name = path.name.removesuffix(INPUT)
        expected, answers = path.with_name(name + OUTPUT), path.with_name(name + ANSWERS)
        cases.append(
            Case(
                name=name,
                body=path.read_bytes(),
                expected=json_of(expected.read_bytes(), f"tests/{expected.name}")
                if expected.exists()
                else None,
                has_expected=expected.exists(),
                recording=Recorded.read(answers) if answers.exists() else None,
            )
        )
    if not cases:
        raise NotFoundError(
            f"{folder / 'tests'} holds no case", hint=f"a case is NAME{INPUT}, with NAME{OUTPUT} beside it"
        )
    return cases


def verdict(case: Case, ran: Ran, schema: JsonSchema | None) -> str:
    """Return in one line what does not hold; empty where all does."""
    if ran.result.outcome is not Outcome.SUCCEEDED:
        return how_it_ended(ran)
    try:
        found = json.loads(ran.result.stdout)
    except ValueError:
        return f"the output is no JSON: {ran.result.stdout[:80]!r}"
    if case.has_expected and found != case.expected:
        return f"expected {short(case.expected)}, found {short(found)}"
    return broken(schema, found, "output")


def broken(schema: JsonSchema | None, value: Any, what: str) -> str:
    """Return what of a schema a value breaks; empty where it holds, or there is none."""
    try:
        if schema is not None:
            schema.check(value, what)
    except InvalidInputError as error:
        return str(error)
    return ""


def how_it_ended(ran: Ran) -> str:
    """Return the outcome in one line, with what to do about it."""
    result = ran.result
    if result.limit is not None:
        return f"{result.outcome}: limit {result.limit}; raise it in [limits] of agent.toml, or need less"
    if result.trap is not None:
        return f"{result.outcome}: {result.trap.name}: {result.trap.message}"
    lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"{result.outcome}: exit code {result.exit_code}" + (f": {lines[-1]}" if lines else "")


def resources(ran: Ran) -> dict[str, Any]:
    """Return what the run used, for programs."""
    used = ran.result.resources
    return {
        "outcome": str(ran.result.outcome),
        "wall_ms": used.wall.total_seconds() * 1e3,
        "cpu_ms": used.cpu.total_seconds() * 1e3,
        "peak_memory_bytes": used.peak_memory_bytes,
        "host_calls": used.host_calls,
        "denials": [
            {"method": each.method, "reason": each.reason, "count": each.count} for each in ran.denials
        ],
    }


def summary(ran: Ran) -> str:
    """Return what the run used and was denied, in one line for people."""
    used = ran.result.resources
    line = (
        f"{used.wall.total_seconds() * 1e3:.1f} ms, cpu {used.cpu.total_seconds() * 1e3:.1f} ms, "
        f"{used.peak_memory_bytes / 2**20:.1f} MiB, {used.host_calls} host calls"
    )
    denied = "; ".join(f"denied {each.method} ({each.reason}) x{each.count}" for each in ran.denials)
    return f"{line}; {denied}" if denied else line


def show_log(ran: Ran) -> None:
    """Print what the agent logged, indented."""
    for line in ran.result.stderr.decode("utf-8", "replace").splitlines():
        output.note(f"     {line}")


def short(value: Any) -> str:
    """Return a value as JSON, cut to a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + "…"  # noqa: PLR2004 - about four lines of a terminal

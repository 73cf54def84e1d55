"""`agentfactory retention …`: partitions made ahead of time, old ones dropped. For the schema's owner."""

import asyncio
import re
from datetime import timedelta
from typing import Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.settings import DatabaseUrl, DataDir, owner_database_url, read_settings
from control_plane.database.partitions import Period
from shared.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make partitions ahead, drop old ones.")

_AGE: Final = re.compile(r"([1-9][0-9]{0,5})([hd])")


@app.callback()
def root() -> None:
    """Only carries the help."""


@app.command()
def run(
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Drop executions and all they left, e.g. 30d or 36h.")
    ] = None,
    audit_older_than: Annotated[
        str | None,
        typer.Option("--audit-older-than", help="Drop audit entries, e.g. 400d; absent: keep all."),
    ] = None,
    inputs_older_than: Annotated[
        str | None, typer.Option("--inputs-older-than", help="Remove inputs of ended executions, e.g. 7d.")
    ] = None,
    outputs_older_than: Annotated[
        str | None,
        typer.Option("--outputs-older-than", help="Remove outputs, logs and recordings of them, e.g. 14d."),
    ] = None,
    every: Annotated[
        Period, typer.Option("--every", help="Length of the partitions that are made.")
    ] = Period.WEEK,
    ahead: Annotated[int, typer.Option("--ahead", min=1, max=31, help="How many are made ahead.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make partitions ahead of time and drop whole partitions that are older, beside a running service.

    Example: agentfactory retention run --older-than 30d --dry-run
    """
    from control_plane.database.retention import RetentionPlan
    from control_plane.setup import retain

    plan = RetentionPlan(
        older_than=_age(older_than),
        audit_older_than=_age(audit_older_than),
        inputs_older_than=_age(inputs_older_than),
        outputs_older_than=_age(outputs_older_than),
        period=every,
        ahead=ahead,
        dry_run=dry_run,
    )
    done = asyncio.run(retain(owner_database_url(read_settings(data_dir), database_url), plan))
    if output.wants_json():
        output.data(
            {
                "dry_run": dry_run,
                "made": list(done.made),
                "dropped": [{"name": one.name, "size_bytes": one.size_bytes} for one in done.dropped],
                "executions": done.executions,
                "bodies": done.bodies,
                "held_back_by": done.held_back_by,
            }
        )
        return
    would = "would be " if dry_run else ""
    for name in done.made:
        print(f"{would}made {name}")
    for one in done.dropped:
        print(f"{would}dropped {one.name} ({one.size_bytes} bytes)")
    if done.bodies:
        output.note(f"{done.bodies} bodies of executions that are kept {would}removed")
    output.note(f"{done.executions} ended executions {would}removed")
    if done.held_back_by:
        output.note(f"execution {done.held_back_by} has not ended and keeps what is as old as it")


def _age(given: str | None) -> timedelta | None:
    if given is None:
        return None
    found = _AGE.fullmatch(given)
    if found is None:
        raise InvalidInputError(f"{given[:32]!r} is no age", hint="write days or hours, such as 30d or 36h")
    return timedelta(hours=int(found[1]) * (24 if found[2] == "d" else 1))

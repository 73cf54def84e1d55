"""`agentfactory audit list`: who did what, when, with which result."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings

if TYPE_CHECKING:
    from agentfactory.v1 import audit_pb2

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Read the audit entries.")

FOLLOW_TIMEOUT_SECONDS: Final = 24 * 3600.0


@app.callback()
def group() -> None:
    """Keep `list` a command of a group."""


@app.command("list")
def list_entries(
    action: Annotated[str, typer.Option("--action", help="Only this action.")] = "",
    subject: Annotated[str, typer.Option("--subject", help="Only about this id.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then print entries as they come.")] = False,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List audit entries, newest first.

    Example: agentfactory audit list --action execution.denied
    """
    from agentfactory.v1 import audit_pb2, common_pb2

    from cli.client import Client, call

    async def use(client: Client) -> audit_pb2.ListAuditEntriesResponse:
        request = audit_pb2.ListAuditEntriesRequest(
            action=action, subject=subject, page=common_pb2.PageRequest(page_size=limit)
        )
        return await client.audit.ListAuditEntries(request, timeout=client.timeout)

    async def watch(client: Client) -> None:
        after = answer.audit_entries[0].audit_entry_id if answer.audit_entries else ""
        request = audit_pb2.WatchAuditEntriesRequest(after=after)
        async for change in client.audit.WatchAuditEntries(request, timeout=FOLLOW_TIMEOUT_SECONDS):
            if output.wants_json():
                output.message(change.audit_entry)
            else:
                print("\t".join(row(change.audit_entry)), flush=True)

    settings = read_settings(data_dir, target)
    answer = call(settings, use)
    if output.wants_json():
        output.message(answer)
    else:
        output.table(
            ("recorded", "action", "result", "subject", "actor", "details"),
            [row(each) for each in answer.audit_entries],
            empty="there is no such entry",
        )
    if follow:
        call(settings, watch)


def row(entry: "audit_pb2.AuditEntry") -> tuple[str, ...]:
    return (
        output.time(entry.recorded_at),
        entry.action,
        entry.result,
        entry.subject,
        entry.actor,
        entry.details,
    )

"""`agentfactory audit …`: who did what, when, with which result; whether that is all and still holds."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import DeadlineExceededError, InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from agentfactory.v1 import audit_pb2

    from cli.client import Client

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Read, check and export the evidence.")

FOLLOW_TIMEOUT_SECONDS: Final = 24 * 3600.0
RECONNECT_SECONDS: Final = 1.0
MAX_RECONNECTS: Final = 30
"""One after the other without an entry between them."""

Action = Annotated[
    str, typer.Option("--action", help="Only this action, or the beginning of some: execution.*")
]
Actor = Annotated[str, typer.Option("--actor", help="Only by this identity.")]
Subject = Annotated[str, typer.Option("--subject", help="Only about this id.")]
Outcome = Annotated[str, typer.Option("--outcome", help="ok, refused, or a reason such as POLICY_DENIED.")]
Tenant = Annotated[
    str | None, typer.Option("--tenant", help="Act in this tenant (AF_CLI_TENANT).", show_default=False)
]
Since = Annotated[
    str, typer.Option("--from", help="Recorded then or later: 2026-11-30, 2026-11-30T12:00Z.", metavar="TIME")
]
Until = Annotated[str, typer.Option("--before", help="Recorded before that time.", metavar="TIME")]


@app.callback()
def group() -> None:
    """Only carries the help."""


@app.command("list")
def list_entries(
    action: Action = "",
    actor: Actor = "",
    subject: Subject = "",
    outcome: Outcome = "",
    since: Since = "",
    until: Until = "",
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Else newest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    page: Annotated[str, typer.Option("--page", help="next_page_token of the page before.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then print entries as they come.")] = False,
    tenant: Tenant = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List audit entries, newest first. Filters may be combined.

    Example: agentfactory audit list --action 'execution.*' --outcome refused --from 2026-11-30
    """
    from agentfactory.v1 import audit_pb2, common_pb2

    from cli.client import Client, call

    request = audit_pb2.ListAuditEntriesRequest(
        action=action,
        actor=actor,
        subject=subject,
        result=outcome,
        order=audit_pb2.ENTRY_ORDER_OLDEST_FIRST if oldest_first else audit_pb2.ENTRY_ORDER_NEWEST_FIRST,
        page=common_pb2.PageRequest(page_size=limit, page_token=page),
    )

    for given, field in ((since, request.recorded_from), (until, request.recorded_before)):
        if given:
            field.FromDatetime(parse_time(given))

    async def use(client: Client) -> audit_pb2.ListAuditEntriesResponse:
        return await client.audit.ListAuditEntries(request, timeout=client.timeout)

    settings = settings_in(tenant, data_dir, target)
    answer = call(settings, use)
    if output.wants_json():
        output.message(answer)
    else:
        output.table(
            ("recorded", "action", "result", "subject", "actor", "details"),
            [row(each) for each in answer.audit_entries],
            empty="there is no such entry",
        )
        if answer.next_page_token:
            output.note(f"there are more: --page {answer.next_page_token}")
    if follow:
        newest = (
            answer.audit_entries[-1 if oldest_first else 0].audit_entry_id if answer.audit_entries else ""
        )
        _follow(
            settings,
            audit_pb2.WatchAuditEntriesRequest(
                after=newest, action=action, actor=actor, subject=subject, result=outcome
            ),
        )


@app.command()
def watch(
    after: Annotated[str, typer.Option("--after", help="aud_… behind which to begin; else from now.")] = "",
    action: Action = "",
    actor: Actor = "",
    subject: Subject = "",
    outcome: Outcome = "",
    tenant: Tenant = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Print audit entries as they are committed, each once, also over a restart of the control plane.

    Example: agentfactory audit watch --outcome refused --json
    """
    from agentfactory.v1 import audit_pb2

    request = audit_pb2.WatchAuditEntriesRequest(
        after=after, action=action, actor=actor, subject=subject, result=outcome
    )
    _follow(settings_in(tenant, data_dir, target), request)


@app.command()
def check(
    whole: Annotated[bool, typer.Option("--all", help="Everything, not a sample.")] = False,
    start: Annotated[
        int | None,
        typer.Option("--from-leaf", min=0, help="Every leaf from this one on: goes on with --all."),
    ] = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Check that nothing is missing of the evidence and nothing was altered. Exit code 1: something is wrong.

    Example: agentfactory audit check --all
    """
    from cli.audit_check import run_check

    begin = start if start is not None else 0 if whole else None
    run_check(read_settings(data_dir, target), begin)


@app.command()
def export(
    out: Annotated[str, typer.Option("--output", "-o", help="A file, to which is added; -: stdout.")] = "-",
    after: Annotated[
        int | None, typer.Option("--after", min=0, help="logindex of the last event that is there already.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="cloudevents: CloudEvents 1.0, one a line.")] = (
        "cloudevents"
    ),
    tenant: Tenant = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Write audit entries and receipts in the order of the log. A file goes on behind its last whole line.

    Example: agentfactory audit export --format cloudevents -o evidence.jsonl
    """
    from cli.audit_export import run_export

    if form != "cloudevents":
        raise InvalidInputError(f"{form[:32]!r} is no format of an export", hint="there is: cloudevents")
    run_export(settings_in(tenant, data_dir, target), out, after)


@app.command()
def erase(
    execution: Annotated[str, typer.Option("--execution", help="exe_…")] = "",
    caller: Annotated[str, typer.Option("--caller", help="Every ended execution of this identity.")] = "",
    reason: Annotated[
        str, typer.Option("--reason", help="Who asked for it, and why. It stays on record.")
    ] = "",
    tenant: Tenant = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Remove for good what executions read and wrote. Their receipts and proofs stay, and say so.

    Example: agentfactory audit erase --caller oidc:corp/alice --reason "request 4711 of alice"
    """
    from agentfactory.v1 import audit_pb2

    from cli.client import Client, call

    request = audit_pb2.EraseExecutionsRequest(execution_id=execution, caller=caller, reason=reason)

    async def use(client: Client) -> int:
        erased = 0
        while True:
            answer = await client.audit.EraseExecutions(request, timeout=client.timeout)
            erased += answer.erased
            if not answer.more:
                return erased

    erased = call(settings_in(tenant, data_dir, target), use)
    if output.wants_json():
        output.data({"erased": erased})
    else:
        print(f"erased what {erased} executions read and wrote")


def settings_in(tenant: str | None, data_dir: "DataDir", target: "Target") -> CliSettings:
    """Return the settings, acting in `tenant` where one is named."""
    settings = read_settings(data_dir, target)
    return settings if tenant is None else settings.model_copy(update={"tenant": tenant[:64]})


def parse_time(text: str) -> datetime:
    """Return a time in UTC; a date is its midnight, and what names no zone is UTC.

    Raises:
        InvalidInputError: It is no time of ISO 8601.
    """
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInputError(
            f"{text[:40]!r} is no time", hint="write 2026-11-30 or 2026-11-30T12:00:00Z"
        ) from error
    return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)


def _follow(settings: CliSettings, request: "audit_pb2.WatchAuditEntriesRequest") -> None:
    """Print entries until stopped; a control plane that is away is asked again behind the last one."""
    import time

    from cli.client import call

    left = 0 if not request.after else MAX_RECONNECTS

    async def use(client: "Client") -> None:
        nonlocal left
        async for change in client.audit.WatchAuditEntries(request, timeout=FOLLOW_TIMEOUT_SECONDS):
            request.after = change.audit_entry.audit_entry_id
            left = MAX_RECONNECTS
            if output.wants_json():
                output.line(change.audit_entry)
            else:
                print("\t".join(row(change.audit_entry)), flush=True)

    while True:
        try:
            call(settings, use)
        except (UnavailableError, DeadlineExceededError):  # a stream has an end, too
            if not left:
                raise
            left -= 1
            time.sleep(RECONNECT_SECONDS)


def row(entry: "audit_pb2.AuditEntry") -> tuple[str, ...]:
    return (
        output.time(entry.recorded_at),
        entry.action,
        entry.result,
        entry.subject,
        entry.actor,
        entry.details,
    )

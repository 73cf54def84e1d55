"""`agentfactory stop …`: emergency stops of a tenant or a template."""

from typing import Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import CliSettings, DataDir, Target, read_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Stop a tenant or a template at once: nothing new starts, what runs is ended, what waits waits on.",
)

Reason = Annotated[str, typer.Option("--reason", help="Why; refused callers are told, and it is recorded.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Another tenant; only from tenant default.")]


@app.command()
def tenant(
    reason: Reason,
    name: Annotated[str, typer.Argument(help="The tenant; absent: your own.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Stop everything of a tenant.

    Example: agentfactory stop tenant --reason incident-7
    """
    _create(read_settings(data_dir, target), tenant_id=name, reason=reason)


@app.command()
def template(
    name: Annotated[str, typer.Argument(help="NAME for all its versions, or the digest of one.")],
    reason: Reason,
    tenant_id: Tenant = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Stop every version of a template, or one.

    Example: agentfactory stop template redact --reason leak
    """
    settings = read_settings(data_dir, target)
    if name.startswith("sha256:"):
        _create(settings, tenant_id=tenant_id, template_digest=name, reason=reason)
    else:
        _create(settings, tenant_id=tenant_id, template_name=name, reason=reason)


def _create(
    settings: CliSettings,
    *,
    tenant_id: str,
    reason: str,
    template_name: str = "",
    template_digest: str = "",
) -> None:
    from agentfactory.v1 import stops_pb2

    from cli.client import Client, call

    async def use(client: Client) -> stops_pb2.CreateStopResponse:
        request = stops_pb2.CreateStopRequest(
            tenant_id=tenant_id, template_name=template_name, template_digest=template_digest, reason=reason
        )
        return await client.stops.CreateStop(request, timeout=client.timeout)

    answer = call(settings, use)
    if output.wants_json():
        output.message(answer)
        return
    stop = answer.stop
    what = stop.template_name or stop.template_digest
    output.note(
        f"stopped {f'template {what} of ' if what else ''}tenant {stop.tenant_id}; "
        f"{answer.executions_stopped} running executions were told to end"
    )
    print(stop.stop_id)


@app.command("list")
def list_stops(
    every: Annotated[bool, typer.Option("--all", help="Also those that were lifted.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List stops that hold.

    Example: agentfactory stop list --all
    """
    from agentfactory.v1 import common_pb2, stops_pb2

    from cli.client import Client, call

    async def use(client: Client) -> stops_pb2.ListStopsResponse:
        request = stops_pb2.ListStopsRequest(
            page=common_pb2.PageRequest(page_size=limit), include_lifted=every
        )
        return await client.stops.ListStops(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("id", "tenant", "template", "reason", "by", "since", "lifted"),
        [
            (
                each.stop_id,
                each.tenant_id,
                each.template_name or each.template_digest or "(all)",
                each.reason,
                each.created_by,
                output.time(each.created_at),
                output.time(each.lifted_at),
            )
            for each in answer.stops
        ],
        empty="nothing is stopped",
    )


@app.command()
def show(
    stop_id: Annotated[str, typer.Argument(help="As 'stop list' shows it.")],
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Print what a quarantine was made for.")
    ] = False,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show one stop; of a quarantine also both results, as JSON.

    Example: agentfactory stop show STOP_ID --evidence
    """
    from agentfactory.v1 import stops_pb2

    from cli.client import Client, call

    async def use(client: Client) -> stops_pb2.Stop:
        request = stops_pb2.GetStopRequest(stop_id=stop_id)
        return (await client.stops.GetStop(request, timeout=client.timeout)).stop

    stop = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(stop)
        return
    if evidence:
        print(stop.evidence.decode())
        return
    output.fields(
        [
            ("stop", stop.stop_id),
            ("tenant", stop.tenant_id),
            ("template", stop.template_name or stop.template_digest or "(all)"),
            ("quarantine", "yes: --evidence shows both results" if stop.is_quarantine else ""),
            ("reason", stop.reason),
            ("by", stop.created_by),
            ("since", output.time(stop.created_at)),
            ("lifted", output.time(stop.lifted_at)),
            ("lifted by", stop.lifted_by),
            ("because", stop.lift_reason),
        ]
    )


@app.command()
def lift(
    stop_id: Annotated[str, typer.Argument(help="As 'stop list' shows it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Lift a stop: what waits goes on; what was ended stays so.

    Example: agentfactory stop lift STOP_ID --reason fixed
    """
    from agentfactory.v1 import stops_pb2

    from cli.client import Client, call

    async def use(client: Client) -> stops_pb2.DeleteStopResponse:
        request = stops_pb2.DeleteStopRequest(stop_id=stop_id, reason=reason)
        return await client.stops.DeleteStop(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.note(f"lifted {answer.stop.stop_id}")

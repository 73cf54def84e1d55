"""`agentfactory template channel …`: names that point at versions."""

from typing import Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings
from shared.errors import InvalidInputError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Channels, such as stable and canary: they move."
)


@app.command("set")
def set_channel(
    channel: Annotated[str, typer.Argument(help="NAME@CHANNEL.")],
    version: Annotated[str, typer.Option("--to", help="VERSION of the template.")],
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Point a channel at a version; agents that follow it move with it.

    Example: agentfactory template channel set redact@stable --to 1.1.0
    """
    from agentfactory.v1 import templates_pb2

    from cli.client import Client, call

    name, _, of = channel.partition("@")
    if not name or not of:
        raise InvalidInputError(f"channel {channel!r} is not NAME@CHANNEL")

    async def use(client: Client) -> templates_pb2.SetTemplateChannelResponse:
        request = templates_pb2.SetTemplateChannelRequest(template_name=name, channel=of, version=version)
        return await client.templates.SetTemplateChannel(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    moved = answer.channel
    output.note(
        f"{moved.template_name}@{moved.channel} is {moved.template_version}; "
        f"{answer.agents_moved} agents moved with it"
    )


@app.command("list")
def list_channels(
    name: Annotated[str, typer.Option("--name", help="Only channels of this template.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List channels and where they point.

    Example: agentfactory template channel list --name redact
    """
    from agentfactory.v1 import common_pb2, templates_pb2

    from cli.client import Client, call

    async def use(client: Client) -> templates_pb2.ListTemplateChannelsResponse:
        request = templates_pb2.ListTemplateChannelsRequest(
            template_name=name, page=common_pb2.PageRequest(page_size=limit)
        )
        return await client.templates.ListTemplateChannels(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("channel", "version", "revision", "by", "since"),
        [
            (
                f"{each.template_name}@{each.channel}",
                each.template_version,
                str(each.revision),
                each.updated_by,
                output.time(each.updated_at),
            )
            for each in answer.channels
        ],
        empty="there is no channel yet",
    )

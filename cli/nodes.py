"""`agentfactory node …`: the fleet, as operators see it."""

import asyncio
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import CliSettings, DataDir, Target, read_settings

if TYPE_CHECKING:
    from agentfactory.v1 import nodes_pb2

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Enroll, drain and evict nodes.")


class Duty(StrEnum):
    """What a node is for, as `NodeDuty` of the API."""

    RUN = "run"
    COMPILE = "compile"


NodeIdArgument = Annotated[str, typer.Argument(help="nod_…")]


@app.command()
def token(
    zone: Annotated[str, typer.Option("--zone", help="Zone of the node to be.")] = "",
    hours: Annotated[float, typer.Option("--hours", min=0.1, max=168, help="How long it is valid.")] = 1.0,
    uses: Annotated[
        int, typer.Option("--uses", min=1, max=10_000, help="Nodes that it enrolls; several need a zone.")
    ] = 1,
    duty: Annotated[
        Duty, typer.Option("--duty", help="Run agents, or compile modules for others.")
    ] = Duty.RUN,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Make an enrollment token, one-time or for the autoscaled nodes of a zone; it is shown once.

    Example: agentfactory node token --zone eu-1 --uses 50 --hours 24
    """
    answer = create_token(
        read_settings(data_dir, target), ttl=timedelta(hours=hours), zone=zone, max_uses=uses, duty=duty
    )
    if output.wants_json():
        output.message(answer)
        return
    often = "once" if answer.max_uses <= 1 else f"{answer.max_uses} times, in zone {zone},"
    output.note(f"valid {often} until {output.time(answer.expires_at)}")
    print(answer.token)


def create_token(
    settings: CliSettings, *, ttl: timedelta, zone: str = "", max_uses: int = 1, duty: Duty = Duty.RUN
) -> "nodes_pb2.CreateEnrollmentTokenResponse":
    return asyncio.run(create_token_with(settings, ttl=ttl, zone=zone, max_uses=max_uses, duty=duty))


async def create_token_with(
    settings: CliSettings, *, ttl: timedelta, zone: str = "", max_uses: int = 1, duty: Duty = Duty.RUN
) -> "nodes_pb2.CreateEnrollmentTokenResponse":
    from agentfactory.v1 import nodes_pb2
    from google.protobuf.duration_pb2 import Duration

    from cli.client import connect

    duration = Duration()
    duration.FromTimedelta(ttl)
    request = nodes_pb2.CreateEnrollmentTokenRequest(
        ttl=duration,
        zone=zone,
        max_uses=max_uses,
        duty=nodes_pb2.NodeDuty.Value(f"NODE_DUTY_{duty.upper()}"),
    )
    async with connect(settings) as client:
        return await client.fleet.CreateEnrollmentToken(request, timeout=client.timeout)


@app.command("list")
def list_nodes(
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List nodes.

    Example: agentfactory node list
    """
    from agentfactory.v1 import common_pb2, nodes_pb2

    from cli.client import Client, call

    async def use(client: Client) -> nodes_pb2.ListNodesResponse:
        request = nodes_pb2.ListNodesRequest(page=common_pb2.PageRequest(page_size=limit))
        return await client.fleet.ListNodes(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("node", "duty", "state", "connected", "slots free", "zone", "engine", "last seen", "log"),
        [
            (
                each.node_id,
                output.enum(nodes_pb2.NodeDuty.Name(each.duty)),
                output.enum(nodes_pb2.NodeState.Name(each.state)),
                "yes" if each.connected else "no",
                f"{each.free_slots}/{each.slots}",
                each.zone,
                f"{each.engine.name} {each.engine.version}",
                output.time(each.last_seen_at),
                _log_of(each),
            )
            for each in answer.nodes
        ],
        empty="no node is enrolled",
    )


def _log_of(node: "nodes_pb2.Node") -> str:
    """Return how much of the transparency log a node has verified, or why it takes no orders for its sake."""
    return node.log.problem or (f"{node.log.size} leaves" if node.log.size else "-")


def _show(node: "nodes_pb2.Node", verb: str) -> None:
    if output.wants_json():
        output.message(node)
    else:
        output.note(f"node {node.node_id} {verb}")


@app.command()
def drain(
    node: NodeIdArgument, data_dir: DataDir = None, target: Target = None, as_json: Json = False
) -> None:
    """Give a node no new orders; what runs ends.

    Example: agentfactory node drain nod_…
    """
    from agentfactory.v1 import nodes_pb2

    from cli.client import Client, call

    async def use(client: Client) -> nodes_pb2.Node:
        request = nodes_pb2.DrainNodeRequest(node_id=node)
        return (await client.fleet.DrainNode(request, timeout=client.timeout)).node

    _show(call(read_settings(data_dir, target), use), "drains")


@app.command()
def evict(
    node: NodeIdArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")],
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """End a node's identity at once; its attempts are lost.

    Example: agentfactory node evict nod_… --reason stolen
    """
    from agentfactory.v1 import nodes_pb2

    from cli.client import Client, call

    async def use(client: Client) -> nodes_pb2.Node:
        request = nodes_pb2.EvictNodeRequest(node_id=node, reason=reason)
        return (await client.fleet.EvictNode(request, timeout=client.timeout)).node

    _show(call(read_settings(data_dir, target), use), "is evicted")

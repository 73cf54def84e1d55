"""`agentfactory agent rollout|rollback|compare`: an agent's way between versions of its template."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings

if TYPE_CHECKING:
    from agentfactory.v1 import agents_pb2

Name = Annotated[str, typer.Argument(help="Name of the agent.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the group of agents."""
    for command in (rollout, rollback, compare):
        app.command()(command)


def rollout(
    name: Name,
    version: Annotated[str, typer.Option("--to", help="VERSION of the agent's template.")],
    percent: Annotated[int, typer.Option("--percent", min=1, max=100, help="Of new executions; 100: all.")],
    parameters: Annotated[
        str, typer.Option("--parameters", help="JSON or @FILE for the new version; absent: the agent's own.")
    ] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Give a share of the new executions to another version.

    Example: agentfactory agent rollout desk --to 1.1.0 --percent 10
    """
    from agentfactory.v1 import agents_pb2

    from cli.client import Client, call
    from cli.parameters import read_parameters

    async def use(client: Client) -> agents_pb2.Agent:
        request = agents_pb2.RolloutAgentRequest(
            name=name, version=version, percent=percent, parameters=read_parameters(parameters)
        )
        return (await client.agents.RolloutAgent(request, timeout=client.timeout)).agent

    _show(call(read_settings(data_dir, target), use))


def rollback(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Give every new execution the version from before.

    Example: agentfactory agent rollback desk --reason slower
    """
    from agentfactory.v1 import agents_pb2

    from cli.client import Client, call

    async def use(client: Client) -> agents_pb2.Agent:
        request = agents_pb2.RollbackAgentRequest(name=name, reason=reason)
        return (await client.agents.RollbackAgent(request, timeout=client.timeout)).agent

    _show(call(read_settings(data_dir, target), use))


def compare(name: Name, data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """Count how the newest executions of each version ended.

    Example: agentfactory agent compare desk
    """
    from agentfactory.v1 import agents_pb2

    from cli.client import Client, call

    async def use(client: Client) -> agents_pb2.CompareAgentVersionsResponse:
        request = agents_pb2.CompareAgentVersionsRequest(name=name)
        return await client.agents.CompareAgentVersions(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("version", "digest", "executions"),
        [
            (
                each.template_version or "(earlier)",
                each.template_digest,
                " ".join(f"{state}={count}" for state, count in sorted(each.executions.items())) or "none",
            )
            for each in answer.versions
        ],
        empty="nothing has run",
    )


def _show(agent: "agents_pb2.Agent") -> None:
    if output.wants_json():
        output.message(agent)
        return
    output.note(f"agent {agent.name} runs {versions_of(agent)}")


def versions_of(agent: "agents_pb2.Agent") -> str:
    """Return which versions an agent's new executions get, for a person."""
    current = f"{agent.template_name}@{agent.template_version}"
    if not agent.HasField("rollout"):
        return current
    rollout = agent.rollout
    return f"{current}, and {rollout.template_version} for {rollout.percent} % of new executions"

"""`agentfactory agent …`: named instances of template versions."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli import output, rollouts
from cli.output import Json
from cli.parameters import read_parameters
from cli.settings import CliSettings, DataDir, Target, read_settings
from cli.templates import reference

if TYPE_CHECKING:
    from agentfactory.v1 import agents_pb2

    from cli.client import Client

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Make and look at agents: what callers run."
)

rollouts.add_commands(app)

Name = Annotated[str, typer.Argument(help="Name of the agent.")]


@app.command()
def create(
    name: Name,
    template: Annotated[
        str, typer.Option("--template", help="NAME@VERSION, NAME@CHANNEL to follow it, or digest.")
    ],
    parameters: Annotated[
        str, typer.Option("--parameters", help="JSON object, or @FILE that holds one.")
    ] = "{}",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Create an agent.

    Example: agentfactory agent create desk --template redact@1.0.0
    """
    agent = create_agent(read_settings(data_dir, target), name, template, read_parameters(parameters))
    if output.wants_json():
        output.message(agent)
        return
    output.note(f"created agent {agent.name} of {agent.template_name} {agent.template_version}")
    print(agent.agent_id)


def create_agent(settings: CliSettings, name: str, template: str, parameters: bytes) -> "agents_pb2.Agent":
    from cli.client import call

    return call(settings, lambda client: create_with(client, name, template, parameters))


async def create_with(client: "Client", name: str, template: str, parameters: bytes) -> "agents_pb2.Agent":
    from agentfactory.v1 import agents_pb2

    request = agents_pb2.CreateAgentRequest(name=name, template=reference(template), parameters=parameters)
    return (await client.agents.CreateAgent(request, timeout=client.timeout)).agent


@app.command("list")
def list_agents(
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List agents.

    Example: agentfactory agent list
    """
    from agentfactory.v1 import agents_pb2, common_pb2

    from cli.client import Client, call

    async def use(client: Client) -> agents_pb2.ListAgentsResponse:
        request = agents_pb2.ListAgentsRequest(page=common_pb2.PageRequest(page_size=limit))
        return await client.agents.ListAgents(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("name", "template", "version", "revision", "created"),
        [
            (
                each.name,
                each.template_name,
                each.template_version,
                str(each.revision),
                output.time(each.created_at),
            )
            for each in answer.agents
        ],
        empty="there is no agent yet",
    )


@app.command()
def show(name: Name, data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """Show one agent.

    Example: agentfactory agent show desk
    """
    from agentfactory.v1 import agents_pb2

    from cli.client import Client, call

    async def use(client: Client) -> agents_pb2.Agent:
        request = agents_pb2.GetAgentRequest(name=name)
        return (await client.agents.GetAgent(request, timeout=client.timeout)).agent

    agent = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(agent)
        return
    output.fields(
        [
            ("name", agent.name),
            ("id", agent.agent_id),
            ("template", rollouts.versions_of(agent)),
            ("follows", f"{agent.template_name}@{agent.channel}" if agent.channel else ""),
            ("before", agent.previous_template_version),
            ("digest", agent.template_digest),
            ("parameters", agent.parameters.decode()),
            ("revision", agent.revision),
            ("created", output.time(agent.created_at)),
            ("updated", output.time(agent.updated_at)),
        ]
    )


@app.command()
def update(
    name: Name,
    template: Annotated[
        str, typer.Option("--template", help="NAME@VERSION, NAME@CHANNEL or digest; absent: stays.")
    ] = "",
    parameters: Annotated[str, typer.Option("--parameters", help="JSON or @FILE; absent: stay.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Point an agent at another version or parameters.

    Example: agentfactory agent update desk --template redact@1.1.0
    """
    from agentfactory.v1 import agents_pb2

    from cli.client import Client, call

    async def use(client: Client) -> agents_pb2.Agent:
        get = agents_pb2.GetAgentRequest(name=name)
        found = (await client.agents.GetAgent(get, timeout=client.timeout)).agent
        request = agents_pb2.UpdateAgentRequest(
            name=name,
            template=reference(template) if template else None,
            parameters=read_parameters(parameters),
            revision=found.revision,
        )
        return (await client.agents.UpdateAgent(request, timeout=client.timeout)).agent

    agent = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(agent)
        return
    output.note(f"agent {agent.name} is at revision {agent.revision}")


@app.command()
def delete(name: Name, data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """Remove an agent; its executions and receipts stay.

    Example: agentfactory agent delete desk
    """
    from agentfactory.v1 import agents_pb2

    from cli.client import Client, call

    async def use(client: Client) -> agents_pb2.DeleteAgentResponse:
        request = agents_pb2.DeleteAgentRequest(name=name)
        return await client.agents.DeleteAgent(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.note(f"deleted agent {name}")

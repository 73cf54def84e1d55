"""`agentfactory engine …`: engines that must not run agents any more."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings

if TYPE_CHECKING:
    from agentfactory.v1 import engines_pb2

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Deny engines, at once and without a restart."
)

Name = Annotated[str, typer.Argument(help="As receipts name it, such as wasmer-cranelift.")]
Version = Annotated[str, typer.Argument(help="Absent: every version.")]
Config = Annotated[str, typer.Option("--config", help="sha256:… of one configuration; absent: every one.")]


@app.command()
def deny(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded, and nodes are told.")],
    version: Version = "",
    config: Config = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Deny an engine: its nodes get no further order and no new session; what runs there ends.

    Example: agentfactory engine deny wasmer-cranelift 7.4.1 --reason CVE-2026-1
    """
    from agentfactory.v1 import engines_pb2

    from cli.client import Client, call

    async def use(client: Client) -> engines_pb2.CreateEngineDenialResponse:
        request = engines_pb2.CreateEngineDenialRequest(engine=_ref(name, version, config), reason=reason)
        return await client.engines.CreateEngineDenial(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.note(f"denied {_words(answer.denial.engine)}; see 'node list' for who runs it")


@app.command()
def allow(
    name: Name,
    version: Version = "",
    config: Config = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Allow an engine again, named exactly as it was denied.

    Example: agentfactory engine allow wasmer-cranelift 7.4.1
    """
    from agentfactory.v1 import engines_pb2

    from cli.client import Client, call

    ref = _ref(name, version, config)

    async def use(client: Client) -> engines_pb2.DeleteEngineDenialResponse:
        request = engines_pb2.DeleteEngineDenialRequest(engine=ref, reason=reason)
        return await client.engines.DeleteEngineDenial(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.note(f"{_words(ref)} is not denied")


@app.command("list")
def list_denials(data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """List what is denied.

    Example: agentfactory engine list
    """
    from agentfactory.v1 import engines_pb2

    from cli.client import Client, call

    async def use(client: Client) -> engines_pb2.ListEngineDenialsResponse:
        return await client.engines.ListEngineDenials(
            engines_pb2.ListEngineDenialsRequest(), timeout=client.timeout
        )

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("engine", "version", "configuration", "reason", "by", "since"),
        [
            (
                each.engine.name,
                each.engine.version or "(all)",
                each.engine.config_digest or "(all)",
                each.reason,
                each.denied_by,
                output.time(each.denied_at),
            )
            for each in answer.denials
        ],
        empty="no engine is denied",
    )


def _ref(name: str, version: str, config: str) -> "engines_pb2.EngineRef":
    from agentfactory.v1 import engines_pb2

    return engines_pb2.EngineRef(name=name, version=version, config_digest=config)


def _words(ref: "engines_pb2.EngineRef") -> str:
    return " ".join(filter(None, (ref.name, ref.version, ref.config_digest)))

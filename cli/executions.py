"""`agentfactory execution …`: what was asked for, how it goes, how it ended."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.resources import used_fields
from cli.run import download, outcome, show_result
from cli.settings import DataDir, Target, read_settings
from shared.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from agentfactory.v1 import executions_pb2

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look at executions and stop them.")

ExecutionId = Annotated[str, typer.Argument(help="exe_…")]

WATCH_TIMEOUT_SECONDS: Final = 24 * 3600.0
"""No execution may take longer."""


@app.command("list")
def list_executions(
    agent: Annotated[str, typer.Option("--agent", help="Only of this agent.")] = "",
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only in this state; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List executions, newest first.

    Example: agentfactory execution list --agent desk --state failed
    """
    from agentfactory.v1 import common_pb2, executions_pb2

    from cli.client import Client, call

    states = [parse_state(each) for each in state or []]

    async def use(client: Client) -> executions_pb2.ListExecutionsResponse:
        request = executions_pb2.ListExecutionsRequest(
            agent=agent, states=states, page=common_pb2.PageRequest(page_size=limit)
        )
        return await client.executions.ListExecutions(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("execution", "agent", "outcome", "attempts", "created", "ended"),
        [
            (
                each.execution_id,
                each.agent_name,
                outcome(each),
                str(len(each.attempts)),
                output.time(each.created_at),
                output.time(each.ended_at),
            )
            for each in answer.executions
        ],
        empty="there is no such execution",
    )


def parse_state(word: str) -> "executions_pb2.ExecutionState.ValueType":
    """Return the state of a word such as ``failed``.

    Raises:
        InvalidInputError: It is none.
    """
    from agentfactory.v1 import executions_pb2

    name = f"EXECUTION_STATE_{word.upper()}"
    if name not in executions_pb2.ExecutionState.keys():  # noqa: SIM118 - an enum wrapper, not a mapping
        known = ", ".join(output.enum(each) for each in executions_pb2.ExecutionState.keys()[1:])
        raise InvalidInputError(f"state {word!r} is none of {known}")
    return executions_pb2.ExecutionState.Value(name)


@app.command()
def show(
    execution_id: ExecutionId,
    result: Annotated[bool, typer.Option("--output", help="Print the result itself.")] = False,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show one execution with its attempts, or its result.

    Example: agentfactory execution show exe_… --output
    """
    from agentfactory.v1 import executions_pb2

    from cli.client import Client, call

    async def use(client: Client) -> tuple[executions_pb2.Execution, bytes]:
        request = executions_pb2.GetExecutionRequest(execution_id=execution_id)
        found = (await client.executions.GetExecution(request, timeout=client.timeout)).execution
        if not result or len(found.output) == found.output_bytes:
            return found, found.output
        return found, await download(client, execution_id, executions_pb2.BODY_KIND_OUTPUT)

    execution, body = call(read_settings(data_dir, target), use)
    if result:
        raise typer.Exit(show_result(execution, body))
    if output.wants_json():
        output.message(execution)
        return
    _show(execution)


def _show(execution: "executions_pb2.Execution") -> None:
    from agentfactory.v1 import executions_pb2

    from shared.resources import resources_from_proto

    output.fields(
        [
            ("execution", execution.execution_id),
            ("agent", execution.agent_name),
            ("outcome", outcome(execution)),
            ("pending because", execution.pending_reason),
            ("cancel requested", execution.cancel_requested or ""),
            ("caller", execution.caller),
            ("decision", execution.decision_id),
            ("template", execution.template_digest),
            ("input", f"{execution.input_bytes} bytes, {execution.input_commitment}"),
            ("output", f"{execution.output_bytes} bytes, {execution.output_commitment or 'none'}"),
            ("log", f"{execution.log_bytes} bytes"),
            ("recording", f"{execution.recording_bytes} bytes" if execution.recording_bytes else ""),
            *used_fields(resources_from_proto(execution.resources_used)),
            ("receipt", execution.receipt_id),
            ("created", output.time(execution.created_at)),
            ("started", output.time(execution.started_at)),
            ("ended", output.time(execution.ended_at)),
        ]
    )
    output.table(
        ("attempt", "state", "node", "token", "receipt", "ended", "reason"),
        [
            (
                str(each.number),
                output.enum(executions_pb2.AttemptState.Name(each.state)),
                each.node_id,
                str(each.fencing_token),
                each.receipt_id,
                output.time(each.ended_at),
                each.reason,
            )
            for each in execution.attempts
        ],
        empty="it has had no attempt yet",
    )


@app.command()
def watch(
    execution_id: ExecutionId, data_dir: DataDir = None, target: Target = None, as_json: Json = False
) -> None:
    """Print every change until the execution ends; exit 1 unless it succeeded.

    Example: agentfactory execution watch exe_…
    """
    from agentfactory.v1 import executions_pb2

    from cli.client import Client, call

    async def use(client: Client) -> executions_pb2.Execution:
        last = executions_pb2.Execution()
        request = executions_pb2.WatchExecutionRequest(execution_id=execution_id)
        async for change in client.executions.WatchExecution(request, timeout=WATCH_TIMEOUT_SECONDS):
            last = change.execution
            if output.wants_json():
                output.message(last)
            else:
                print(
                    f"{outcome(last)} attempts={len(last.attempts)} {last.pending_reason}".rstrip(),
                    flush=True,
                )
        return last

    last = call(read_settings(data_dir, target), use)
    succeeded = last.state == executions_pb2.EXECUTION_STATE_SUCCEEDED
    raise typer.Exit(output.OK if succeeded else output.NOT_SUCCEEDED)


@app.command()
def cancel(
    execution_id: ExecutionId, data_dir: DataDir = None, target: Target = None, as_json: Json = False
) -> None:
    """Ask for the end of an execution.

    Example: agentfactory execution cancel exe_…
    """
    from agentfactory.v1 import executions_pb2

    from cli.client import Client, call

    async def use(client: Client) -> executions_pb2.Execution:
        request = executions_pb2.CancelExecutionRequest(execution_id=execution_id)
        return (await client.executions.CancelExecution(request, timeout=client.timeout)).execution

    execution = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(execution)
        return
    output.note(f"{execution.execution_id} is {outcome(execution)}; cancel requested")


@app.command()
def logs(
    execution_id: ExecutionId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for the end, then print.")] = False,
    data_dir: DataDir = None,
    target: Target = None,
) -> None:
    """Print what the agent wrote on stderr. A node delivers it with the receipt, so it is there at the end.

    Example: agentfactory execution logs exe_… --follow
    """
    from agentfactory.v1 import executions_pb2

    from cli.client import Client, call

    async def use(client: Client) -> bytes:
        if follow:
            request = executions_pb2.WatchExecutionRequest(execution_id=execution_id)
            async for _ in client.executions.WatchExecution(request, timeout=WATCH_TIMEOUT_SECONDS):
                await asyncio.sleep(0)
        return await download(client, execution_id, executions_pb2.BODY_KIND_LOG)

    try:
        data = call(read_settings(data_dir, target), use)
    except NotFoundError as error:
        raise NotFoundError(str(error), hint="an agent's log arrives when its execution ends") from error
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


@app.command()
def recording(
    execution_id: ExecutionId,
    out: Annotated[Path | None, typer.Option("--out", help="Write it here instead of printing it.")] = None,
    data_dir: DataDir = None,
    target: Target = None,
) -> None:
    """Print what an agent's host calls asked and were answered, one JSON line for each.

    Example: agentfactory execution recording exe_… --out calls.jsonl
    """
    from agentfactory.v1 import executions_pb2

    from cli.client import Client, call

    async def use(client: Client) -> bytes:
        return await download(client, execution_id, executions_pb2.BODY_KIND_RECORDING)

    try:
        data = call(read_settings(data_dir, target), use)
    except NotFoundError as error:
        raise NotFoundError(
            str(error), hint="only executions that made host calls have one, once they have ended"
        ) from error
    if out is not None:
        out.write_bytes(data)
        output.note(f"{len(data)} bytes of {execution_id} written to {out}")
        return
    sys.stdout.buffer.write(data)
    sys.stdout.flush()

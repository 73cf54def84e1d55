"""`agentfactory run AGENT`: one execution. The result goes to stdout, what it cost to stderr."""

import hashlib
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import InvalidInputError
from shared.telemetry import parse_traceparent

if TYPE_CHECKING:
    from agentfactory.v1 import executions_pb2

    from cli.client import Client

app = typer.Typer(add_completion=False)

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
WAIT_GRACE: Final = timedelta(seconds=5)
"""How much longer than the execution may take its answer is waited for."""


class Priority(StrEnum):
    """Which of the waiting executions of one's own tenant goes first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One execution to ask for."""

    agent: str
    body: bytes
    request_id: str
    timeout: timedelta
    priority: Priority = Priority.NORMAL
    traceparent: str = ""


@app.command()
def run(
    agent: Annotated[str, typer.Argument(help="Name of the agent.")],
    input_file: Annotated[
        Path | None, typer.Option("--input", "-i", help="Input file; absent: none; -: stdin.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach/--wait", help="Return at once with the id.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=86400, help="Seconds it may take.")
    ] = 60.0,
    priority: Annotated[
        Priority, typer.Option("--priority", help="Among waiting executions of your own tenant.")
    ] = Priority.NORMAL,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="Repeat with the same one to find the same execution.")
    ] = None,
    traceparent: Annotated[
        str, typer.Option("--traceparent", help="W3C context of the trace that it belongs to.")
    ] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Run an agent and print its result.

    Example: agentfactory run desk --input tickets.jsonl
    """
    request = Request(
        agent=agent,
        body=read_input(input_file),
        request_id=request_id or str(uuid.uuid4()),
        timeout=timedelta(seconds=timeout),
        priority=priority,
        traceparent=checked_traceparent(traceparent),
    )
    settings = read_settings(data_dir, target)
    if detach:
        execution = submit(settings, request)
        if output.wants_json():
            output.message(execution)
        else:
            print(execution.execution_id)
        return
    execution, result = execute(settings, request)
    raise typer.Exit(show_result(execution, result))


def checked_traceparent(text: str) -> str:
    """Return a traceparent, or nothing if there is none.

    Raises:
        InvalidInputError: It is not one of version 00.
    """
    return str(parse_traceparent(text)) if text else ""


def read_input(path: Path | None) -> bytes:
    """Return the bytes of a file, of stdin for ``-``, or none.

    Raises:
        InvalidInputError: It cannot be read, or has more than 16 MiB.
    """
    if path is None:
        return b""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(f"cannot read input {path}: {error.strerror}") from error
    if len(data) > MAX_BODY_BYTES:
        raise InvalidInputError(f"input {path} has more than {MAX_BODY_BYTES} bytes")
    return data


async def to_message(client: "Client", request: Request) -> "executions_pb2.ExecutionRequest":
    """Return the request as the contract has it; an input above 64 KiB is uploaded first."""
    from agentfactory.v1 import executions_pb2
    from google.protobuf.duration_pb2 import Duration

    from cli.client import INLINE_BYTES

    deadline = Duration()
    deadline.FromTimedelta(request.timeout)
    message = executions_pb2.ExecutionRequest(
        agent=request.agent,
        request_id=request.request_id,
        run_deadline=deadline,
        priority=executions_pb2.Priority.Value(f"PRIORITY_{request.priority.name}"),
        traceparent=request.traceparent,
    )
    if len(request.body) <= INLINE_BYTES:
        message.inline = request.body
    else:
        message.body_id = await upload(client, request.body)
    return message


async def upload(client: "Client", body: bytes) -> str:
    from agentfactory.v1 import executions_pb2

    from cli.client import CHUNK_BYTES

    async def parts() -> AsyncIterator[executions_pb2.UploadBodyRequest]:
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        header = executions_pb2.UploadBodyHeader(digest=digest, size_bytes=len(body))
        yield executions_pb2.UploadBodyRequest(header=header)
        for start in range(0, len(body), CHUNK_BYTES):
            yield executions_pb2.UploadBodyRequest(chunk=body[start : start + CHUNK_BYTES])

    answer = await client.executions.UploadBody(parts(), timeout=client.timeout)
    return answer.body_id


async def download(client: "Client", execution_id: str, kind: "executions_pb2.BodyKind.ValueType") -> bytes:
    """Return a whole body of an execution; at most 16 MiB are taken."""
    from agentfactory.v1 import executions_pb2

    request = executions_pb2.DownloadBodyRequest(execution_id=execution_id, kind=kind)
    data = bytearray()
    async for part in client.executions.DownloadBody(request, timeout=client.timeout):
        data += part.chunk
        if len(data) > MAX_BODY_BYTES:
            raise InvalidInputError(f"body of {execution_id} has more than {MAX_BODY_BYTES} bytes")
    return bytes(data)


def submit(settings: CliSettings, request: Request) -> "executions_pb2.Execution":
    from agentfactory.v1 import executions_pb2

    from cli.client import Client, call

    async def use(client: Client) -> executions_pb2.Execution:
        message = executions_pb2.SubmitExecutionRequest(execution=await to_message(client, request))
        return (await client.executions.SubmitExecution(message, timeout=client.timeout)).execution

    return call(settings, use)


async def execute_with(client: "Client", request: Request) -> "tuple[executions_pb2.Execution, bytes]":
    """Run to the end; return the execution and its whole output."""
    from agentfactory.v1 import executions_pb2

    message = executions_pb2.ExecuteRequest(execution=await to_message(client, request))
    wait = (request.timeout + WAIT_GRACE).total_seconds()
    execution = (await client.executions.Execute(message, timeout=wait)).execution
    if len(execution.output) == execution.output_bytes:
        return execution, execution.output
    kind = executions_pb2.BODY_KIND_OUTPUT
    return execution, await download(client, execution.execution_id, kind)


def execute(settings: CliSettings, request: Request) -> "tuple[executions_pb2.Execution, bytes]":
    from cli.client import Client, call

    async def use(client: Client) -> "tuple[executions_pb2.Execution, bytes]":
        return await execute_with(client, request)

    return call(settings, use)


def show_result(execution: "executions_pb2.Execution", result: bytes) -> int:
    """Print an ended execution; return the exit code: 0 only when it succeeded."""
    from agentfactory.v1 import executions_pb2

    if output.wants_json():
        output.message(execution)
    else:
        sys.stdout.buffer.write(result)
        sys.stdout.flush()
        output.note(summary(execution))
    succeeded = execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED
    return output.OK if succeeded else output.NOT_SUCCEEDED


def outcome(execution: "executions_pb2.Execution") -> str:
    """Return how it ended, with what names the end: failed (exit code 2), killed (memory_bytes)."""
    from agentfactory.v1 import executions_pb2

    state = output.enum(executions_pb2.ExecutionState.Name(execution.state))
    exit_code = f"exit code {execution.exit_code}" if state == "failed" else ""
    detail = exit_code or execution.limit or execution.trap or execution.reason
    return f"{state} ({detail})" if detail else state


def summary(execution: "executions_pb2.Execution") -> str:
    used = execution.resources_used
    return (
        f"{execution.execution_id} {outcome(execution)}: wall {output.milliseconds(used.wall)}, "
        f"cpu {output.milliseconds(used.cpu)}, memory {used.peak_memory_bytes} bytes, "
        f"output {execution.output_bytes} bytes, receipt {execution.receipt_id or 'none'}"
    )

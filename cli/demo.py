"""`make demo`: one signed agent, end to end, on a throw-away folder. Shows every step with its time."""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli import output
from cli.stack import postgres
from cli.stack.local import LocalStack, Ports, running
from shared.errors import AgentFactoryError, NotFoundError, UnavailableError, VerificationError

if TYPE_CHECKING:
    from agentfactory.v1 import executions_pb2

EXAMPLE: Final = Path(__file__).resolve().parents[1] / "examples" / "redact"
TICKETS: Final = EXAMPLE / "data" / "tickets.jsonl"
AGENT: Final = "desk"
RUN_TIMEOUT: Final = timedelta(seconds=30)
SHOWN_TICKETS: Final = 3
LOGGED_WITHIN_SECONDS: Final = 10


class Story:
    """Tells the steps with their times; the stack tells its own through `say`."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.steps: list[tuple[str, float]] = []

    def say(self, line: str) -> None:
        output.note(f"  {time.monotonic() - self.started:5.1f} s  {line}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        self.steps.append((name, took))
        self.say(f"{name} ({took * 1e3:.0f} ms)")


async def tell(story: Story, folder: Path) -> None:
    """Tell the whole story; the first step that fails ends it."""
    with story.step("agent 'redact' is compiled to WebAssembly (C, zig)"):
        await asyncio.to_thread(build_module)
    async with running(folder / "data", Ports.free(), story.say) as stack:
        package = await publish(story, stack, folder)
        await create(story, stack, package)
        execution, result = await run(story, stack)
        verified = await verify(story, stack, execution.execution_id)
        show(execution, result, verified)
        await again(story, stack)


def build_module() -> None:
    """Compile the example, unless its module is newer than its sources."""
    if not EXAMPLE.is_dir():
        raise NotFoundError(f"{EXAMPLE} is not there", hint="the demo runs from a checkout of the repository")
    command = [str(EXAMPLE / "build.sh")]
    built = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)  # noqa: S603 - constant
    if built.returncode != 0:
        raise UnavailableError(f"{command[0]} failed: {built.stderr.strip()[-400:]}")


async def publish(story: Story, stack: LocalStack, folder: Path) -> str:
    """Build, sign and publish the template; return its digest."""
    from cli.client import connect
    from cli.templates import publish_with
    from shared.key_files import read_private_key
    from shared.package_files import build_package, read_unsigned_package, write_envelope, write_package
    from shared.packages import sign_package
    from shared.signatures import FileSigner

    with story.step("template is built"):
        package = write_package(build_package(EXAMPLE), folder)
    with story.step("template is signed by its publisher (RSA-2048, DSSE)"):
        key = read_private_key(stack.paths.publisher_key)
        signed = await sign_package(read_unsigned_package(package), [FileSigner(key=key)])
        write_envelope(package, signed.envelope)
    with story.step("template is verified and published by the control plane"):
        async with connect(stack.settings) as client:
            version = await publish_with(client, package)
    return version.digest


async def create(story: Story, stack: LocalStack, digest: str) -> None:
    from cli.agents import create_with
    from cli.client import connect

    with story.step(f"agent '{AGENT}' is created"):
        async with connect(stack.settings) as client:
            await create_with(client, AGENT, digest, b"{}")


async def run(story: Story, stack: LocalStack) -> "tuple[executions_pb2.Execution, bytes]":
    from cli.client import connect
    from cli.run import Request, execute_with

    request = Request(agent=AGENT, body=TICKETS.read_bytes(), request_id="demo-1", timeout=RUN_TIMEOUT)
    with story.step(
        f"agent ran on {TICKETS.relative_to(EXAMPLE.parents[1])} (module compiled on the node first)"
    ):
        async with connect(stack.settings) as client:
            return await execute_with(client, request)


async def verify(story: Story, stack: LocalStack, execution_id: str) -> tuple[str, ...]:
    from cli.client import connect
    from cli.evidence import file_of
    from cli.receipt_source import fetch_with, local_trust
    from shared.receipt_file import encode_receipt_file
    from shared.verification.checks import verify_receipt_file

    with story.step("receipt is in the transparency log"):
        async with connect(stack.settings) as client:
            answer = await fetch_with(client, execution_id, LOGGED_WITHIN_SECONDS)
    with story.step("receipt file is verified offline"):
        trust = local_trust(stack.settings)
        if trust is None:
            raise NotFoundError(f"{stack.settings.data_dir} is no installation")
        verification = verify_receipt_file(encode_receipt_file(file_of(answer)), trust)
        failed = verification.failed
        if failed is not None:
            raise VerificationError(f"check {failed.number} ({failed.name}): {failed.words}")
    return tuple(check.words for check in verification.checks)


async def again(story: Story, stack: LocalStack) -> None:
    """Run it warm, as callers do all day."""
    from cli.client import connect
    from cli.run import Request, execute_with

    body = TICKETS.read_bytes()
    async with connect(stack.settings) as client:
        await execute_with(client, Request(agent=AGENT, body=body, request_id="demo-2", timeout=RUN_TIMEOUT))
        with story.step("the same again, warm"):
            request = Request(agent=AGENT, body=body, request_id="demo-3", timeout=RUN_TIMEOUT)
            await execute_with(client, request)


def show(execution: "executions_pb2.Execution", result: bytes, checks: tuple[str, ...]) -> None:
    """Print result, outcome, resources and what was proved."""
    from cli.run import outcome

    found = json.loads(result)
    used = execution.resources_used
    print("\nresult")
    counts = ", ".join(f"{count} {kind}" for kind, count in found["found"].items())
    print(f"  {found['tickets']} tickets read; redacted: {counts}")
    for ticket in found["redacted"][:SHOWN_TICKETS]:
        print(f"  {ticket['id']}  {ticket['body'].splitlines()[0][:120]}")
    print("\noutcome and resources")
    print(f"  {outcome(execution)}, exit code {execution.exit_code}, attempt {len(execution.attempts)}")
    print(
        f"  wall {output.milliseconds(used.wall)}, cpu {output.milliseconds(used.cpu)}, "
        f"memory {used.peak_memory_bytes / 2**20:.1f} MiB, output {execution.output_bytes} bytes"
    )
    print("\nreceipt, verified without asking anybody")
    for number, sentence in enumerate(checks, 1):
        print(f"  {number}. {sentence}")
    print(flush=True)


def main() -> int:
    """Run the demo on a folder that is removed afterwards."""
    story = Story()
    folder = Path(tempfile.mkdtemp(prefix="agentfactory-demo-"))
    # Postgres runs as a system user when this is root: the way to its folder must be open.
    folder.chmod(0o711)
    data = folder / "data"
    try:
        asyncio.run(tell(story, folder))
    except AgentFactoryError as error:
        for log in sorted((data / "logs").glob("*.log")):
            output.note(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}")
        return output.fail(error)
    finally:
        if data.exists():
            postgres.remove(data)
        shutil.rmtree(folder, ignore_errors=True)
    story.say("done; everything is stopped and removed")
    return output.OK


if __name__ == "__main__":
    sys.exit(main())

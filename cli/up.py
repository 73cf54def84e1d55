"""`agentfactory up`: the whole system on this machine, in the foreground, until Ctrl-C."""

import asyncio
import signal
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.settings import CliSettings, DataDir, read_settings
from shared.errors import AgentFactoryError

if TYPE_CHECKING:
    from cli.stack.local import Ports

app = typer.Typer(add_completion=False)


@app.command()
def up(
    data_dir: DataDir = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="gRPC, mTLS.")] = 7443,
    enroll_port: Annotated[int, typer.Option("--enroll-port", min=1, max=65535, help="gRPC, TLS.")] = 7445,
    admin_port: Annotated[
        int, typer.Option("--admin-port", min=1, max=65535, help="Metrics, health.")
    ] = 7444,
    node_admin_port: Annotated[
        int, typer.Option("--node-admin-port", min=1, max=65535, help="The node's metrics, health.")
    ] = 7454,
    rest_port: Annotated[int, typer.Option("--rest-port", min=1, max=65535, help="REST, HTTP.")] = 8080,
    rest_admin_port: Annotated[
        int, typer.Option("--rest-admin-port", min=1, max=65535, help="The gateway's metrics, health.")
    ] = 7464,
) -> None:
    """Start Postgres, control plane, node and REST here; Ctrl-C stops them, a second `up` finds their data.

    Example: agentfactory up --data-dir ./af
    """
    from cli.stack.local import Ports

    ports = Ports(
        grpc=port,
        enroll=enroll_port,
        control_admin=admin_port,
        node_admin=node_admin_port,
        gateway=rest_port,
        gateway_admin=rest_admin_port,
    )
    asyncio.run(_up(read_settings(data_dir), ports))


def say(line: str) -> None:
    """Print one event with the time of day."""
    output.note(f"{datetime.now().astimezone():%H:%M:%S} {line}")


async def _up(settings: CliSettings, ports: "Ports") -> None:
    """Run the stack until a signal; a signal during the start ends the start."""
    stopped = asyncio.Event()
    work = asyncio.create_task(_run(settings, ports))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _on_signal, stopped, work)
    try:
        await work
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
    say("stopped")


def _on_signal(stopped: asyncio.Event, work: "asyncio.Task[None]") -> None:
    # A second Ctrl-C must not cut the orderly stop short: every part of it is bounded.
    if not stopped.is_set():
        stopped.set()
        say("stopping")
        work.cancel()


async def _run(settings: CliSettings, ports: "Ports") -> None:
    from cli.stack.events import follow_audit, follow_logs
    from cli.stack.local import running

    async with running(settings.data_dir, ports, say) as stack:
        say(f"ready: control plane localhost:{ports.grpc}, node {stack.node_id}, data {settings.data_dir}")
        say(f"REST: http://localhost:{ports.gateway}, described by /openapi.json")
        say(f"token of the administrator, for REST and port {ports.enroll}: {stack.paths.token}")
        say("now in another terminal: agentfactory status, agentfactory template build …; Ctrl-C stops all")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(follow_audit(stack.settings, say))
                group.create_task(follow_logs(stack.children, say))
                group.create_task(stack.wait_for_death())
                group.create_task(_keep_worker(settings))
        except ExceptionGroup as errors:
            raise _of_ours(errors) from None


async def _keep_worker(settings: CliSettings) -> None:
    """Archive the worker that runs now, so that its receipts can be replayed after an upgrade."""
    from agentfactory_engine import worker_path

    from data_plane.replay.workers import archive_worker

    try:
        await asyncio.to_thread(archive_worker, Path(worker_path()), settings.data_dir / "workers")
    except AgentFactoryError as error:
        say(f"the worker is not archived: {error}")


def _of_ours(errors: ExceptionGroup) -> Exception:
    """Return the error that says why the stack ends; what breaks in the followers it cancels says nothing."""
    ours = [error for error in errors.exceptions if isinstance(error, AgentFactoryError)]
    return ours[0] if ours else errors

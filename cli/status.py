"""`agentfactory status`: what runs on a data folder, and whether it is ready."""

import asyncio
from dataclasses import asdict

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, read_settings
from cli.state import is_alive, read_stack

app = typer.Typer(add_completion=False)


@app.command()
def status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show what `up` runs on this data folder; exit 4 when nothing does, or something is not ready.

    Example: agentfactory status
    """
    from cli.stack.probe import get

    folder = read_settings(data_dir).data_dir
    stack = read_stack(folder)
    if stack is None:
        if output.wants_json():
            output.data({"running": False, "data_dir": str(folder)})
        else:
            output.note(f"nothing runs on {folder}; start it with 'agentfactory up'")
        raise typer.Exit(output.UNAVAILABLE)
    ready = {}
    for name, address in stack.readiness().items():
        answer = asyncio.run(get(int(address.rsplit(":", 1)[-1]), "/readyz"))
        ready[name] = "no answer" if answer is None else (answer.body or str(answer.status))
        if answer is not None and answer.status == 200:  # noqa: PLR2004 - HTTP's OK
            ready[name] = "ready"
    if output.wants_json():
        output.data({"running": True, "data_dir": str(folder), **asdict(stack), "readiness": ready})
    else:
        output.fields(
            [
                ("data", folder),
                ("control plane", stack.target),
                ("enrollment", stack.enroll_target),
                ("rest", f"http://{stack.gateway}" if stack.gateway else "none"),
            ]
        )
        output.table(
            ("process", "pid", "alive", "state"),
            [
                (name, str(pid), "yes" if is_alive(pid) else "no", ready.get(name, ""))
                for name, pid in stack.processes().items()
            ],
            empty="nothing runs",
        )
    all_ready = all(state == "ready" for state in ready.values())
    raise typer.Exit(output.OK if all_ready else output.UNAVAILABLE)

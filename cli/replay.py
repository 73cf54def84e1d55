"""`agentfactory replay …`: run an execution again and say whether it comes out the same."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.receipt_source import Trust
from cli.replay_run import run_again, tell
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from data_plane.replay.bundle import Bundle

app = typer.Typer(add_completion=False)

ENGINES: Final = ("worker", "wasmtime")


@app.command()
def replay(
    file: Annotated[
        Path | None, typer.Argument(help="receipt.json, or a bundle of `receipt bundle`.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="worker: the one of nodes. wasmtime: a second one.")
    ] = "worker",
    workers: Annotated[
        Path | None,
        typer.Option("--workers", help="Archive of workers by digest; absent: that of the data folder."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", min=1, max=100, help="Instead of a file: so many recent portable executions."
        ),
    ] = None,
    agent: Annotated[str, typer.Option("--agent", help="With --sample: only of this agent.")] = "",
    trust: Trust = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Verify a receipt, decide again by its policy, run it again, and compare byte for byte.

    With --sample recent portable executions are run on wasmtime; where it differs, the template version is
    quarantined (a stop with both results as its evidence: 'stop list', 'stop lift').

    A bundle needs no control plane; for a receipt what is missing is fetched with your own rights.

    Exit codes: 0 the same; 1 different; 2 wrong use, or it cannot be replayed; 3 the receipt or what came
    with it does not verify, or you may not see it; 4 no control plane, or no such worker.

    Example: agentfactory replay execution.bundle --engine wasmtime
    """
    from cli.replay_receipt import verified

    settings = read_settings(data_dir, target)
    if (file is None) == (sample is None):
        raise InvalidInputError("name a file, or --sample N")
    if sample is not None:
        from cli.replay_sample import sample as replay_recent
        from cli.replay_sample import show

        show(asyncio.run(replay_recent(settings, count=sample, agent=agent, trust=trust)))
        return
    assert file is not None
    if engine not in ENGINES:
        raise InvalidInputError(f"--engine {engine!r} is not one of {', '.join(ENGINES)}")
    made = read_file(settings, file, trust)
    evidence = verified(settings, made.receipt, trust)
    archive = workers or settings.data_dir / "workers"
    outcome = asyncio.run(run_again(evidence, made, engine=engine, archive=archive))
    tell(outcome)
    if outcome.differs:
        raise typer.Exit(output.NOT_SUCCEEDED)


def read_file(settings: CliSettings, file: Path, trust: Path | None) -> "Bundle":
    """Return a bundle's parts, or those of a receipt, fetched.

    Raises:
        NotFoundError: The file cannot be read.
        VerificationError: It is neither, or does not verify.
    """
    from cli.client import Client, call
    from cli.replay_material import fetch_bundle
    from cli.replay_receipt import verified
    from data_plane.replay.bundle import MAX_BUNDLE_BYTES, is_bundle, read_bundle

    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror}") from error
    if is_bundle(data):
        return read_bundle(data)
    order = verified(settings, data, trust).order

    async def use(client: Client) -> "Bundle":
        return await fetch_bundle(client, order, data)

    return call(settings, use)

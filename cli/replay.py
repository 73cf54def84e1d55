"""`agentfactory replay …`: run an execution again and say whether it comes out the same."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import output
from cli.output import Json
from cli.receipts import Trust
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import InvalidInputError, NotFoundError, NotReplayableError

if TYPE_CHECKING:
    from cli.replay_receipt import Evidence
    from data_plane.replay.bundle import Bundle
    from data_plane.replay.domain import Step
    from data_plane.replay.ports import ReplayEngine
    from data_plane.sandbox.domain import EngineInfo, RunResult

app = typer.Typer(add_completion=False)

ENGINES: Final = ("worker", "wasmtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is told about one replay."""

    evidence: "Evidence"
    result: "RunResult"
    steps: "tuple[Step, ...]"

    @property
    def engine(self) -> "EngineInfo":
        """What ran it again."""
        return self.result.engine

    @property
    def differs(self) -> bool:
        """Whether anything came out otherwise."""
        from data_plane.replay.domain import differs

        return differs(self.steps)


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


async def run_again(evidence: "Evidence", made: "Bundle", *, engine: str, archive: Path) -> Outcome:
    """Verify, decide again, run again, compare.

    Raises:
        As `data_plane.replay.service.replay`, `decide_again` and `find_worker`.
    """
    from cli.replay_policy import decide_again
    from data_plane.replay.domain import Step, StepResult
    from data_plane.replay.service import replay as run

    chosen = await _engine(evidence, engine=engine, archive=archive)
    words = f"{evidence.checks_held} checks hold: the order and what the node said of it are authentic"
    receipt_step = Step(name="receipt", result=StepResult.SAME, words=words)
    decision = await decide_again(evidence.order, evidence.decision, made.policy, evidence.keyset)
    replayed = await run(evidence.order, evidence.receipt, evidence.manifest, made.material, engine=chosen)
    return Outcome(
        evidence=evidence,
        result=replayed.rerun.result,
        steps=(receipt_step, decision, *replayed.steps),
    )


async def _engine(evidence: "Evidence", *, engine: str, archive: Path) -> "ReplayEngine":
    from agentfactory_engine import worker_path

    from data_plane.replay.workers import WorkerEngine, find_worker
    from shared.manifest import Profile

    if engine == "wasmtime":
        from data_plane.replay.wasmtime_engine import WasmtimeEngine

        return WasmtimeEngine.open()
    if evidence.receipt.engine is None:
        raise NotReplayableError(f"nothing ran: the outcome is {evidence.receipt.outcome}")
    try:
        return await find_worker(evidence.receipt.engine, installed=worker_path(), archive=archive)
    except NotFoundError:
        if evidence.order.profile is not Profile.PORTABLE:
            raise
        return await WorkerEngine.open(worker_path())  # portable: any engine has to come to the same


def tell(outcome: Outcome) -> None:
    """Print the steps in words, or all of it as JSON."""
    if output.wants_json():
        output.data(as_data(outcome))
        return
    marks = {"same": "=", "different": "≠", "skipped": "-"}
    for number, step in enumerate(outcome.steps, 1):
        print(f"{number}. {marks[step.result]} {step.name}: {step.words}")
    engine = outcome.engine
    verdict = "DIFFERENT" if outcome.differs else "the same"
    output.note(f"{verdict}, run again by {engine.name} {engine.version}")


def as_data(outcome: Outcome) -> dict[str, Any]:
    """Return what `--json` prints."""
    order, engine = outcome.evidence.order, outcome.engine
    return {
        "same": not outcome.differs,
        "execution_id": order.execution_id,
        "attempt": order.attempt_number,
        "template_digest": order.template_digest,
        "engine": {
            "name": engine.name,
            "version": engine.version,
            "profile": engine.profile,
            "config_digest": engine.config_digest,
        },
        "steps": [
            {"number": number, "name": step.name, "result": step.result, "words": step.words}
            for number, step in enumerate(outcome.steps, 1)
        ],
    }

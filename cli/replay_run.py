"""One replay: verify, decide again, run again, compare; and how it is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import output
from shared.errors import NotFoundError, NotReplayableError

if TYPE_CHECKING:
    from cli.replay_receipt import Evidence
    from data_plane.replay.bundle import Bundle
    from data_plane.replay.domain import Step
    from data_plane.replay.ports import ReplayEngine
    from data_plane.sandbox.domain import EngineInfo, RunResult


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

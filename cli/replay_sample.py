"""`agentfactory replay --sample N`: recent portable executions again on the second engine.

Where the engines differ, nobody knows which one was right: the template version is quarantined until somebody
does. What was altered in the database is told apart from that: it says nothing about a template.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from cli import output
from cli.receipt_source import fetch_with
from cli.replay_material import WAIT_SECONDS, fetch_bundle, receipt_file_of
from cli.replay_receipt import verified
from cli.replay_run import Outcome, as_data, run_again, tell
from shared.canonical import canonical_json
from shared.digests import commit_body
from shared.errors import NotReplayableError, VerificationError
from shared.manifest import Profile

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agentfactory.v1 import audit_pb2, executions_pb2

    from cli.client import Client
    from cli.settings import CliSettings
    from data_plane.replay.bundle import Bundle

MAX_LOOKED_AT: Final = 1000
"""Executions among which portable ones are looked for."""
PAGE: Final = 100
EVIDENCE_FORMAT: Final = "agentfactory.quarantine.v1"
_MAX_WORDS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What came of one execution."""

    execution_id: str
    result: str
    """same, different, altered or skipped."""
    words: str
    stop_id: str = ""
    outcome: Outcome | None = None


async def sample(settings: "CliSettings", *, count: int, agent: str, trust: Path | None) -> list[Sampled]:
    """Replay up to ``count`` of the newest portable executions, and quarantine what differs.

    Raises:
        PermissionDeniedError: The caller may not see bodies, or not quarantine.
        AgentFactoryError: The control plane is away.
    """
    from cli.client import connect

    done: list[Sampled] = []
    async with connect(settings) as client:
        async for execution in _recent(client, agent):
            if len(done) >= count:
                break
            one = await _replay_one(settings, client, execution.execution_id, trust)
            if one is not None:
                done.append(one)
    return done


def show(done: list[Sampled]) -> None:
    """Print what came of each; exit with 1 when one differs or was altered."""
    bad = [one for one in done if one.result in {"different", "altered"}]
    if output.wants_json():
        output.data(
            {
                "replayed": len(done),
                "different": len(bad),
                "executions": [
                    {
                        "execution_id": one.execution_id,
                        "result": one.result,
                        "words": one.words,
                        "stop_id": one.stop_id,
                        "replay": None if one.outcome is None else as_data(one.outcome),
                    }
                    for one in done
                ],
            }
        )
    else:
        for one in bad:
            if one.outcome is not None:
                tell(one.outcome)
        output.table(
            ("execution", "result", "words", "quarantine"),
            [(one.execution_id, one.result, one.words, one.stop_id) for one in done],
            empty="there is no portable execution to replay",
        )
    if bad:
        raise typer.Exit(output.NOT_SUCCEEDED)


async def _recent(client: "Client", agent: str) -> "AsyncGenerator[executions_pb2.Execution]":
    from agentfactory.v1 import common_pb2
    from agentfactory.v1 import executions_pb2 as pb

    states = [
        pb.EXECUTION_STATE_SUCCEEDED,
        pb.EXECUTION_STATE_FAILED,
        pb.EXECUTION_STATE_TRAPPED,
        pb.EXECUTION_STATE_KILLED,
    ]
    token, looked_at = "", 0
    while looked_at < MAX_LOOKED_AT:
        page = common_pb2.PageRequest(page_size=PAGE, page_token=token)
        request = pb.ListExecutionsRequest(page=page, agent=agent, states=states)
        answer = await client.executions.ListExecutions(request, timeout=client.timeout)
        for execution in answer.executions:
            looked_at += 1
            yield execution
        token = answer.next_page_token
        if not token:
            return


async def _replay_one(
    settings: "CliSettings", client: "Client", execution_id: str, trust: Path | None
) -> Sampled | None:
    answer = await fetch_with(client, execution_id, WAIT_SECONDS)
    receipt = receipt_file_of(answer)
    try:
        evidence = verified(settings, receipt, trust)
        if evidence.order.profile is not Profile.PORTABLE:
            return None
        made = await fetch_bundle(client, evidence.order, receipt)
        outcome = await run_again(evidence, made, engine="wasmtime", archive=settings.data_dir / "workers")
    except NotReplayableError as error:
        return Sampled(execution_id=execution_id, result="skipped", words=str(error))
    except VerificationError as error:
        return Sampled(execution_id=execution_id, result="altered", words=str(error))
    if not outcome.differs:
        return Sampled(execution_id=execution_id, result="same", words="", outcome=outcome)
    different = next(step for step in outcome.steps if step.result == "different")
    words = f"{different.name}: {different.words}"[:_MAX_WORDS]
    stop_id = await _quarantine(client, answer, made, outcome, words)
    return Sampled(
        execution_id=execution_id, result="different", words=words, stop_id=stop_id, outcome=outcome
    )


async def _quarantine(
    client: "Client",
    answer: "audit_pb2.GetReceiptResponse",
    made: "Bundle",
    outcome: Outcome,
    words: str,
) -> str:
    from agentfactory.v1 import stops_pb2

    engine = outcome.engine
    request = stops_pb2.CreateStopRequest(
        template_digest=outcome.evidence.order.template_digest,
        reason=f"quarantined: {engine.name} {engine.version} came to another result for"
        f" {outcome.evidence.order.execution_id} ({words})",
        evidence=canonical_json(_evidence(answer, made, outcome)),
    )
    made_stop = await client.stops.CreateStop(request, timeout=client.timeout)
    return made_stop.stop.stop_id


def _evidence(answer: "audit_pb2.GetReceiptResponse", made: "Bundle", outcome: Outcome) -> dict[str, Any]:
    """Return both results: the node's receipt as it signed it, and what the second engine came to."""
    from data_plane.replay.domain import PartName

    result = outcome.result
    output_body = made.material.bodies.get(PartName.OUTPUT)
    again = None if output_body is None else commit_body(result.stdout, output_body.salt)
    return {
        "type": EVIDENCE_FORMAT,
        "receipt_id": answer.receipt_id,
        "receipt": base64.b64encode(answer.envelope).decode(),
        "again": {
            "outcome": str(result.outcome),
            "exit_code": result.exit_code,
            "limit": None if result.limit is None else str(result.limit),
            "trap": None if result.trap is None else result.trap.name,
            "output_commitment": again,
            "output_bytes": len(result.stdout),
            **as_data(outcome),
        },
    }

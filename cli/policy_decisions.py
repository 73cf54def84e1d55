"""`agentfactory policy decisions|decision|reevaluate`: what was decided, why, and whether it is so again."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from agentfactory.v1 import policy_pb2

RESULTS = {"": "UNSPECIFIED", "allowed": "ALLOWED", "denied": "DENIED"}

DecisionIdArgument = Annotated[str, typer.Argument(help="dec_…, as denials and receipts name it.")]


def decisions(
    question: Annotated[str, typer.Option("--question", help="Only this question.")] = "",
    result: Annotated[str, typer.Option("--result", help="allowed or denied.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List decisions, newest first.

    Example: agentfactory policy decisions --result denied
    """
    from agentfactory.v1 import common_pb2, policy_pb2

    from cli.client import Client, call

    if result not in RESULTS:
        raise InvalidInputError(f"--result is {result!r}, not allowed or denied")

    async def use(client: Client) -> policy_pb2.ListDecisionsResponse:
        request = policy_pb2.ListDecisionsRequest(
            page=common_pb2.PageRequest(page_size=limit),
            question=question,
            result=policy_pb2.DecisionResult.Value(f"DECISION_RESULT_{RESULTS[result]}"),
        )
        return await client.policy.ListDecisions(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("decision", "question", "result", "reason", "policy", "decided"),
        [
            (
                each.decision_id,
                each.question,
                "allowed" if each.allowed else "denied",
                each.reason,
                each.policy_digest,
                output.time(each.decided_at),
            )
            for each in answer.decisions
        ],
        empty="there is no such decision",
    )


def decision(
    decision_id: DecisionIdArgument, data_dir: DataDir = None, target: Target = None, as_json: Json = False
) -> None:
    """Show one decision with everything that it came from.

    Example: agentfactory policy decision dec_0190f5ac-7b1c-7d1e-8a55-0123456789ab
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client, call

    async def use(client: Client) -> policy_pb2.Decision:
        request = policy_pb2.GetDecisionRequest(decision_id=decision_id)
        return (await client.policy.GetDecision(request, timeout=client.timeout)).decision

    found = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(found)
        return
    output.fields(_rows(found))


def reevaluate(
    decision_id: DecisionIdArgument, data_dir: DataDir = None, target: Target = None, as_json: Json = False
) -> None:
    """Make a decision again with the policy of its time; exit code 1 when it comes out otherwise.

    Example: agentfactory policy reevaluate dec_0190f5ac-7b1c-7d1e-8a55-0123456789ab
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client, call

    async def use(client: Client) -> policy_pb2.ReevaluateDecisionResponse:
        request = policy_pb2.ReevaluateDecisionRequest(decision_id=decision_id)
        return await client.policy.ReevaluateDecision(request, timeout=client.timeout)

    made = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(made)
    else:
        same = "the same result" if made.same else "ANOTHER result"
        output.note(f"{same}: {made.decision.reason} then, {made.answer.reason} now")
    if not made.same:
        raise typer.Exit(output.NOT_SUCCEEDED)


def _rows(found: "policy_pb2.Decision") -> list[tuple[str, object]]:
    return [
        ("decision", found.decision_id),
        ("question", found.question),
        ("result", "allowed" if found.allowed else "denied"),
        ("reason", found.reason),
        ("reasons", ", ".join(found.reasons)),
        ("policy", found.policy_digest),
        ("input digest", found.input_digest),
        ("result digest", found.result_digest),
        ("took", output.milliseconds(found.duration)),
        ("engine", " ".join(filter(None, (found.engine, found.engine_decision_id)))),
        ("decided", output.time(found.decided_at)),
        ("input", found.input.decode()),
    ]

"""`agentfactory audit check`: prints what the control plane finds wrong; the exit code says so, too."""

from typing import TYPE_CHECKING, Any, Final

import typer

from cli import output

if TYPE_CHECKING:
    from agentfactory.v1 import audit_pb2

    from cli.client import Client
    from cli.settings import CliSettings

CHECK_TIMEOUT_SECONDS: Final = 3600.0


class Report:
    """What came of a check so far."""

    def __init__(self) -> None:
        self.findings: list[dict[str, str]] = []
        self.summary: dict[str, Any] = {}
        self.next_leaf = 0

    def take(self, answer: "audit_pb2.CheckEvidenceResponse") -> None:
        """Print an event for people; keep it for the end."""
        kind = answer.WhichOneof("event")
        if kind == "finding":
            found = answer.finding
            self.findings.append({"check": found.check, "subject": found.subject, "message": found.message})
            if not output.wants_json():
                print(f"{len(self.findings)}. {found.check}: {found.subject}: {found.message}", flush=True)
        elif kind == "progress":
            self.next_leaf = answer.progress.next_log_index
            if not output.wants_json():
                output.note(f"  {self.next_leaf} of {answer.progress.tree_size} leaves")
        else:
            told = answer.summary.DESCRIPTOR.fields
            self.summary = {field.name: getattr(answer.summary, field.name) for field in told}


def run_check(settings: "CliSettings", from_leaf: int | None) -> None:
    """Check from a leaf on, or a sample.

    Raises:
        typer.Exit: Something is wrong: code 1.
    """
    from agentfactory.v1 import audit_pb2

    from cli.client import call

    report = Report()

    async def use(client: "Client") -> None:
        request = audit_pb2.CheckEvidenceRequest(from_log_index=from_leaf)
        async for answer in client.audit.CheckEvidence(request, timeout=CHECK_TIMEOUT_SECONDS):
            report.take(answer)

    try:
        call(settings, use)
    finally:
        if not report.summary and report.next_leaf:
            output.note(f"interrupted: go on with --from-leaf {report.next_leaf}")
    _show(report)
    if report.findings or not report.summary:
        raise typer.Exit(output.NOT_SUCCEEDED)


def _show(report: Report) -> None:
    if output.wants_json():
        output.data({"ok": not report.findings, "findings": report.findings, "summary": report.summary})
        return
    said = report.summary
    if not said:
        output.note("the check ended before its time")
        return
    print(
        f"{said['leaves']} of {said['tree_size']} leaves, {said['facts']} of them made again,"
        f" {said['removed']} removed by retention; {said['checkpoints']} checkpoints;"
        f" {said['receipts']} receipts of {said['nodes']} nodes"
    )
    print("nothing is missing or altered" if not report.findings else f"{len(report.findings)} findings")

"""`agentfactory receipt …`: fetch a receipt with all that proves it, and verify it offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.resources import used_fields
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import MalformedError, NotFoundError
from shared.paths import InstallationPaths

if TYPE_CHECKING:
    from agentfactory.v1 import audit_pb2

    from cli.client import Client
    from cli.evidence import Evidence

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fetch and verify receipts.")

MAX_EVIDENCE_BYTES: Final = 8 * 1024 * 1024

RootKey = Annotated[
    Path | None,
    typer.Option("--root-key", help="Public root key to trust (PEM); absent: that of the data folder."),
]


@app.command()
def get(
    subject: Annotated[str, typer.Argument(help="rcp_… or exe_… (its deciding receipt).")],
    out: Annotated[Path | None, typer.Option("--out", help="Write the evidence to this file.")] = None,
    root_key: RootKey = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Fetch a receipt with its order and keys, and verify them here.

    Example: agentfactory receipt get exe_… --out evidence.json
    """
    settings = read_settings(data_dir, target)
    answer = fetch(settings, subject)
    evidence = check(settings, answer, root_key)
    if out is not None:
        from google.protobuf.json_format import MessageToJson

        out.write_text(MessageToJson(answer, indent=2), encoding="utf-8")
    if output.wants_json():
        output.message(answer)
        return
    show(evidence)
    if answer.HasField("erased_at"):
        output.note(f"  what the execution read and wrote was erased at {output.time(answer.erased_at)}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="Evidence that `receipt get --out` wrote.")],
    root_key: RootKey = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Verify evidence offline: keyset, order, template, receipt.

    Example: agentfactory receipt verify evidence.json --root-key root.pub
    """
    evidence = check(read_settings(data_dir), read_evidence(file), root_key)
    if output.wants_json():
        output.data({"verified": True, "checks": list(evidence.checks), "outcome": evidence.receipt.outcome})
        return
    show(evidence)


def read_evidence(file: Path) -> "audit_pb2.GetReceiptResponse":
    """Return the evidence in a file.

    Raises:
        NotFoundError: It cannot be read.
        MalformedError: It is not what `receipt get --out` writes.
    """
    from agentfactory.v1 import audit_pb2
    from google.protobuf.json_format import Parse, ParseError

    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_EVIDENCE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > MAX_EVIDENCE_BYTES:
        raise MalformedError(f"{file} has more than {MAX_EVIDENCE_BYTES} bytes")
    try:
        return Parse(data, audit_pb2.GetReceiptResponse())
    except ParseError as error:
        raise MalformedError(f"{file} is no evidence: {error}") from error


def fetch(settings: CliSettings, subject: str) -> "audit_pb2.GetReceiptResponse":
    from cli.client import call

    return call(settings, lambda client: fetch_with(client, subject))


async def fetch_with(client: "Client", subject: str) -> "audit_pb2.GetReceiptResponse":
    """Fetch a receipt by its own id or by its execution's."""
    from agentfactory.v1 import audit_pb2

    by_receipt = subject.startswith("rcp_")
    request = audit_pb2.GetReceiptRequest(
        receipt_id=subject if by_receipt else "", execution_id="" if by_receipt else subject
    )
    return await client.audit.GetReceipt(request, timeout=client.timeout)


def check(settings: CliSettings, answer: "audit_pb2.GetReceiptResponse", root_key: Path | None) -> "Evidence":
    from cli.evidence import verify_evidence
    from shared.key_files import read_public_key

    trusted = root_key or InstallationPaths(data_dir=settings.data_dir).root_public_key
    return verify_evidence(answer, root_keys=[read_public_key(trusted)])


def show(evidence: "Evidence") -> None:
    """Print what was verified and what the node reports."""
    for number, sentence in enumerate(evidence.checks, 1):
        output.note(f"  {number}. {sentence}")
    receipt = evidence.receipt
    engine = receipt.engine
    output.fields(
        [
            ("outcome", receipt.outcome),
            ("exit code", "" if receipt.exit_code is None else receipt.exit_code),
            ("limit", receipt.limit),
            ("trap", receipt.trap),
            (
                "refused",
                receipt.rejection and f"check {receipt.rejection.check}: {receipt.rejection.message}",
            ),
            ("execution", evidence.order.execution_id),
            ("attempt", evidence.order.attempt_number),
            ("agent", evidence.order.agent_name),
            ("caller", evidence.order.caller),
            ("decision", f"{evidence.order.decision_id} under policy {evidence.order.policy_digest}"),
            ("module", evidence.order.module_digest),
            ("input", evidence.order.input_commitment),
            ("output", receipt.output_commitment),
            ("engine", engine and f"{engine.name} {engine.version}"),
            *used_fields(receipt.resources),
            ("denied", ", ".join(f"{one.method} ({one.reason}): {one.count}" for one in receipt.denials)),
            ("recording", receipt.recording_commitment),
            ("kv writes", receipt.kv_writes_digest),
            ("node", f"{receipt.node_id}, receipt {receipt.sequence} of its chain"),
            ("ordered at", evidence.signed_at.isoformat()),
            ("finished at", receipt.finished_at.isoformat()),
        ]
    )

"""`agentfactory receipt …`: fetch a receipt with all that proves it, and verify it offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.receipt_source import Trust, fetch, trust_of, trust_or_none
from cli.replay_material import bundle
from cli.resources import used_fields
from cli.settings import DataDir, Target, read_settings
from shared.errors import MalformedError, NotFoundError

if TYPE_CHECKING:
    from shared.verification.report import Proved, Verification
    from shared.verification.trust import ReceiptTrust

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fetch and verify receipts.")

MAX_WAIT_SECONDS: Final = 3600

File = Annotated[Path, typer.Argument(help="Receipt file that `receipt get --out` wrote.")]


@app.command()
def get(
    subject: Annotated[str, typer.Argument(help="rcp_… or exe_… (its deciding receipt).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the receipt file here: it proves itself.")
    ] = None,
    wait: Annotated[
        float,
        typer.Option("--wait", min=0, max=MAX_WAIT_SECONDS, help="Seconds to wait for the log to cover it."),
    ] = 10,
    trust: Trust = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Fetch a receipt with all that proves it, write its file, and verify that here; exit 1 if it fails.

    Example: agentfactory receipt get exe_… -o receipt.json
    """
    from cli.evidence import file_of
    from shared.receipt_file import encode_receipt_file

    settings = read_settings(data_dir, target)
    trusted = trust_or_none(settings, trust)
    answer = fetch(settings, subject, wait, trusted)
    if answer.after_eviction:
        output.note("warning: it came after the node's identity was ended: what it says is not to be trusted")
    data = encode_receipt_file(file_of(answer))
    if out is not None:
        out.write_bytes(data)
    if output.wants_json():
        output.message(answer)
    if trusted is None:
        output.note(
            "not verified: nobody is trusted here. Get a trust file by another way, then: agentfactory verify"
        )
        return
    if answer.HasField("erased_at"):
        output.note(f"what the execution read and wrote was erased at {output.time(answer.erased_at)}")
    _tell(_verification(data, trusted))


@app.command()
def verify(file: File, trust: Trust = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Verify a receipt file offline, check by check; exit 1 if one fails.

    Example: agentfactory verify receipt.json --trust trust.json
    """
    trusted = trust_of(read_settings(data_dir), trust)
    verification = _verification(read_file(file), trusted)
    if output.wants_json():
        output.data(_as_data(verification))
    _tell(verification)


def read_file(file: Path) -> bytes:
    """Return a receipt file's bytes.

    Raises:
        NotFoundError: It cannot be read.
        MalformedError: It is larger than any receipt file.
    """
    from shared.receipt_file import MAX_FILE_BYTES

    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 2)
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES + 1:
        raise MalformedError(f"{file} has more than {MAX_FILE_BYTES} bytes")
    return data


def show(proved: "Proved") -> None:
    """Print what was proved."""
    receipt, order = proved.receipt, proved.order
    engine, refused = receipt.engine, receipt.rejection
    output.fields(
        [
            ("outcome", receipt.outcome),
            ("exit code", "" if receipt.exit_code is None else receipt.exit_code),
            ("limit", receipt.limit),
            ("trap", receipt.trap),
            ("refused", refused and f"check {refused.check}: {refused.message}"),
            ("execution", order.execution_id),
            ("attempt", order.attempt_number),
            ("agent", order.agent_name),
            ("template", " → ".join(str(one.full_name) for one in proved.templates)),
            ("caller", order.caller),
            ("decision", f"{order.decision_id} under policy {order.policy_digest}"),
            ("module", order.module_digest),
            ("input", order.input_commitment),
            ("output", receipt.output_commitment),
            ("engine", engine and f"{engine.name} {engine.version}"),
            *used_fields(receipt.resources),
            ("denied", ", ".join(f"{one.method} ({one.reason}): {one.count}" for one in receipt.denials)),
            ("recording", receipt.recording_commitment),
            ("kv writes", receipt.kv_writes_digest),
            ("node", f"{receipt.node_id}, receipt {receipt.sequence} of its chain"),
            ("ordered from", order.not_before.isoformat()),
            ("finished at", receipt.finished_at.isoformat()),
            ("witnesses", ", ".join(proved.witnesses)),
        ]
    )


def _verification(data: bytes, trust: "ReceiptTrust") -> "Verification":
    from shared.verification.checks import verify_receipt_file

    return verify_receipt_file(data, trust)


def _tell(verification: "Verification") -> None:
    """Print the checks, and what they prove unless JSON was asked for; end with 1 if one failed.

    Raises:
        Exit: One failed.
    """
    if not output.wants_json():
        for check in verification.checks:
            output.note(f"  {check.number:>2}. {check.name:<12} {check.result:<12} {check.words}")
        if verification.proved is not None:
            show(verification.proved)
    if verification.failed is not None:
        failed = verification.failed
        output.note(f"not proved: check {failed.number} ({failed.name}) failed [{failed.reason}]")
        raise typer.Exit(output.NOT_SUCCEEDED)


def _as_data(verification: "Verification") -> dict[str, object]:
    checks = [
        {
            "number": one.number,
            "name": one.name,
            "result": str(one.result),
            "words": one.words,
            **({"reason": one.reason} if one.reason else {}),
        }
        for one in verification.checks
    ]
    proved = verification.proved
    said: dict[str, object] = {"verified": proved is not None, "checks": checks}
    if proved is not None:
        said |= {
            "receipt_id": proved.file.receipt_id,
            "execution_id": proved.order.execution_id,
            "outcome": str(proved.receipt.outcome),
            "witnesses": list(proved.witnesses),
        }
    return said


app.command()(bundle)

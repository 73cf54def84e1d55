"""`agentfactory audit export`: evidence as CloudEvents 1.0, one a line, that goes on where a file ends."""

import json
import sys
from contextlib import nullcontext
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from cli import output
from shared.digests import sha256_digest
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from agentfactory.v1 import audit_pb2
    from google.protobuf.timestamp_pb2 import Timestamp

    from cli.client import Client
    from cli.settings import CliSettings

EXPORT_TIMEOUT_SECONDS: Final = 3600.0
MAX_LINE_BYTES: Final = 1024 * 1024
"""No event is longer."""
TYPE_PREFIX: Final = "dev.agentfactory"


def cloud_event(answer: "audit_pb2.ExportEvidenceResponse") -> dict[str, Any]:
    """Return one leaf of the log as a CloudEvent in JSON format (CloudEvents 1.0.2, JSON event format 1.0.2).

    `source` is the log, `id` the fact's own id, so that a repeat is known by both; `logindex` is its place.
    """
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": answer.subject,
        "source": f"//{answer.origin}",
        "logindex": str(answer.log_index),
    }
    kind = answer.WhichOneof("evidence")
    if kind == "audit_entry":
        return event | _of_entry(answer.audit_entry)
    if kind == "receipt":
        return event | _of_receipt(answer.receipt)
    data = {"kind": answer.bare_kind}
    return event | {"type": f"{TYPE_PREFIX}.leaf.v1", "datacontenttype": "application/json", "data": data}


def _of_entry(entry: "audit_pb2.AuditEntry") -> dict[str, Any]:
    return {
        "type": f"{TYPE_PREFIX}.audit.{entry.action}.v1",
        "subject": entry.subject or entry.actor,
        "time": _time(entry.recorded_at),
        "datacontenttype": "application/json",
        "data": {
            "actor": entry.actor,
            "action": entry.action,
            "subject": entry.subject,
            "result": entry.result,
            "details": json.loads(entry.details or "{}"),
            # The exact text: the leaf's content is a digest over it.
            "details_text": entry.details,
        },
    }


def _of_receipt(receipt: "audit_pb2.ExportedReceipt") -> dict[str, Any]:
    return {
        "type": f"{TYPE_PREFIX}.receipt.v1",
        "subject": receipt.execution_id,
        "time": _time(receipt.received_at),
        "datacontenttype": "application/vnd.dsse+json",
        "node": receipt.node_id,
        "nodesequence": str(receipt.sequence),
        "accepted": receipt.accepted,
        # Of the exact bytes, which the leaf's content is.
        "envelopedigest": str(sha256_digest(receipt.envelope)),
        "data": json.loads(receipt.envelope),
    }


def _time(value: "Timestamp") -> str:
    return value.ToDatetime(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def last_index(path: Path) -> tuple[int | None, int]:
    """Return the place in the log of a file's last whole event, and where to write on in the file.

    Raises:
        InvalidInputError: The file holds something else.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None, 0
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - 2 * MAX_LINE_BYTES)
        file.seek(start)
        tail = file.read()
    whole = tail.rfind(b"\n") + 1  # what is behind it was cut off when an export was interrupted
    if not whole and start == 0:
        return None, 0
    line = tail[:whole].rstrip(b"\n").rpartition(b"\n")[2]
    try:
        return int(json.loads(line)["logindex"]), start + whole
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{path} does not end with an exported event", hint="name another file"
        ) from error


def run_export(settings: "CliSettings", out: str, after: int | None) -> None:
    """Write events behind `after`, or behind the last one of the file."""
    from agentfactory.v1 import audit_pb2

    from cli.client import call

    place, offset = (None, 0) if out == "-" else last_index(Path(out))
    begin = after if after is not None else place
    request = audit_pb2.ExportEvidenceRequest(after_log_index=begin)
    count = 0

    async def use(client: "Client") -> None:
        nonlocal count
        with _opened(out, offset) as file:
            async for answer in client.audit.ExportEvidence(request, timeout=EXPORT_TIMEOUT_SECONDS):
                event = cloud_event(answer)
                file.write(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n")
                count += 1

    call(settings, use)
    output.note(f"{count} events written")


def _opened(out: str, offset: int) -> "AbstractContextManager[TextIO]":
    if out == "-":
        return nullcontext(sys.stdout)
    path = Path(out)
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        file.truncate(offset)
    return path.open("a", encoding="utf-8")

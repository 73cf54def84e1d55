"""Exported evidence is CloudEvents 1.0, and a file that was cut off goes on behind its last whole event."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from agentfactory.v1 import audit_pb2

from cli.audit import parse_time
from cli.audit_export import cloud_event, last_index
from shared.digests import sha256_digest
from shared.errors import InvalidInputError

AT = datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=UTC)
ENVELOPE = b'{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}'

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
# What CloudEvents 1.0.2 (sections 3.1, 3.2) and its JSON format 1.0.2 ask of an event.
CLOUD_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "source", "specversion", "type"],
    "properties": {
        "id": TEXT,
        "source": {**TEXT, "format": "uri-reference", "pattern": r"^[^\s]+$"},
        "specversion": {"const": "1.0"},
        "type": TEXT,
        "subject": TEXT,
        "time": {**TEXT, "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"},
        "datacontenttype": {**TEXT, "pattern": r"^[a-z]+/[a-z0-9.+-]+$"},
        "dataschema": TEXT,
        "data": {},
        "data_base64": TEXT,
    },
    "not": {"required": ["data", "data_base64"]},
    # Names of extensions, and the types that their values have in JSON.
    "patternProperties": {
        r"^(?!data$)[a-z0-9]{1,20}$": {"type": ["string", "boolean", "integer"]},
    },
    "additionalProperties": False,
}


def leaf(**fact: Any) -> audit_pb2.ExportEvidenceResponse:
    return audit_pb2.ExportEvidenceResponse(
        log_index=7, subject="aud_1", origin="agentfactory.dev/log/local/1", **fact
    )


def entry() -> audit_pb2.AuditEntry:
    said = audit_pb2.AuditEntry(
        audit_entry_id="aud_1",
        actor="oidc:corp/ann",
        action="execution.denied",
        subject="exe_1",
        result="POLICY_DENIED",
        details='{"a": 1}',
    )
    said.recorded_at.FromDatetime(AT)
    return said


def receipt() -> audit_pb2.ExportedReceipt:
    said = audit_pb2.ExportedReceipt(
        receipt_id="aud_1",
        execution_id="exe_1",
        node_id="nod_1",
        sequence=3,
        envelope=ENVELOPE,
        accepted=True,
    )
    said.received_at.FromDatetime(AT)
    return said


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (leaf(audit_entry=entry()), "dev.agentfactory.audit.execution.denied.v1"),
        (leaf(receipt=receipt()), "dev.agentfactory.receipt.v1"),
        (leaf(bare_kind="receipt"), "dev.agentfactory.leaf.v1"),
    ],
    ids=["entry", "receipt", "bare"],
)
def test_every_event_is_a_cloud_event(answer: audit_pb2.ExportEvidenceResponse, kind: str) -> None:
    event = json.loads(json.dumps(cloud_event(answer)))
    jsonschema.Draft202012Validator(CLOUD_EVENT).validate(event)
    assert (event["id"], event["source"]) == ("aud_1", "//agentfactory.dev/log/local/1")
    assert (event["type"], event["logindex"]) == (kind, "7")
    for name in ("id", "source", "type", "specversion"):
        without = {key: value for key, value in event.items() if key != name}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(CLOUD_EVENT).validate(without)


def test_a_receipt_is_its_envelope_and_the_digest_of_its_exact_bytes() -> None:
    event = cloud_event(leaf(receipt=receipt()))
    assert event["data"] == json.loads(ENVELOPE)
    assert event["envelopedigest"] == sha256_digest(ENVELOPE)
    assert (event["time"], event["datacontenttype"]) == (
        "2026-11-30T12:00:00.123456Z",
        "application/vnd.dsse+json",
    )


def lines(*indexes: int) -> bytes:
    return b"".join(json.dumps({"logindex": str(one)}).encode() + b"\n" for one in indexes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", (None, 0)),
        (lines(0, 1), (1, len(lines(0, 1)))),
        (lines(0, 1) + b'{"logindex": "2", "da', (1, len(lines(0, 1)))),
        (b'{"logindex": "0"', (None, 0)),
    ],
    ids=["empty", "whole", "cut off", "first cut off"],
)
def test_a_file_goes_on_behind_its_last_whole_event(
    tmp_path: Path, content: bytes, expected: tuple[int | None, int]
) -> None:
    path = tmp_path / "evidence.jsonl"
    assert last_index(path) == (None, 0)
    path.write_bytes(content)
    assert last_index(path) == expected


@pytest.mark.parametrize("content", [b"something else\n", b'{"a": 1}\n', b"[]\n"])
def test_a_file_with_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError):
        last_index(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-30", datetime(2026, 11, 30, tzinfo=UTC)),
        ("2026-11-30T12:00Z", datetime(2026, 11, 30, 12, tzinfo=UTC)),
        ("2026-11-30T12:00+02:00", datetime(2026, 11, 30, 10, tzinfo=UTC)),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(text: str, expected: datetime) -> None:
    assert parse_time(text) == expected


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        parse_time("yesterday")

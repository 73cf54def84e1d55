"""What the command line takes in: bounded, and refused with a typed error."""

from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from agentfactory.v1 import executions_pb2

from cli.client import Client
from cli.executions import parse_state
from cli.parameters import MAX_PARAMETERS_BYTES, read_parameters
from cli.receipts import read_file
from cli.run import MAX_BODY_BYTES, Priority, Request, checked_traceparent, outcome, read_input, to_message
from cli.settings import owner_database_url, read_settings
from cli.templates import reference
from shared.errors import InvalidInputError, MalformedError, NotFoundError, SettingsError
from shared.receipt_file import MAX_FILE_BYTES


def test_an_input_of_the_bound_passes_and_one_byte_more_does_not(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(bytes(MAX_BODY_BYTES))
    assert len(read_input(path)) == MAX_BODY_BYTES
    path.write_bytes(bytes(MAX_BODY_BYTES + 1))
    with pytest.raises(InvalidInputError, match="16777216"):
        read_input(path)


def test_a_trace_context_is_of_version_00_or_none_at_all() -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert checked_traceparent(given) == given
    assert not checked_traceparent("")
    with pytest.raises(InvalidInputError, match="not a traceparent"):
        checked_traceparent("junk")


def test_no_input_is_an_empty_one_and_a_missing_file_an_error(tmp_path: Path) -> None:
    assert read_input(None) == b""
    with pytest.raises(InvalidInputError, match="No such file"):
        read_input(tmp_path / "missing")


def test_parameters_come_from_the_command_line_or_a_bounded_file(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    path.write_text('{"a": 1}')
    assert read_parameters('{"b": 2}') == b'{"b": 2}'
    assert read_parameters(f"@{path}") == b'{"a": 1}'
    path.write_bytes(bytes(MAX_PARAMETERS_BYTES + 1))
    with pytest.raises(InvalidInputError):
        read_parameters(f"@{path}")


def test_a_template_is_named_by_version_or_digest() -> None:
    assert (reference("redact@1.0.0").name, reference("redact@1.0.0").version) == ("redact", "1.0.0")
    assert reference("sha256:00").digest == "sha256:00"
    for text in ("redact", "@1.0.0", "redact@"):
        with pytest.raises(InvalidInputError):
            reference(text)


def test_a_state_is_a_word_of_the_contract() -> None:
    assert parse_state("failed") == executions_pb2.EXECUTION_STATE_FAILED
    with pytest.raises(InvalidInputError, match="succeeded"):
        parse_state("done")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"state": executions_pb2.EXECUTION_STATE_SUCCEEDED}, "succeeded"),
        ({"state": executions_pb2.EXECUTION_STATE_FAILED, "exit_code": 7}, "failed (exit code 7)"),
        ({"state": executions_pb2.EXECUTION_STATE_KILLED, "limit": "wall_ms"}, "killed (wall_ms)"),
        ({"state": executions_pb2.EXECUTION_STATE_TRAPPED, "trap": "unreachable"}, "trapped (unreachable)"),
        (
            {"state": executions_pb2.EXECUTION_STATE_EXPIRED, "reason": "RUN_DEADLINE"},
            "expired (RUN_DEADLINE)",
        ),
    ],
)
def test_an_outcome_names_what_ended_it(fields: dict, words: str) -> None:
    assert words == outcome(executions_pb2.Execution(**fields))


def test_a_receipt_file_that_is_not_there_or_far_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    with pytest.raises(NotFoundError):
        read_file(path)
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 2))
    with pytest.raises(MalformedError):
        read_file(path)


def test_settings_are_strict_and_the_database_must_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="AF_CLI_OWNER_DATABASE_URL"):
        owner_database_url(read_settings(), None)
    monkeypatch.setenv("AF_CLI_OWNER_DATABASE_URL", "postgresql://u:secret@h/d")
    assert owner_database_url(read_settings(), None) == "postgresql://u:secret@h/d"
    assert "secret" not in repr(read_settings())
    monkeypatch.setenv("AF_CLI_DATADIR", "x")
    with pytest.raises(SettingsError, match="AF_CLI_DATA_DIR"):
        read_settings()


async def test_a_priority_reaches_the_request() -> None:
    request = Request(
        agent="desk", body=b"{}", request_id="r", timeout=timedelta(seconds=1), priority=Priority.HIGH
    )
    client = Client(
        channel=grpc.aio.insecure_channel("localhost:1"), timeout=1
    )  # an inline input needs no call
    assert (await to_message(client, request)).priority == executions_pb2.PRIORITY_HIGH
    assert {f"PRIORITY_{one.name}" for one in Priority} | {"PRIORITY_UNSPECIFIED"} == set(
        executions_pb2.Priority.keys()
    )

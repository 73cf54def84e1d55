"""Exit codes, the one form of error, and what a pipe gets."""

import importlib
import json

import pytest
import typer
from typer.testing import CliRunner

from cli import output
from cli.main import GROUPS, app
from shared import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SignatureInvalidError("x"), 3),
        (errors.UnknownPublisherError("x"), 3),
        (errors.PolicyDeniedError("x"), 3),
        (errors.UnauthenticatedError("x"), 3),
        (errors.KeyFileModeError("x"), 3),
        (errors.UnavailableError("x"), 4),
        (errors.DatabaseUnavailableError("x"), 4),
        (errors.DeadlineExceededError("x"), 4),
        (errors.PortInUseError("x"), 4),
        (errors.WorkerCrashedError("x"), 4),
        (errors.ArtifactInvalidError("x"), 4),
        (errors.NotFoundError("x"), 2),
        (errors.InvalidInputError("x"), 2),
        (errors.IdempotencyConflictError("x"), 2),
        (errors.SettingsError("x"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_has_its_exit_code(error: errors.AgentFactoryError, code: int) -> None:
    assert code == output.exit_code(error)


def test_an_error_is_a_line_with_its_reason_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.fail(errors.NotFoundError("there is no agent 'x'", hint="look at 'agent list'")) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: there is no agent 'x' [NOT_FOUND]\nhint:  look at 'agent list'\n"


def test_an_error_as_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    token = output._as_json.set(True)
    try:
        output.fail(errors.UnavailableError("away"))
    finally:
        output._as_json.reset(token)
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "error": {"reason": "UNAVAILABLE", "message": "away", "hint": errors.UnavailableError.hint}
    }


def test_a_table_in_a_pipe_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("a", "b"), [("1", "2"), ("3", "")], empty="nothing")
    assert capsys.readouterr().out == "a\tb\n1\t2\n3\t\n"


def test_an_empty_table_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("a",), [], empty="nothing here")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "nothing here\n")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("EXECUTION_STATE_SUCCEEDED", "succeeded"),
        ("NODE_STATE_DRAINING", "draining"),
        ("OUTCOME_LOST", "lost"),
    ],
)
def test_enum_values_read_as_words(name: str, word: str) -> None:
    assert word == output.enum(name)


def leaves(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    return [leaf for name, child in children.items() for leaf in leaves(child, (*path, name))] or [path]


@pytest.mark.parametrize("group", GROUPS)
def test_every_command_shows_an_example_in_its_help(group: str) -> None:
    command = typer.main.get_command(importlib.import_module(GROUPS[group]).app)
    for path in leaves(command):
        shown = CliRunner().invoke(app, [group, *path, "--help"])
        assert shown.exit_code == 0
        assert "Example" in shown.output, (group, *path)


def test_wrong_use_is_exit_code_2() -> None:
    assert CliRunner().invoke(app, ["agent", "create"]).exit_code == 2
    assert CliRunner().invoke(app, ["no-such-group"]).exit_code == 2

"""What `up` shows of its processes' logs: warnings and worse, one line each."""

import os
from pathlib import Path

import pytest
from agentfactory.v1 import audit_pb2

from cli.stack.children import last_line
from cli.stack.events import MAX_LINE_CHARS, _read_lines, condense, describe
from cli.state import Stack, read_stack, remove_stack, write_stack


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            '{"level": "warning", "event": "session lost", "node_id": "nod_1"}',
            ["warning: session lost node_id=nod_1"],
        ),
        ('{"level": "info", "event": "session opened"}', []),
        ('{"level": "error", "event": "boom", "exception": "Traceback …"}', ["error: boom"]),
        ("{not json", []),
        (
            "2026-11-24 12:00:00 UTC [7] FATAL:  disk is full",
            ["2026-11-24 12:00:00 UTC [7] FATAL:  disk is full"],
        ),
        ("2026-11-24 12:00:00 UTC [7] LOG:  checkpoint complete", []),
    ],
)
def test_condense(line: str, shown: list[str]) -> None:
    assert shown == list(condense(line))


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntw")
    lines, place = _read_lines(log, 0)
    assert (lines, place) == (["one"], 4)
    log.write_bytes(b"one\ntwo\n")
    assert _read_lines(log, place) == (["two"], 8)


def test_an_audit_entry_is_one_bounded_line() -> None:
    entry = audit_pb2.AuditEntry(
        action="execution.denied",
        subject="exe_1",
        actor="spiffe://local/caller/ann",
        result="POLICY_DENIED",
        details='{"long": "' + "x" * 1000 + '"}',
    )
    line = describe(entry)
    assert line.startswith("execution.denied exe_1 by ann → POLICY_DENIED")
    assert len(line) <= MAX_LINE_CHARS


def test_the_last_words_of_a_log_are_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n    | ValueError: bad\n    +-----\n\n")
    assert last_line(log) == "ValueError: bad"
    assert last_line(tmp_path / "missing") == ""


def a_stack(up_pid: int) -> Stack:
    return Stack(
        target="localhost:1",
        enroll_target="localhost:2",
        control_admin="127.0.0.1:3",
        node_admin="127.0.0.1:4",
        up_pid=up_pid,
        postgres_pid=1,
        control_plane_pid=1,
        node_pid=1,
        node_id="nod_1",
        started_at="2026-11-24T12:00:00+00:00",
    )


def test_a_stack_is_found_while_its_up_lives(tmp_path: Path) -> None:
    assert read_stack(tmp_path) is None
    write_stack(tmp_path, a_stack(os.getpid()))
    assert read_stack(tmp_path) == a_stack(os.getpid())
    write_stack(tmp_path, a_stack(2**22 + 1))
    assert read_stack(tmp_path) is None
    remove_stack(tmp_path)
    (tmp_path / "up.json").write_text("{broken")
    assert read_stack(tmp_path) is None

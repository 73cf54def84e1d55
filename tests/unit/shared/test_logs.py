import io
import json
import logging
import subprocess
import sys

import pytest

from shared.logs import LogStyle, configure_logging, get_logger, is_secret_name


@pytest.fixture
def lines():
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    configure_logging("info", LogStyle.JSON, stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)


def test_structlog_and_stdlib_come_out_alike(lines):
    get_logger("ours").info("order accepted", execution_id="exe_1")
    logging.getLogger("theirs").warning("retry %d", 3, extra={"node_id": "nod_1"})
    ours, theirs = lines()
    assert (ours["event"], ours["level"], ours["logger"], ours["execution_id"]) == (
        "order accepted",
        "info",
        "ours",
        "exe_1",
    )
    assert (theirs["event"], theirs["level"], theirs["logger"], theirs["node_id"]) == (
        "retry 3",
        "warning",
        "theirs",
        "nod_1",
    )
    assert ours["timestamp"].endswith("Z")


def test_level_is_kept(lines):
    get_logger("ours").debug("quiet")
    logging.getLogger("theirs").debug("quiet")
    assert lines() == []


@pytest.mark.parametrize(
    "name", ["password", "db_password", "AuthToken", "private_key", "Authorization", "cookie", "database_url"]
)
def test_secret_is_masked_by_its_name_at_every_depth(lines, name):
    get_logger("ours").info("x", **{name: "hunter2"}, request={"headers": [{name: "hunter2"}]})
    logging.getLogger("theirs").info("x", extra={name: "hunter2"})
    assert "hunter2" not in json.dumps(lines())
    assert lines()[0][name] == "***"


def test_fencing_token_is_no_secret():
    assert not is_secret_name("fencing_token")
    assert is_secret_name("token")


def test_large_values_are_cut_and_bytes_never_shown(lines):
    get_logger("ours").info("x", text="a" * 10_000, body=b"secret body", items=list(range(100)))
    (line,) = lines()
    assert len(line["text"]) < 2100
    assert line["text"].endswith("(10000 characters)")
    assert line["body"] == "<11 bytes>"
    assert len(line["items"]) == 32


def test_deep_and_strange_values_do_not_break_logging(lines):
    deep: dict = {}
    for _ in range(100):
        deep = {"a": deep}
    get_logger("ours").info("x", deep=deep, thing=object(), error=ValueError("boom"))
    (line,) = lines()
    assert line["error"] == "boom"


def test_exception_is_logged_with_its_traceback(lines):
    try:
        int("boom")
    except ValueError:
        get_logger("ours").exception("failed")
    (line,) = lines()
    assert "ValueError: invalid literal" in line["exception"]


def test_human_style_writes_no_json():
    stream = io.StringIO()
    root = logging.getLogger()
    before = list(root.handlers)
    configure_logging("info", LogStyle.HUMAN, stream=stream)
    get_logger("ours").info("order accepted", token="hunter2", node_id="nod_1")
    root.handlers[:] = before
    assert "order accepted" in stream.getvalue()
    assert "nod_1" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="loud"):
        configure_logging("loud", LogStyle.JSON)


@pytest.mark.parametrize("style", list(LogStyle))
def test_a_traceback_shows_no_local_variables(style):
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    configure_logging("info", style, stream=stream)
    try:
        _fail_with_a_secret()
    except ValueError:
        get_logger("ours").exception("it failed")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert "_fail_with_a_secret" in stream.getvalue()
    assert "personal data" not in stream.getvalue()


def _fail_with_a_secret():
    body = b"personal " + b"data"
    raise ValueError(f"boom of {len(body)} bytes")


def test_logging_leaves_rich_to_those_who_want_it():
    program = (
        "import sys, shared.logs; assert 'rich' not in sys.modules; import rich.console; "
        "assert rich.console.Console"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

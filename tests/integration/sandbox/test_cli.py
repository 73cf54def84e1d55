"""`agentfactory sandbox run` as a shell sees it: streams, exit codes, one line of outcome."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).parents[2] / "guests" / "probe.wasm"
TIMEOUT_SECONDS = 60


def sandbox(*arguments, stdin: bytes | None = b"", **options):
    command = [sys.executable, "-m", "cli.main", "sandbox", "run", *map(str, arguments)]
    streams = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False, **streams, **options
    )


def test_streams_are_passed_through():
    done = sandbox(PROBE, "both")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")
    body = bytes(range(256)) * 4096
    assert sandbox("--limit", "output_bytes=2000000", PROBE, "echo", stdin=body).stdout == body


def test_stdin_may_be_a_file_or_nothing(tmp_path):
    (tmp_path / "input").write_bytes(b"from a file")
    with (tmp_path / "input").open("rb") as file:
        command = [sys.executable, "-m", "cli.main", "sandbox", "run", str(PROBE), "echo"]
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.stdout == b"from a file"
    assert sandbox(PROBE, "echo", stdin=None).stdout == b""


def test_options_after_the_module_are_the_guests():
    assert sandbox(PROBE, "args", "--env", "--limit", "x").stdout == b"--env\n--limit\nx\n"


def test_environment_and_directories(tmp_path):
    (tmp_path / "file").write_text("")
    assert sandbox("--env", "NAME=a=b", PROBE, "env", "NAME").stdout == b"a=b\n"
    assert sandbox("--dir", f"{tmp_path}::/d:ro", PROBE, "list", "/d").stdout == b"file\n"
    assert sandbox("--dir", f"{tmp_path}::/d:ro", PROBE, "write", "/d/new").returncode == 9
    assert sandbox("--dir", f"{tmp_path}::/d", PROBE, "write", "/d/new").returncode == 0
    assert (tmp_path / "new").exists()


@pytest.mark.parametrize("code", [0, 3, 255])
def test_the_exit_code_is_the_guests(code):
    assert sandbox(PROBE, "exit", code).returncode == code


def test_an_exit_code_that_no_shell_can_show_is_a_failure_not_a_success():
    assert sandbox(PROBE, "exit", 256).returncode == 1


def test_a_kill_and_a_trap_are_one_line_each_and_exit_1():
    done = sandbox("--limit", "wall_ms=100", PROBE, "say-and-spin")
    assert (done.returncode, done.stdout) == (1, b"last words\n")
    assert done.stderr == b"killed: limit wall_ms\n"
    done = sandbox(PROBE, "trap")
    assert (done.returncode, done.stderr) == (1, b"trapped: UnreachableCodeReached: unreachable\n")


def test_json_puts_the_outcome_beside_the_output():
    done = sandbox("--json", "--limit", "memory_bytes=8388608", PROBE, "grow")
    outcome = json.loads(done.stderr)
    assert (done.returncode, outcome["outcome"], outcome["limit"]) == (1, "killed", "memory_bytes")
    assert 0 < outcome["resources"]["peak_memory_bytes"] <= 8388608
    error = json.loads(sandbox("--json", __file__).stderr)
    assert error["error"]["reason"] == "MODULE_INVALID"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["/nowhere.wasm"], 2),
        ([], 2),
        (["--limit", "patience=1", PROBE], 2),
        (["--limit", "wall_ms=fast", PROBE], 2),
        (["--limit", "wall_ms=0", PROBE], 2),
        (["--env", "NAME", PROBE], 2),
        (["--dir", "/tmp", PROBE], 2),
        (["--dir", "/tmp::/d:rw", PROBE], 2),
        (["--dir", "/nowhere::/d", PROBE], 2),
        ([__file__], 3),
    ],
)
def test_wrong_use_is_2_and_a_refused_module_3(arguments, code):
    done = sandbox(*arguments)
    assert done.returncode == code
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_a_reader_that_leaves_does_not_leave_the_guest_running():
    command = [
        sys.executable,
        "-m",
        "cli.main",
        "sandbox",
        "run",
        "--limit",
        "output_bytes=99999999",
        str(PROBE),
    ]
    with subprocess.Popen(
        [*command, "flood-out"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout.read(10) == b"x" * 10
        process.stdout.close()
        assert process.wait(TIMEOUT_SECONDS) == 1


@pytest.mark.parametrize("profile", ["deterministic", "portable"])
def test_the_same_command_under_a_repeatable_profile_says_the_same(profile):
    runs = [sandbox("--profile", profile, "--json", PROBE, "random") for _ in range(2)]
    first, second = (json.loads(run.stderr) for run in runs)
    assert runs[0].stdout == runs[1].stdout
    assert first["resources"]["fuel"] == second["resources"]["fuel"] > 0
    assert first["engine"] == second["engine"]
    assert first["engine"]["profile"] == profile


def test_seed_and_clock_may_be_named_under_any_profile():
    seed, clock = ("--seed", "11" * 32), ("--clock", "2026-01-02T00:00:00Z")
    assert sandbox(*seed, PROBE, "random").stdout == sandbox(*seed, PROBE, "random").stdout
    assert sandbox(*clock, PROBE, "clock").stdout == b"1767312000\n"
    assert sandbox("--profile", "portable", PROBE, "clock").stdout == b"946684800\n"


@pytest.mark.parametrize(
    "wrong", [("--profile", "fast"), ("--seed", "11"), ("--seed", "x"), ("--clock", "now")]
)
def test_a_wrong_profile_seed_or_clock_is_wrong_use(wrong):
    assert sandbox(*wrong, PROBE, "hello").returncode == 2


def test_fuel_is_a_limit_by_name():
    done = sandbox("--profile", "deterministic", "--limit", "fuel=1000", PROBE, "hello")
    assert (done.returncode, done.stderr) == (1, b"killed: limit fuel\n")

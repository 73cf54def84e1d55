"""`agentfactory sandbox run` as a shell sees it: streams, exit codes, one line of outcome."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PROBE = Path(__file__).parents[2] / "guests" / "probe.wasm"
CALLER = PROBE.with_name("caller.wasm")
FETCHER = PROBE.with_name("fetcher.wasm")
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


def asked(*lines: dict, options=(), guest=CALLER):
    """Run a guest that makes these calls; returns its answers and the summary."""
    done = sandbox(
        "--json", *options, guest, stdin="".join(json.dumps(line) + "\n" for line in lines).encode()
    )
    assert done.returncode == 0, done.stderr
    *log, summary = done.stderr.splitlines()
    return [json.loads(line) for line in done.stdout.splitlines()], json.loads(summary), log


def fetch(url: str, method: str = "GET") -> dict:
    return {"method": "http.fetch", "params": {"method": method, "url": url}}


@pytest.fixture
def api():
    """A server that answers each request with its own text."""

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"{self.requestline}\n{self.headers}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/"
        server.shutdown()
        thread.join()


def test_host_calls_that_reach_nothing_outside_are_always_answered():
    answers, summary, log = asked(
        {"method": "log", "params": {"level": "info", "message": "hello"}},
        {"method": "budget.left"},
        {"method": "kv.get", "params": {"key": "a"}},
        {"method": "kv.put", "params": {"key": "a", "value_base64": "eA=="}},
        {"method": "kv.get", "params": {"key": "a"}},
    )
    assert [json.loads(line) for line in log] == [{"level": "info", "message": "hello"}]
    assert answers[1]["ok"]["host_calls"] == 998
    assert [answer["ok"] for answer in answers[2:]] == [
        {"found": False},
        {},
        {"found": True, "value_base64": "eA=="},
    ]
    assert summary["denials"] == []
    assert summary["resources"]["host_calls"] == 5


def test_fetch_reaches_only_what_the_command_names(api):
    options = ("--allow-http", f"GET {api}", "--allow-network", "127.0.0.0/8")
    answers, summary, _ = asked(fetch(api + "x"), fetch(api, "POST"), fetch(api + "../v2"), options=options)
    assert base64.b64decode(answers[0]["ok"]["body_base64"]).startswith(b"GET /v1/x HTTP/1.1\n")
    assert [answer["error"]["reason"] for answer in answers[1:]] == ["NOT_GRANTED"] * 2
    assert summary["denials"] == [{"method": "http.fetch", "reason": "not_granted", "count": 2}]

    (answer,), _, _ = asked(fetch(api, "POST"), options=("--allow-http", f"* {api}", *options[2:]))
    assert answer["ok"]["status"] == 200


def test_fetch_reaches_no_private_network_that_was_not_named(api):
    answers, summary, _ = asked(fetch(api), options=("--allow-http", f"GET {api}"))
    assert answers[0]["error"]["reason"] == "ADDRESS_FORBIDDEN"
    assert summary["denials"] == [{"method": "http.fetch", "reason": "address_forbidden", "count": 1}]


def test_what_was_denied_is_printed():
    done = sandbox(CALLER, stdin=(json.dumps(fetch("https://a.test/")) + "\n").encode() * 2)
    assert (done.returncode, done.stderr) == (0, b"denied: http.fetch (not_granted): 2\n")


def test_secrets_are_put_in_and_taken_out(api, tmp_path):
    secrets = tmp_path / "secrets.json"
    token = "a-token-that-nobody-sees"
    secrets.write_text(json.dumps({"default": {"api-token": {"value": token, "urls": [api]}}}))
    secrets.chmod(0o600)
    options = ("--allow-http", f"GET {api}", "--allow-network", "127.0.0.0/8", "--secrets", secrets)
    done = sandbox(*options, FETCHER, stdin=f"{api}\n".encode())
    assert done.returncode == 0, done.stderr
    shown = base64.b64decode(json.loads(done.stdout)["ok"]["body_base64"])
    assert b"authorization: Bearer [secret]" in shown
    assert token.encode() not in done.stdout
    secrets.chmod(0o644)
    assert sandbox(*options, FETCHER).returncode == 3


def test_scratch_is_there_when_it_is_asked_for():
    assert sandbox(PROBE, "write", "/scratch/new").returncode != 0
    assert sandbox("--scratch", PROBE, "write", "/scratch/new").returncode == 0
    granted = ("--limit", "scratch_bytes=1000", "--limit", "scratch_inodes=1")
    assert sandbox(*granted, PROBE, "write", "/scratch/new").returncode == 0
    assert sandbox("--limit", "scratch_inodes=0", "--scratch", PROBE, "write", "/scratch/new").returncode != 0


@pytest.mark.parametrize(
    "wrong",
    [
        ("--allow-http", "https://a.test/"),
        ("--allow-http", "GET https://a.test/%2e%2f"),
        ("--allow-network", "127.0.0.1/8"),
        ("--secrets", "/nowhere"),
    ],
)
def test_what_calls_may_reach_has_its_form(wrong):
    done = sandbox(*wrong, PROBE, "hello")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr

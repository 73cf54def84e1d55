"""Agents in JavaScript, from the author's folder to a run in the real sandbox."""

import json
import shutil
from pathlib import Path

import pytest

from shared.package_files import read_unsigned_package
from tests.fixtures.runtimes import Author, built_here_and_far_away, runtime_folder


@pytest.fixture(scope="module")
def runtimes() -> Path:
    return runtime_folder("javascript")


@pytest.fixture
def author(tmp_path: Path, runtimes: Path) -> Author:
    return Author(tmp_path, runtimes)


def refused(author: Author, source: str) -> str:
    author.folder("wrong", "javascript", source)
    said = author("build", "wrong", expect=2).stderr
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1, said
    return said


def ran(author: Author, name: str, source: str, body: object, *, expect: int = 0) -> dict:
    folder = author.folder(name, "javascript", source)
    for path in (folder / "tests").iterdir():
        path.unlink()
    (folder / "tests" / "one.input.json").write_text(json.dumps(body))
    (folder / "tests" / "one.output.json").write_text('"never"')
    done = author("test", name, "--json", expect=1)
    case = json.loads(done.stdout)["cases"][0]
    return json.loads(case["wrong"].partition("found ")[2]) if expect == 0 else case


def test_the_starter_builds_and_its_test_holds(author: Author) -> None:
    author.folder("words", "javascript")
    first = json.loads(author("build", "words", "--json").stdout)
    again = json.loads(author("build", "words", "--json").stdout)
    assert first["digest"] == again["digest"]
    assert (first["unchanged"], again["unchanged"]) == (False, True)
    assert "ok   hello" in author("test", "words").stderr


HEAVY = {"alembic", "cryptography", "fastapi", "google", "grpc", "httpx", "rich", "sqlalchemy", "wasmtime"}


def test_what_takes_half_a_second_to_load_an_unchanged_build_does_not_load(
    tmp_path: Path, runtimes: Path
) -> None:
    author = Author(tmp_path, runtimes, PYTHONPROFILEIMPORTTIME="1")
    made = author("new", "words", "--lang", "javascript")
    author("build", "words")
    again = author("build", "words")
    assert "unchanged: words" in again.stderr
    for done in (made, again):
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "typer" in loaded
        assert not loaded & HEAVY


def test_a_package_that_is_there_already_is_not_written_again_and_a_damaged_one_is(author: Author) -> None:
    folder = author.folder("words", "javascript")
    author("build", "words")
    (blob,) = (folder / "build/words-0.1.0.template/blobs/sha256").iterdir()
    module, before = blob.read_bytes(), blob.stat()
    author("build", "words")
    assert (blob.stat().st_ino, blob.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    blob.write_bytes(module[:-1] + b"x")
    author("build", "words")
    assert blob.read_bytes() == module
    (blob.parent / ("0" * 64)).write_bytes(b"another")
    author("build", "words")
    assert [blob] == list(blob.parent.iterdir())


def test_the_run_that_shows_what_a_run_writes_changes_nothing_else_of_a_build(author: Author) -> None:
    source = """export function run(input, host) {
      for (const [method, params] of [
        ["build.refuse", { message: "no" }], ["build.phase", {}], ["build.phase", { phase: "x" }], ["build.phase", 7],
        ["build.schemas", { input: { type: "string" } }], ["kv.get", { key: "a" }],
      ]) {
        try { host.call(method, params); return method; } catch (error) { if (!error.reason) throw error; }
      }
      if (input.spin) for (;;) {}
      return Math.random() * 0;
    }"""
    folder = author.folder("calls", "javascript", source)
    (folder / "tests/hello.output.json").write_text("0")
    author("test", "calls")
    (folder / "tests/hello.input.json").write_text('{"spin": true}')
    built = json.loads(author("build", "calls", "--json").stdout)
    assert not built["unchanged"]
    package = read_unsigned_package(folder / "build/calls-0.1.0.template")
    assert package.manifest.input_schema is None


def test_the_same_files_give_the_same_bytes_elsewhere(tmp_path: Path, runtimes: Path) -> None:
    assert len(built_here_and_far_away(tmp_path, runtimes, "javascript")) == 1


def test_two_runs_draw_other_random_numbers_and_see_the_clock_of_now(author: Author) -> None:
    source = "export const run = () => ({ random: Math.random(), now: Date.now() });"
    first = ran(author, "one", source, {})
    second = ran(author, "two", source, {})
    assert first["random"] != second["random"]
    assert 1.7e12 < first["now"] <= second["now"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("export function run( {", "agent.js:1: SyntaxError"),
        ("import { x } from './missing.js';\nexport const run = () => x;", "cannot find module 'missing.js'"),
        ("import fs from 'fs';\nexport const run = () => 1;", "cannot find module 'fs'"),
        ("const x = 1;\n", "exports no function named run"),
        ("null.x;\nexport const run = () => 1;", "agent.js:1: TypeError"),
        ("const now = Date.now();\nexport const run = () => now;", "reads the clock while it is loaded"),
        ("const x = Math.random();\nexport const run = () => x;", "random numbers while it is loaded"),
        ("for (;;) {}\nexport const run = () => 1;", "does not come to an end"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(author: Author, source: str, words: str) -> None:
    assert words in refused(author, source)


def test_an_error_points_at_the_authors_line(author: Author) -> None:
    source = (
        "export function run(input) {\n  return inner(input);\n}\nfunction inner(x) {\n  return x.a.b;\n}\n"
    )
    case = ran(author, "one", source, {}, expect=1)
    assert "cannot read property 'b' of undefined" in case["wrong"]
    assert "agent.js:5" in author("test", "one", expect=1).stderr


def test_more_memory_than_the_manifest_grants_is_said(author: Author) -> None:
    source = "export const run = () => { const all = []; for (;;) all.push(new Uint8Array(1e6).fill(1)); };"
    case = ran(author, "hungry", source, {}, expect=1)
    assert "limit memory_bytes" in case["wrong"]
    assert "agent.toml" in case["wrong"]


def test_what_one_run_leaves_behind_the_next_does_not_see(author: Author) -> None:
    source = "let count = 0;\nexport const run = () => ++count;"
    assert [ran(author, name, source, {}) for name in ("one", "two")] == [1, 1]


def test_a_call_that_is_not_granted_is_denied_and_told(author: Author) -> None:
    source = (
        "export function run(input, host) {\n"
        "  try { host.http.fetch('https://api.example.test/'); } catch (error) { return error.reason; }\n}"
    )
    assert ran(author, "one", source, {}) == "NOT_GRANTED"
    assert "denied http.fetch (not_granted)" in author("test", "one", expect=1).stderr


def test_recorded_answers_stand_for_the_network(author: Author) -> None:
    source = (
        "export function run(input, host) {\n"
        "  const headers = { authorization: host.secret('api-token', 'Bearer ') };\n"
        "  return host.http.fetch('https://api.example.test/v1/x', { headers }).json().name;\n}"
    )
    folder = author.folder("asks", "javascript", source)
    toml = (folder / "agent.toml").read_text()
    granted = 'http = [{ method = "GET", url = "https://api.example.test/v1/" }]\nsecrets = ["api-token"]\n'
    (folder / "agent.toml").write_text(toml.replace("[capabilities]\n", "[capabilities]\n" + granted))
    (folder / "tests/hello.output.json").write_text('"Ada"')
    answers = [{"url": "https://api.example.test/v1/x", "body": {"name": "Ada"}}]
    (folder / "tests/hello.http.json").write_text(json.dumps(answers))
    author("test", "asks")


def test_dev_shows_output_log_and_resources(author: Author) -> None:
    author.folder("words", "javascript")
    done = author("dev", "words", "--rounds", "1")
    assert json.loads(done.stdout) == {"words": 6, "most_common": ["to", "be", "or"]}
    assert "counted" in done.stderr
    assert "MiB" in done.stderr


def test_a_package_that_is_signed_is_not_replaced(author: Author) -> None:
    folder = author.folder("words", "javascript")
    author("build", "words")
    package = folder / "build/words-0.1.0.template"
    (package / "envelope.json").write_text("{}")
    (folder / "agent.js").write_text("export const run = () => 1;")
    assert "raise the version" in author("build", "words", expect=2).stderr
    shutil.rmtree(package)
    author("build", "words")


def test_a_missing_runtime_says_how_it_is_had(tmp_path: Path) -> None:
    author = Author(tmp_path, tmp_path / "none")
    author.folder("words", "javascript")
    assert "the wheel agentfactory-javascript" in author("build", "words", expect=4).stderr


def test_a_c_agent_is_built_and_tested_too(author: Author) -> None:
    author.folder("counts", "c")
    author("test", "counts")
    (author.home / "counts" / "agent.c").write_text("int main(void) { return oops; }")
    assert "agent.c:1:" in author("build", "counts", expect=2).stderr

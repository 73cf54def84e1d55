"""What README.md and docs/ show is true: links lead somewhere, make targets and commands exist, examples run.

CONTRIBUTING.md says how blocks are tagged. Those tagged `test` are run here, in the order of TOUR, on one system.
"""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from shared.key_files import write_secret_file
from tests.e2e.gateway import TestGateway, running_gateway
from tests.e2e.stack import ROOT, TestStack, running_stack

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/README.md"),
    ]
)
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^(```+)([^\n`]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
DATA = frozenset(
    ["c", "go", "hcl", "json", "python", "rego", "rust", "sql", "text", "toml", "typescript", "yaml"]
)
"""Languages that show something; `python` may also be tagged."""
TAGS = frozenset({"console", "sh test", "sh by-hand", "python test"}) | DATA
TOUR = ("start", "authors", "callers")
"""Pages whose tagged blocks build on each other, in this order."""
BLOCK_SECONDS = 120  # the first use of zig compiles its libc
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
# What a page names in words: `path/to.py`, and no media type.
PATH = re.compile(r"`(?!multipart/)((?:[a-z_]+/)+[A-Za-z0-9_.-]*)`")


def commands(page: Path) -> list[list[str]]:
    lines = [
        line
        for block in BLOCK.findall(page.read_text())
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    return [shlex.split(line[2:].split(" < ")[0]) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in LINK.findall(text) if "://" not in link]
    made_by_commands = ("build/", "keys/")
    paths = [path for path in PATH.findall(text) if not path.startswith(made_by_commands)]
    assert [str(link) for link in links if not link.exists()] == []
    assert [path for path in paths if not (ROOT / path).exists() and not (page.parent / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is_and_who_runs_it(page: Path) -> None:
    """A shell block is run by a test (`sh test`), or says that people do that (`sh by-hand`)."""
    tags = {tag for _, tag, _ in FENCE.findall(page.read_text())}
    assert sorted(tags - TAGS) == [], f"tag these as CONTRIBUTING.md says: one of {sorted(TAGS)}"


def test_every_test_that_a_page_names_exists() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in [path.name, *re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)]
    }
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text())}
    assert len(named) > 20
    assert sorted(named - there) == []


def test_pages_outside_the_tour_have_no_block_that_is_never_run() -> None:
    tour = {ROOT / "docs" / f"{name}.md" for name in TOUR}
    tagged = {
        page for page in PAGES for _, tag, _ in FENCE.findall(page.read_text()) if tag.endswith(" test")
    }
    assert tagged == tour


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands(page) if words[0] == "make" and len(words) > 1}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        if words[0].rpartition("/")[2] != "agentfactory":
            continue
        path = words[1:2]
        shown = CliRunner().invoke(app, [*path, "--help"])
        for name in words[2:4]:  # groups have groups
            if name.startswith("-") or not re.search(rf"^│ {re.escape(name)}\b", shown.output, re.MULTILINE):
                break
            path.append(name)
            shown = CliRunner().invoke(app, [*path, "--help"])
        assert shown.exit_code == 0, words
        options = {word for word in words if word.startswith("--")}
        assert options <= set(re.findall(r"--[a-z-]+", shown.output)), words


@pytest.mark.timeout(180)
async def test_the_tour_of_the_readme_works(tmp_path: Path) -> None:
    """The README's commands, in order, against a running system; `make` and `up` have tests of their own."""
    tour = [words[1:] for words in commands(ROOT / "README.md") if words[0] == ".venv/bin/agentfactory"]
    tour = [words for words in tour if words[0] not in {"up", "sandbox"}]
    assert [words[0] for words in tour] == ["template"] * 3 + ["agent", "run", "execution", "audit"]
    assert ["examples/redact/build.sh"] in commands(ROOT / "README.md")
    subprocess.run([str(ROOT / "examples" / "redact" / "build.sh")], check=True, timeout=120)
    async with running_stack() as stack:
        for words in tour:
            place = {"build/redact-1.0.0.template": str(tmp_path / "redact-1.0.0.template")}
            arguments = [place.get(word, word) for word in words]
            if arguments[:2] == ["template", "build"]:
                arguments += ["--out", str(tmp_path)]
            done = await stack.cli(*arguments)
            if words[0] == "run":
                assert done.json()["tickets"] == 36


@pytest.mark.timeout(300)
async def test_blocks_tagged_test_do_what_they_say(tmp_path: Path) -> None:
    """Each block as a program of its own, in a folder like a checkout, against a system as `up` leaves it."""
    for name in (".venv", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    async with running_stack() as stack, running_gateway(stack) as gateway:
        write_secret_file(stack.paths.token, gateway.token.encode())
        environment = as_up_leaves_it(stack, gateway)
        for page in TOUR:
            text = (ROOT / "docs" / f"{page}.md").read_text()
            for _, tag, block in FENCE.findall(text):
                if tag.endswith(" test"):
                    await run_block(page, tag, block, tmp_path, environment)
    assert '"tickets":36' in (tmp_path / "redacted.json").read_text().replace(" ", "")


def as_up_leaves_it(stack: TestStack, gateway: TestGateway) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AF_")}
    cache = os.environ.get("AF_CACHE_DIR") or str(Path.home() / ".cache" / "agentfactory")
    return ours | {
        "AF_CACHE_DIR": cache,
        "ZIG_GLOBAL_CACHE_DIR": f"{cache}/zig",  # its libc is compiled once for all of us
        "AF_CLI_DATA_DIR": str(stack.paths.data_dir),
        "AF_CLI_TARGET": f"localhost:{stack.ports.grpc}",
        "DATA": str(stack.paths.data_dir),
        "CONTROL_PLANE": f"localhost:{stack.ports.enroll}",
        "API": gateway.url,
    }


async def run_block(page: str, tag: str, block: str, folder: Path, environment: dict[str, str]) -> None:
    shell = ["bash", "-euo", "pipefail", "-c"] if tag == "sh test" else [sys.executable, "-c"]
    process = await asyncio.create_subprocess_exec(
        *(*shell, block),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(BLOCK_SECONDS):
            said, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"docs/{page}.md:\n{block}\n{said.decode(errors='replace')}"

"""What README.md and docs/ show is true: links lead somewhere, make targets and commands exist, the tour works."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.e2e.stack import ROOT, running_stack

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/README.md"),
    ]
)
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands(page) if words[0] == "make" and len(words) > 1}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        if words[0] != ".venv/bin/agentfactory":
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

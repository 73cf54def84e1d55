"""Agents in Python, from the author's folder to a run in the real sandbox.

Their runtime takes minutes to build: the stage `runtimes` does that once for its sources.
"""

import json
from pathlib import Path

import pytest

from tests.fixtures.runtimes import ROOT, Author, runtime_folder


@pytest.fixture(scope="module")
def runtimes() -> Path:
    return runtime_folder("python")


@pytest.fixture
def author(tmp_path: Path, runtimes: Path) -> Author:
    return Author(tmp_path, runtimes)


def ran(author: Author, name: str, source: str, body: object, *, expect: int = 0) -> dict:
    folder = author.folder(name, "python", source)
    for path in (folder / "tests").iterdir():
        path.unlink()
    (folder / "tests" / "one.input.json").write_text(json.dumps(body))
    (folder / "tests" / "one.output.json").write_text('"never"')
    case = json.loads(author("test", name, "--json", expect=1).stdout)["cases"][0]
    return json.loads(case["wrong"].partition("found ")[2]) if expect == 0 else case


def test_the_starter_builds_and_its_test_holds(author: Author) -> None:
    author.folder("words", "python")
    first = json.loads(author("build", "words", "--json").stdout)
    again = json.loads(author("build", "words", "--json").stdout)
    assert (first["digest"], again["unchanged"]) == (again["digest"], True)
    assert "ok   hello" in author("test", "words").stderr


def test_the_same_files_give_the_same_bytes_elsewhere(tmp_path: Path, runtimes: Path) -> None:
    digests = set()
    for place, zone in (("here", "UTC"), ("far/away", "Pacific/Auckland")):
        home = tmp_path / place
        home.mkdir(parents=True)
        author = Author(home, runtimes, TZ=zone, PYTHONHASHSEED="random", SECRET_TOKEN="hunter22")
        author.folder("words", "python")
        digests.add(json.loads(author("build", "words", "--json").stdout)["digest"])
        (blob,) = (home / "words/build/words-0.1.0.template/blobs/sha256").iterdir()
        assert b"hunter22" not in blob.read_bytes()
        assert str(home).encode() not in blob.read_bytes()
    assert len(digests) == 1


def test_two_runs_draw_other_random_numbers_and_see_the_clock_of_now(author: Author) -> None:
    source = (
        "import random, time, uuid, secrets, os\n"
        "def run(input, host):\n"
        "    return {'random': [random.random(), str(uuid.uuid4()), secrets.token_hex(4)], 'now': time.time(),\n"
        "            'parameters': os.environ['AGENTFACTORY_PARAMETERS'], 'home': os.environ.get('HOME')}\n"
    )
    first, second = (ran(author, name, source, {}) for name in ("one", "two"))
    assert all(a != b for a, b in zip(first["random"], second["random"], strict=True))
    assert 1.7e9 < first["now"] <= second["now"]
    assert (first["parameters"], first["home"]) == ("{}", None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def run(input, host):\n    return {\n", "agent.py:2: SyntaxError"),
        ("import socket\ndef run(input, host): ...\n", "agent.py:1: import socket"),
        ("import numpy\ndef run(input, host): ...\n", "agent.py:1: import numpy: there is no such module"),
        (
            "import os\nKEY = os.environ['KEY']\ndef run(input, host): ...\n",
            "agent.py:2: reads the environment",
        ),
        (
            "import os\nKEY = os.getenv('KEY')\ndef run(input, host): ...\n",
            "agent.py:2: reads the environment",
        ),
        ("import time\nNOW = time.time()\ndef run(input, host): ...\n", "reads the clock while it is loaded"),
        ("import random\nX = random.random()\ndef run(input, host): ...\n", "draws random numbers"),
        ("import random\nX = random.Random()\ndef run(input, host): ...\n", "draws random numbers"),
        ("import os\nX = os.urandom(8)\ndef run(input, host): ...\n", "draws random numbers"),
        ("from agentfactory_guest import Host\nX = Host().secret('k')\n", "calls its host"),
        ("1 / 0\n", "agent.py:1: ZeroDivisionError"),
        ("X = 1\n", "agent.py has no function run"),
        ("while True: pass\n", "does not come to an end"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(author: Author, source: str, words: str) -> None:
    author.folder("wrong", "python", source)
    said = author("build", "wrong", expect=2).stderr
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1


def test_a_traceback_shows_the_authors_lines_and_no_others(author: Author) -> None:
    source = "def inner(x):\n    return x['missing']\n\ndef run(input, host):\n    return inner(input)\n"
    ran(author, "one", source, {}, expect=1)
    said = author("test", "one", expect=1).stderr
    assert 'File "agent.py", line 2, in inner' in said
    assert "return x['missing']" in said
    assert "agentfactory_start" not in said


def test_more_memory_than_the_manifest_grants_is_said(author: Author) -> None:
    source = "def run(input, host):\n    kept = []\n    while True:\n        kept.append(bytes(10**6))\n"
    assert "limit memory_bytes" in ran(author, "hungry", source, {}, expect=1)["wrong"]


def test_the_standard_library_works(author: Author) -> None:
    source = (
        "import asyncio, dataclasses, datetime, decimal, hashlib, json, logging, re, statistics, urllib.parse, zlib\n"
        "async def run(input, host):\n"
        "    await asyncio.sleep(0.001)\n"
        "    async with asyncio.TaskGroup() as group:\n"
        "        task = group.create_task(asyncio.sleep(0, 3))\n"
        "    return [str(decimal.Decimal('0.1') * 3), hashlib.sha256(b'x').hexdigest()[:8], task.result(),\n"
        "            datetime.datetime.strptime('2026-01-02', '%Y-%m-%d').isoformat(),\n"
        "            zlib.decompress(zlib.compress(b'abc')).decode(), re.sub('a+', 'b', 'caaat')]\n"
    )
    assert ran(author, "many", source, {}) == ["0.3", "2d711642", 3, "2026-01-02T00:00:00", "abc", "cbt"]


def test_the_log_summary_of_the_examples_works(author: Author) -> None:
    author("test", str(ROOT / "examples" / "log-summary"))

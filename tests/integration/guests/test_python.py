"""Agents in Python, from the author's folder to a run in the real sandbox.

Their runtime takes minutes to build: the stage `runtimes` does that once for its sources. One agent does most of
what is tested, so that it is compiled once.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.runtimes import ROOT, Author, built_here_and_far_away, runtime_folder

pytestmark = pytest.mark.timeout(600)

MANY = """\
import asyncio, dataclasses, datetime, decimal, hashlib, json, logging, os, random, re, secrets, statistics
import sys, time, typing, urllib.parse, uuid, zlib, zoneinfo

seen = []
KOLKATA = zoneinfo.ZoneInfo("Asia/Kolkata")


def run(input, host):
    return globals()[input](host)


def chance(host):
    return [random.random(), str(uuid.uuid4()), secrets.token_hex(4)]


def surroundings(host):
    return [time.time(), os.environ["AGENTFACTORY_PARAMETERS"], os.environ.get("HOME"), dict(host.parameters)]


def memory(host):
    seen.append(1)
    return len(seen)


def library(host):
    async def three():
        await asyncio.sleep(0.001)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, 3))
        return task.result()
    return [str(decimal.Decimal("0.1") * 3), hashlib.sha256(b"x").hexdigest()[:8], asyncio.run(three()),
            datetime.datetime.strptime("2026-01-02", "%Y-%m-%d").isoformat(),
            zlib.decompress(zlib.compress(b"abc")).decode(), re.sub("a+", "b", "caaat"),
            statistics.median([3, 1, 2]), "ä".encode("utf-16-le").hex()]


def zones(host):
    noon = datetime.datetime(2026, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    winter = noon.replace(month=12)
    try:
        zoneinfo.ZoneInfo("../etc/passwd")
    except Exception as error:
        wrong = type(error).__name__
    try:
        zoneinfo.ZoneInfo("Europe/Atlantis")
    except zoneinfo.ZoneInfoNotFoundError as error:
        missing = str(error)
    return [noon.utcoffset().seconds, winter.utcoffset().seconds, noon.astimezone(KOLKATA).isoformat(),
            len(zoneinfo.available_timezones()), wrong, missing]


def says(host):
    print("printed")
    logging.getLogger().warning("warned")
    host.log.info("told", words=6)


def denied(host):
    try:
        host.http.fetch("https://api.example.test/")
    except Exception as error:
        return error.reason


def inner(x):
    return x["missing"]


def fails(host):
    return inner({})


def hungry(host):
    kept = []
    while True:
        kept.append(bytes(10**6))


def spins(host):
    while True:
        pass


def outside(host):
    found = []
    for attempt in (lambda: open("/etc/passwd"), lambda: os.listdir("/"), lambda: os.system("true"), lambda: __import__("numpy")):
        try:
            found.append(str(attempt()))
        except Exception as error:
            found.append(type(error).__name__)
    return found
"""


@pytest.fixture(scope="module")
def runtimes() -> Path:
    return runtime_folder("python")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runtime is compiled to once, for starts at build time."""
    return tmp_path_factory.mktemp("python") / "cache"


@pytest.fixture
def author(tmp_path: Path, runtimes: Path, cache: Path) -> Author:
    return Author(tmp_path, runtimes, AF_CLI_CACHE_DIR=str(cache))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, runtimes: Path, cache: Path) -> Mapping[str, Any]:
    """What came of each function of MANY, of `chance` twice."""
    author = Author(tmp_path_factory.mktemp("many"), runtimes, AF_CLI_CACHE_DIR=str(cache))
    names = ("surroundings", "library", "zones", "says", "denied", "fails", "hungry", "spins", "outside")
    twice = {"chance-1": "chance", "chance-2": "chance", "memory-1": "memory", "memory-2": "memory"}
    return author.cases("many", "python", MANY, twice | {name: name for name in names})


def test_the_starter_builds_and_its_test_holds(author: Author) -> None:
    author.folder("words", "python")
    first = json.loads(author("build", "words", "--json").stdout)
    again = json.loads(author("build", "words", "--json").stdout)
    assert (first["digest"], again["unchanged"]) == (again["digest"], True)
    assert "ok   hello" in author("test", "words").stderr


def test_the_same_files_give_the_same_bytes_elsewhere(tmp_path: Path, runtimes: Path) -> None:
    assert len(built_here_and_far_away(tmp_path, runtimes, "python")) == 1


def test_two_runs_draw_other_random_numbers(ran: Mapping[str, Any]) -> None:
    first, second = ran["chance-1"]["found"], ran["chance-2"]["found"]
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_a_run_sees_the_clock_of_now_and_its_own_environment(ran: Mapping[str, Any]) -> None:
    now, parameters, home, given = ran["surroundings"]["found"]
    assert now > 1.7e9
    assert (parameters, home, given) == ("{}", None, {})


def test_what_one_run_leaves_behind_the_next_does_not_see(ran: Mapping[str, Any]) -> None:
    assert [ran["memory-1"]["found"], ran["memory-2"]["found"]] == [1, 1]


def test_the_standard_library_works(ran: Mapping[str, Any]) -> None:
    expected = ["0.3", "2d711642", 3, "2026-01-02T00:00:00", "abc", "cbt", 2, "e400"]
    assert ran["library"]["found"] == expected


def test_time_zones_are_found_by_their_names(ran: Mapping[str, Any]) -> None:
    summer, winter, there, known, wrong, missing = ran["zones"]["found"]
    assert (summer, winter, there) == (7200, 3600, "2026-07-01T15:30:00+05:30")
    assert known > 500
    assert wrong == "ValueError"
    assert missing == "'No time zone found with key Europe/Atlantis'"


def test_an_agent_without_time_zones_holds_none(author: Author) -> None:
    folder = author.folder("words", "python")
    author("build", "words")
    (blob,) = (folder / "build/words-0.1.0.template/blobs/sha256").iterdir()
    assert b"Asia/Kolkata" not in blob.read_bytes()


def test_what_is_printed_and_logged_is_in_the_log(ran: Mapping[str, Any]) -> None:
    assert all(said in ran["says"]["log"] for said in ("printed", "warned", "told"))


def test_a_call_that_is_not_granted_is_denied_and_told(ran: Mapping[str, Any]) -> None:
    assert ran["denied"]["found"] == "NOT_GRANTED"
    assert ran["denied"]["denials"] == [{"method": "http.fetch", "reason": "not_granted", "count": 1}]


def test_a_run_finds_no_files_no_processes_and_no_modules(ran: Mapping[str, Any]) -> None:
    files, folders, process, module = ran["outside"]["found"]
    assert files in {"FileNotFoundError", "PermissionError"}
    assert folders in {"FileNotFoundError", "PermissionError", "OSError"}
    assert process == "AttributeError"
    assert module == "ModuleNotFoundError"


def test_a_traceback_shows_the_authors_lines_and_no_others(ran: Mapping[str, Any]) -> None:
    said = ran["fails"]["log"]
    line = MANY.splitlines().index('    return x["missing"]') + 1
    assert f'File "agent.py", line {line}, in inner' in said
    assert 'return x["missing"]' in said
    assert "agentfactory_start" not in said
    assert "KeyError: 'missing'" in ran["fails"]["wrong"]


def test_more_memory_than_the_manifest_grants_is_said(ran: Mapping[str, Any]) -> None:
    assert "limit memory_bytes; raise it in [limits] of agent.toml" in ran["hungry"]["wrong"]


def test_an_agent_that_does_not_end_is_stopped(ran: Mapping[str, Any]) -> None:
    assert "killed: limit " in ran["spins"]["wrong"]


def test_an_agent_that_needs_more_than_its_manifest_before_it_runs_is_refused(author: Author) -> None:
    folder = author.folder("small", "python")
    toml = (folder / "agent.toml").read_text()
    (folder / "agent.toml").write_text(toml.replace("memory_bytes = 67108864", "memory_bytes = 4194304"))
    said = author("build", "small", expect=2).stderr
    assert "bytes of memory before it runs, and its manifest grants 4194304" in said
    assert "memory_bytes" in said.partition("hint:")[2]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def run(input, host):\n    return {\n", "agent.py:2: SyntaxError"),
        ("import socket\ndef run(input, host): ...\n", "agent.py:1: import socket"),
        ("def run(input, host):\n    import requests\n", "agent.py:2: import requests"),
        ("import threading\ndef run(input, host): ...\n", "agent.py:1: import threading"),
        ("import sqlite3\ndef run(input, host): ...\n", "host.kv"),
        ("import numpy\ndef run(input, host): ...\n", "agent.py:1: import numpy: there is no such module"),
        (
            "import os\nKEY = os.environ['KEY']\ndef run(input, host): ...\n",
            "agent.py:2: reads the environment variable KEY",
        ),
        (
            "import os\nKEY = os.getenv('KEY')\ndef run(input, host): ...\n",
            "agent.py:2: reads the environment variable KEY",
        ),
        ("import time\nNOW = time.time()\ndef run(input, host): ...\n", "reads the clock while it is loaded"),
        ("import random\nX = random.random()\ndef run(input, host): ...\n", "draws random numbers"),
        ("import random\nX = random.Random()\ndef run(input, host): ...\n", "draws random numbers"),
        ("import os\nX = os.urandom(8)\ndef run(input, host): ...\n", "draws random numbers"),
        ("from agentfactory_guest import Host\nX = Host().secret('k')\n", "calls its host"),
        ("\n1 / 0\n", "agent.py:2: ZeroDivisionError"),
        ("X = 1\n", "agent.py has no function run"),
        ("while True: pass\n", "does not come to an end"),
        ("X = bytes(10**9)\ndef run(input, host): ...\n", "agent.py:1: MemoryError"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(author: Author, source: str, words: str) -> None:
    author.folder("wrong", "python", source)
    said = author("build", "wrong", expect=2).stderr
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1


def test_a_socket_names_the_capability_to_use(author: Author) -> None:
    author.folder("wrong", "python", "from urllib import request\ndef run(input, host): ...\n")
    said = author("build", "wrong", expect=2).stderr
    assert "host.http.fetch" in said.partition("hint:")[2]


def wheel(folder: Path, name: str, tag: str, files: Mapping[str, str]) -> str:
    """Make a wheel, and return its line of requirements.txt."""
    path = folder / f"{name}-1.0-{tag}.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{about}/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def shop(tmp_path: Path, runtimes: Path, cache: Path, ran: Mapping[str, Any]) -> Author:
    """Somebody whose pip knows the wheels of one folder and nothing else; the runtime is compiled already."""
    assert ran
    (tmp_path / "wheels").mkdir()
    own = {"AF_CLI_CACHE_DIR": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
    shutil.copytree(cache / "starts", tmp_path / "cache" / "starts", dirs_exist_ok=True)
    return Author(tmp_path, runtimes, **own, PIP_FIND_LINKS=str(tmp_path / "wheels"))


SHOUTS = "import shout\ndef run(input, host):\n    return shout.loud(input)\n"


def test_dependencies_in_python_alone_are_built_in(shop: Author) -> None:
    folder = shop.folder("loud", "python", SHOUTS)
    code = "def loud(text):\n    return text.upper()\n"
    (folder / "requirements.txt").write_text(
        wheel(shop.home / "wheels", "shout", "py3-none-any", {"shout.py": code})
    )
    (folder / "tests/hello.input.json").write_text('"hey"')
    (folder / "tests/hello.output.json").write_text('"HEY"')
    shop("test", "loud")


@pytest.mark.parametrize(
    ("tag", "files"),
    [
        ("cp313-cp313-manylinux_2_17_x86_64", {"shout.py": ""}),
        ("py3-none-any", {"shout.py": "", "_shout.cpython-313-x86_64-linux-gnu.so": "\x7fELF"}),
    ],
    ids=["by its tag", "by what is in it"],
)
def test_a_native_dependency_is_refused_by_its_name(shop: Author, tag: str, files: Mapping[str, str]) -> None:
    folder = shop.folder("loud", "python", SHOUTS)
    (folder / "requirements.txt").write_text(wheel(shop.home / "wheels", "shout", tag, files))
    said = shop("build", "loud", expect=2).stderr
    assert "shout" in said
    assert "native code does not run in the sandbox" in said


def test_a_dependency_is_locked_and_is_what_its_hash_says(shop: Author) -> None:
    folder = shop.folder("loud", "python", SHOUTS)
    line = wheel(shop.home / "wheels", "shout", "py3-none-any", {"shout.py": ""})
    (folder / "requirements.txt").write_text("shout>=1\n")
    assert "line 1: shout>=1 is not NAME==VERSION with hashes" in shop("build", "loud", expect=2).stderr
    (folder / "requirements.txt").write_text(line.partition("sha256:")[0] + f"sha256:{'0' * 64}\n")
    assert "not what its hash says" in shop("build", "loud", expect=2).stderr


@pytest.mark.parametrize("name", ["log-summary", "enrich", "support-desk"])
def test_the_gallery_does_what_it_says(author: Author, name: str) -> None:
    folder = author.home / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns("build"))
    author("test", name)


def test_dev_shows_output_log_and_resources_and_plays_recorded_answers(author: Author) -> None:
    shutil.copytree(
        ROOT / "examples/support-desk", author.home / "desk", ignore=shutil.ignore_patterns("build")
    )
    done = author("dev", "desk", "--rounds", "1", "--input", "desk/tests/refund.input.json")
    assert json.loads(done.stdout)["status"] == "needs_approval"
    assert "MiB" in done.stderr

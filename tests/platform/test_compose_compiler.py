"""What compiles for all nodes, with compose: the commands of docs/operations.md, and what its container reaches."""

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.platform.compose import ROOT, UP_SECONDS, Compose
from tests.platform.conftest import first_agent
from tests.platform.test_compose import ask

READY_SECONDS = 180
SUCCEEDED = "EXECUTION_STATE_SUCCEEDED"
REACHES = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print(target)
    except OSError:
        pass
"""

pytestmark = pytest.mark.timeout(2700)


def eventually(read: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + READY_SECONDS
    while not (found := read()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return found


def commands() -> str:
    """Return what the page has its reader do."""
    section = (ROOT / "docs" / "operations.md").read_text().split("\n### With compose\n")[1]
    return re.findall(r"^```sh by-hand\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]


def answers(compose: Compose) -> bool:
    with suppress(httpx.HTTPError):  # 503 while it starts
        return "activeTargets" in ask(compose, "targets")
    return False


def health(compose: Compose) -> list[str]:
    """Return how Prometheus finds each process that compiles."""
    targets = ask(compose, "targets")["activeTargets"]
    return [one["health"] for one in targets if one["labels"]["job"] == "agentfactory-compiler"]


def said(compose: Compose, service: str) -> str:
    return compose.call("logs", "--no-color", service)


def test_nodes_run_what_the_compiler_made_and_it_reaches_nobody_else(docker: None, tmp_path: Path) -> None:
    compose = Compose(project="agentfactory-compiler", profile="minimal")
    compose.down()
    try:
        compose.up()
        assert "compiler" not in {one["Service"] for one in compose.containers()}
        first_agent(compose, tmp_path)
        compose.call("up", "--detach", "--no-deps", "prometheus")
        eventually(lambda: answers(compose), "a Prometheus that answers")
        assert health(compose) == []  # and no alert about one that nobody wants

        compose.shell(commands(), tmp_path, seconds=UP_SECONDS)

        eventually(lambda: health(compose) == ["up"], "a target of Prometheus")
        (container,) = (one for one in compose.containers() if one["Service"] == "compiler")
        assert container["Health"] == "healthy"
        eventually(lambda: "a module was compiled" in said(compose, "compiler"), "a compiled module")
        ran = compose.cli("run", "desk", "--input", "redact/data/tickets.jsonl", mount=tmp_path)
        assert ran["state"] == SUCCEEDED
        taken = "a module that was compiled elsewhere was taken"
        eventually(lambda: any(taken in said(compose, f"node-{one}") for one in (1, 2, 3)), taken)

        # Prometheus asks it, so they share a network.
        there = ("prometheus:9090", "control-plane:7443", "control-plane-1:7443", "control-plane-2:7443")
        others = ("postgres:5432", "node-1:7454", "gateway:8080", "192.0.2.1:443")
        asked = ("exec", "-T", "compiler", "python3", "-c", REACHES, *there, *others)
        assert compose.call(*asked).split() == list(there)
        (one,) = json.loads(compose.call("config", "--format", "json"))["services"]["compiler"]["volumes"]
        assert one["source"] == "compiler"
    finally:
        compose.down()

"""docker-compose.yml as an operator uses it: up, an agent, killed containers, and up again from the volumes."""

import base64
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.platform.compose import Compose
from tests.platform.test_rules import METRIC, SUFFIX, expressions, rules

READY_SECONDS = 180
UNCHECKED = {"prometheus", "collector", "api", "backup"}
"""Whose images have nothing to check them with; other tests ask them."""
USERS = {"prometheus": "65534:65534", "zipkin": "1000:1000"}
"""Of programs that are not ours."""
CUSTODY_SECRETS = """cd /run/custody
for file in */secret-id seal/setup/secret-id; do cat $file; echo; done
grep -o '"[0-9a-f]\\{64\\}"' seal/recovery.json | tr -d '"'
"""

pytestmark = pytest.mark.timeout(2700)  # the first one starts everything


def run(compose: Compose, folder: Path) -> dict[str, Any]:
    """Run the agent once, by the command line; returns the execution."""
    found: dict[str, Any] = compose.cli("run", "desk", "--input", "redact/data/tickets.jsonl", mount=folder)
    return found


def test_everything_is_up_and_hardened(compose: Compose) -> None:
    found = {one["Service"]: one for one in compose.containers()}
    jobs = {"secrets", "install", "custody", "policy", "hand-out"}
    assert {name: found[name]["ExitCode"] for name in jobs} == dict.fromkeys(jobs, 0)
    assert {name for name, one in found.items() if one["Health"] != "healthy"} == jobs | UNCHECKED
    for name, one in found.items():
        if name in {"postgres", "api"}:
            continue
        inspected = json.loads(subprocess.check_output(["docker", "inspect", one["ID"]]))[0]
        assert inspected["Config"]["User"] == USERS.get(name, "10001:10001"), name
        assert inspected["HostConfig"]["ReadonlyRootfs"], name
        assert inspected["HostConfig"]["CapDrop"] == ["ALL"], name


def test_no_password_is_told(compose: Compose) -> None:
    """Neither `docker inspect` nor the logs show what the volumes keep."""
    said = compose.call("logs", "--no-color") + subprocess.check_output(
        ["docker", "inspect", *[one["ID"] for one in compose.containers()]], text=True
    )
    kept = compose.call(
        *("run", "--rm", "--no-TTY", "--entrypoint", "cat", "install"),
        *("/run/agentfactory/owner-password", "/run/agentfactory/service-password"),
    )
    kept += compose.call(*("run", "--rm", "--no-TTY", "--entrypoint", "sh", "custody", "-c", CUSTODY_SECRETS))
    assert len(kept.split()) == 6
    assert [word for word in kept.split() if word in said] == []


def test_an_agent_runs(compose: Compose, agent: Path) -> None:
    nodes = compose.cli("node", "list")["nodes"]
    assert len(nodes) == 3
    assert run(compose, agent)["state"] == "EXECUTION_STATE_SUCCEEDED"


def test_rest_answers_on_loopback(compose: Compose, agent: Path) -> None:
    tickets = (agent / "redact" / "data" / "tickets.jsonl").read_bytes()
    token = compose.cli("access", "token", "--ttl", "5")["token"]
    answer = httpx.post(
        f"http://127.0.0.1:{compose.rest_port}/v1/executions:execute",
        headers={"Authorization": f"Bearer {token}", "Idempotency-Key": "1"},
        json={"execution": {"agent": "desk", "inline": base64.b64encode(tickets).decode()}},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["execution"]["state"] == "EXECUTION_STATE_SUCCEEDED"


def test_prometheus_sees_every_process_and_every_metric_that_alerts_name(
    compose: Compose, agent: Path
) -> None:
    run(compose, agent)
    deadline = time.monotonic() + READY_SECONDS
    while unseen := not_seen(compose):
        assert time.monotonic() < deadline, unseen
        time.sleep(1)
    rules = ask(compose, "rules")["groups"]
    found = [rule for group in rules for rule in group["rules"]]
    assert {rule["health"] for rule in found} <= {"ok", "unknown"}
    assert len(found) > 30
    for expression in expressions():
        asked = expression.replace("$__rate_interval", "1m")
        assert ask(compose, f"query?query={quote(asked)}")["resultType"] == "vector", expression
        for metric in METRIC.findall(expression):
            series = ask(compose, f"series?match[]={quote(metric)}")
            given = {label for one in series for label in one}
            assert not series or labels_of(expression) <= given | {"le"}, expression


def labels_of(expression: str) -> set[str]:
    """Return the labels that an expression divides by."""
    return {name.strip() for found in re.findall(r"by \(([^)]*)\)", expression) for name in found.split(",")}


def not_seen(compose: Compose) -> set[str]:
    """Return the targets that are not up and the metrics of rules that no target has shown."""
    targets = ask(compose, "targets")["activeTargets"]
    down = {one["scrapeUrl"] for one in targets if one["health"] != "up"}
    known = set(ask(compose, "metadata"))
    named = {metric for rule in rules() for metric in METRIC.findall(rule["expr"])}
    named = {metric for metric in named if not metric.startswith("agentfactory_compiler_")}  # there is none
    absent = {metric for metric in named if metric not in known and SUFFIX.sub("", metric) not in known}
    return down | absent | ({"no target"} if len(targets) < 7 else set())


def ask(compose: Compose, what: str) -> Any:
    answer = httpx.get(f"http://127.0.0.1:{compose.prometheus_port}/api/v1/{what}", timeout=10)
    answer.raise_for_status()
    return answer.json()["data"]


def test_a_killed_node_and_a_killed_control_plane_are_survived(compose: Compose, agent: Path) -> None:
    compose.call("kill", "--signal", "KILL", "node-1", "control-plane-2")
    states = {run(compose, agent)["state"] for _ in range(3)}
    compose.call("up", "--wait", seconds=READY_SECONDS * 2)

    assert states == {"EXECUTION_STATE_SUCCEEDED"}
    assert len(compose.cli("node", "list")["nodes"]) == 3  # node-1 is who it was


def test_down_and_up_keeps_the_installation(compose: Compose, agent: Path) -> None:
    before = run(compose, agent)["executionId"]
    compose.call("down", "--timeout", "30")
    compose.up()

    found = {one["executionId"] for one in compose.cli("execution", "list")["executions"]}
    assert before in found
    assert run(compose, agent)["state"] == "EXECUTION_STATE_SUCCEEDED"
    assert len(compose.cli("node", "list")["nodes"]) == 3

"""What the profile `full` adds, through the real servers: keys and secrets in OpenBao, decisions by OPA, evidence, traces."""

import base64
import json
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.platform.compose import API, ROOT, Compose

SUCCEEDED = "EXECUTION_STATE_SUCCEEDED"
FETCHER = ROOT / "tests" / "guests" / "fetcher.wasm"
TOKEN = "a-token-that-nobody-sees"
READY_SECONDS = 180
CALLS = 5

pytestmark = pytest.mark.timeout(2700)


def run(compose: Compose, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = compose.cli("run", "desk", "--input", "redact/data/tickets.jsonl", mount=folder)
    assert found["state"] == SUCCEEDED
    return found


def eventually(read: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + READY_SECONDS
    while not (found := read()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return found


def keys(compose: Compose, purpose: str, state: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = compose.cli("keys", "list")["keys"]
    return [
        one
        for one in listed
        if one["purpose"] == f"KEY_PURPOSE_{purpose}" and one["state"] == f"KEY_STATE_{state}"
    ]


def test_a_receipt_proves_itself(compose: Compose, agent: Path) -> None:
    execution = run(compose, agent)["executionId"]
    compose.cli("receipt", "get", execution, "--out", "receipt.json", "--wait", "60", mount=agent)
    assert compose.cli("receipt", "verify", "receipt.json", mount=agent)["verified"] is True
    # One letter of it is another one.
    text = (agent / "receipt.json").read_text()
    at = text.index("payload") + 100
    (agent / "forged.json").write_text(text[:at] + ("B" if text[at] != "B" else "C") + text[at + 1 :])
    with pytest.raises(AssertionError):
        compose.cli("receipt", "verify", "forged.json", mount=agent)


def test_orders_are_signed_in_openbao_and_a_revoked_key_has_a_successor_there(
    compose: Compose, agent: Path
) -> None:
    (before,) = eventually(lambda: keys(compose, "ORDER", "SIGNING"), "a key that signs")
    assert before["custodyName"] == "agentfactory-order"
    compose.cli("keys", "revoke", before["keyId"])

    # Whichever replica is asked.
    (after,) = eventually(lambda: keys(compose, "ORDER", "SIGNING"), "the successor")
    assert after["custodyName"] == "agentfactory-order"
    assert int(after["custodyVersion"]) == int(before["custodyVersion"]) + 1
    assert before["keyId"] in {one["keyId"] for one in keys(compose, "ORDER", "REVOKED")}
    run(compose, agent)


def test_orders_wait_while_openbao_is_away_and_it_opens_itself(compose: Compose, agent: Path) -> None:
    compose.call("kill", "--signal", "KILL", "openbao")
    detached = compose.cli("run", "desk", "--input", "redact/data/tickets.jsonl", "--detach", mount=agent)
    execution = detached["executionId"]
    assert compose.cli("execution", "show", execution)["state"] == "EXECUTION_STATE_PENDING"
    compose.call("up", "--wait", "--no-deps", "openbao")

    def ended() -> bool:
        return bool(compose.cli("execution", "show", execution)["state"] == SUCCEEDED)

    eventually(ended, "the execution that waited for a key")


def test_the_root_token_is_gone_and_a_role_does_only_its_own(compose: Compose) -> None:
    kept = custody(compose, "cat /run/custody/seal/recovery.json")
    assert list(json.loads(kept)) == ["recovery_keys"]
    said = custody(compose, f"python3 -c '{READ_AS_NODE}'")
    assert said.split() == ["Forbidden", "Forbidden", "InvalidPath"]


READ_AS_NODE = """
import hvac
c = hvac.Client(url="https://openbao:8200", verify="/run/custody/node/ca.crt", token="")
c.auth.approle.login("agentfactory-node", open("/run/custody/node/secret-id").read())
for path in ("transit/keys/agentfactory-order", "sys/policies/acl/agentfactory-node", "secret/data/agentfactory/x/none"):
    try:
        c.secrets.kv.v1.read_secret(path.partition("/")[2], mount_point=path.partition("/")[0])
    except hvac.exceptions.VaultError as error:
        print(type(error).__name__)
"""


def custody(compose: Compose, script: str) -> str:
    """Run a script where the files of the custodian are."""
    return compose.call("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "sh", "custody", "-c", script)


def test_opa_decides_and_its_decision_is_kept_beside_ours(compose: Compose, agent: Path) -> None:
    # What was decided before belongs to containers that may be gone, and their logs with them.
    decision = run(compose, agent)["decisionId"]
    found = compose.cli("policy", "decisions", "--question", "execute")["decisions"]
    (ours,) = [one for one in found if one["decisionId"] == decision]
    assert ours["engine"] == "opa"
    logged = {
        line["decision_id"]
        for line in json_lines(compose.call("logs", "--no-log-prefix", "opa-1", "opa-2"))
        if line.get("type") == "openpolicyagent.org/decision_logs"
    }
    assert ours["engineDecisionId"] in logged


def test_one_opa_server_is_enough_and_without_any_all_is_denied(compose: Compose, agent: Path) -> None:
    create = ("agent", "create", "--template", "redact@1.0.0")
    try:
        compose.call("stop", "--timeout", "5", "opa-1")
        compose.cli(*create, "second")
        run(compose, agent)
        compose.call("stop", "--timeout", "5", "opa-2")
        with pytest.raises(AssertionError, match="POLICY_UNDECIDED"):
            compose.cli("run", "second", "--input", "redact/data/tickets.jsonl", mount=agent)
    finally:
        compose.call("up", "--wait", "--no-deps", "opa-1", "opa-2")


def test_both_opa_servers_get_another_policy_and_the_one_before_again_and_nothing_is_denied(
    compose: Compose, agent: Path
) -> None:
    """The commands of docs/compose.md, while somebody calls."""
    page = (ROOT / "docs" / "compose.md").read_text()
    section = page.split("\n## Another policy\n")[1]
    begin, there, back = re.findall(r"^```sh by-hand\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    give = there[: there.index("docker compose run --rm -v")]
    before = compose.cli("policy", "show")["bundle"]["digest"]
    with calling(compose, agent) as states:
        compose.shell(begin, agent)
        rules = agent / "my-policy" / "builtin.rego"
        compose.shell(
            "docker compose run --rm -v $PWD:/work -w /work --entrypoint sh cli -c 'echo \"# changed\" >> my-policy/builtin.rego'",
            agent,
        )
        assert rules.read_text().endswith("# changed\n")
        compose.shell(there, agent)
        after = compose.cli("policy", "show")["bundle"]
        assert after["version"] == 1
        assert after["digest"] != before
        seen = len(states)
        eventually(lambda: len(states) > seen + CALLS, "calls under the new policy")
        engines = {
            one["policyDigest"]: one["engine"]
            for one in compose.cli("policy", "decisions", "--question", "execute")["decisions"]
        }
        assert engines[after["digest"]] == "opa"
        compose.shell(give + back, agent)
        assert compose.cli("policy", "show")["bundle"]["digest"] == before
        seen = len(states)
        eventually(lambda: len(states) > seen + CALLS, "calls under the policy of before")
    assert set(states) == {SUCCEEDED}


@contextmanager
def calling(compose: Compose, agent: Path) -> Iterator[list[str]]:
    """Call over REST for the time of the context; yield the states of what was called, or why it was refused."""
    tickets = (agent / "redact" / "data" / "tickets.jsonl").read_bytes()
    token = compose.cli("access", "token", "--ttl", "10")["token"]
    states: list[str] = []
    over = threading.Event()

    def call() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{compose.rest_port}", timeout=30) as http:
            while not over.is_set():
                answer = http.post(
                    "/v1/executions:execute",
                    headers={"Authorization": f"Bearer {token}", "Idempotency-Key": str(uuid.uuid4())},
                    json={"execution": {"agent": "desk", "inline": base64.b64encode(tickets).decode()}},
                )
                states.append(
                    answer.json()["execution"]["state"] if answer.status_code == 200 else answer.text
                )

    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(call)
        try:
            yield states
        finally:
            over.set()
        called.result()


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_secret_of_openbao_reaches_the_request_and_nothing_else(compose: Compose, agent: Path) -> None:
    compose.call(
        *("run", "--rm", "--no-TTY", "--no-deps", "custody", "secret", "default", "api-token", API),
        given=TOKEN,
    )
    folder = agent / "fetcher"
    folder.mkdir()
    shutil.copy2(FETCHER, folder)
    (folder / "agent.toml").write_text(FETCHER_TOML.format(url=API, address=address(compose, "api")))
    compose.make_agent(agent, "fetcher", "fetcher")
    (agent / "urls").write_text(f"{API}weather\n")
    ran = compose.cli("run", "fetcher", "--input", "urls", mount=agent)

    assert ran["state"] == SUCCEEDED, ran
    assert f"asked /v1/weather Bearer {TOKEN}" in compose.call("logs", "--no-log-prefix", "api")
    others = [one["Service"] for one in compose.containers() if one["Service"] != "api"]
    assert TOKEN not in compose.call("logs", *others)
    assert TOKEN not in json.dumps(compose.cli("audit", "list"))


FETCHER_TOML = """
[template]
name = "fetcher"
version = "1.0.0"
module = "fetcher.wasm"
media_type = "application/json"
[limits]
wall_ms = 20000
[capabilities]
http = [{{ method = "GET", url = "{url}", addresses = ["{address}/32"] }}]
secrets = ["api-token"]
kv = true
"""


def address(compose: Compose, service: str) -> str:
    (found,) = [one["ID"] for one in compose.containers() if one["Service"] == service]
    inspected = json.loads(subprocess.check_output(["docker", "inspect", found]))[0]
    (network,) = inspected["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def test_the_trace_of_an_execution_is_in_the_trace_ui(compose: Compose, agent: Path) -> None:
    tickets = (agent / "redact" / "data" / "tickets.jsonl").read_bytes()
    trace = "0af7651916cd43dd8448eb211c80319c"
    token = compose.cli("access", "token", "--ttl", "5")["token"]
    answer = httpx.post(
        f"http://127.0.0.1:{compose.rest_port}/v1/executions:execute",
        headers={
            "Authorization": f"Bearer {token}",
            "Idempotency-Key": "traced",
            "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        },
        json={"execution": {"agent": "desk", "inline": base64.b64encode(tickets).decode()}},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text

    def spans() -> Any:
        found = httpx.get(f"http://127.0.0.1:{compose.zipkin_port}/api/v2/trace/{trace}", timeout=10)
        names = {one["name"] for one in found.json()} if found.status_code == 200 else set()
        return names if {"order", "record"} <= names else None

    names = eventually(spans, "the spans of the execution")
    assert {"decide", "dispatch", "verify", "run", "receipt"} <= names

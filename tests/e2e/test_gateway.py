"""The story of a user over REST alone, against real processes: publish, create, run, watch, fetch, cancel, list."""

import asyncio
import base64
import hashlib
import json

import pytest

from cli.stack import probe
from cli.stack.children import stop
from shared.key_files import read_private_key
from shared.package_files import (
    ENVELOPE_FILE,
    build_package,
    read_unsigned_package,
    write_envelope,
    write_package,
)
from shared.packages import sign_package
from shared.signatures import FileSigner
from tests.e2e.gateway import running_gateway
from tests.e2e.stack import ACTOR, eventually, running_stack

PROBLEM = "application/problem+json"
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}


async def signed_package(stack, name):
    """Return envelope and module, as an author's machine makes them."""
    source = stack.folder / "sources" / name
    source.mkdir(parents=True)
    (source / "agent.wasm").write_bytes(ACTOR.read_bytes())
    (source / "agent.toml").write_text(
        f'[template]\nname = "{name}"\nversion = "1.0.0"\nmodule = "agent.wasm"\nmedia_type = "application/json"\n'
        '[parameters]\nschema = "parameters.schema.json"\n[run]\nretry = "safe"\n'
    )
    (source / "parameters.schema.json").write_text(json.dumps(PARAMETERS))
    package = write_package(build_package(source), stack.folder / "sources")
    signer = FileSigner(key=read_private_key(stack.paths.publisher_key))
    write_envelope(package, (await sign_package(read_unsigned_package(package), [signer])).envelope)
    return {
        "envelope": (package / ENVELOPE_FILE).read_bytes(),
        "module": ACTOR.read_bytes(),
    }


def run_of(agent, said):
    return {"execution": {"agent": agent, "inline": base64.b64encode(said).decode()}}


def events_of(text):
    """Return (event, data, id) of a whole stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return found


async def read_events(client, path, *, until, **headers):
    """Return the events of a stream up to the first that is wanted, with the bytes that came."""
    text = ""
    async with asyncio.timeout(60), client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        async for piece in answer.aiter_text():
            text += piece
            found = events_of(text)
            if any(until(event) for event in found):
                return found, text
    return events_of(text), text


@pytest.mark.timeout(240)
async def test_a_user_does_all_of_it_over_rest():
    async with (
        running_stack() as stack,
        running_gateway(stack, AF_GATEWAY_HEARTBEAT_EVERY="PT0.2S") as gateway,
        gateway.client() as client,
    ):
        await publishes_and_creates(stack, client)
        execution = await runs_and_fetches(client)
        await runs_a_large_input(client)
        await watches_and_cancels(client)
        await lists_in_pages(client)
        await follows_the_audit_log(client)
        await proves(client, execution)
        await is_counted_and_stops(gateway)


async def publishes_and_creates(stack, client):
    package = await signed_package(stack, "actor")
    module = package["module"]
    altered_module = module[:-1] + bytes([module[-1] ^ 1])

    published = await client.post("/v1/templates", files=package)
    again = await client.post("/v1/templates", files=package)
    altered = await client.post("/v1/templates", files=package | {"module": altered_module})
    created = await client.post(
        "/v1/agents", json={"name": "actor", "template": {"name": "actor", "version": "1.0.0"}}
    )
    other = await client.post(
        "/v1/agents",
        json={
            "name": "actor",
            "template": {"name": "actor", "version": "1.0.0"},
            "parameters": "eyJhIjoxfQ==",
        },
    )

    version = published.json()["templateVersion"]
    assert (published.status_code, version["name"], version["version"]) == (201, "actor", "1.0.0")
    assert version["digest"] == again.json()["templateVersion"]["digest"]
    assert (altered.status_code, altered.json()["reason"]) == (400, "PACKAGE_ALTERED")
    assert created.status_code == 201, created.text
    assert version["publishedBy"] == "oidc:local/admin"
    assert other.status_code == 409
    by_digest = await client.get(f"/v1/templates/{version['digest']}")
    assert version["templateVersionId"] == by_digest.json()["templateVersion"]["templateVersionId"]
    updated = await client.patch("/v1/agents/actor", json={"revision": created.json()["agent"]["revision"]})
    assert updated.status_code == 200, updated.text


async def runs_and_fetches(client):
    first = await client.post(
        "/v1/executions:execute", json=run_of("actor", b"output 200000"), headers={"Idempotency-Key": "one"}
    )
    again = await client.post(
        "/v1/executions:execute", json=run_of("actor", b"output 200000"), headers={"Idempotency-Key": "one"}
    )
    other = await client.post(
        "/v1/executions:execute", json=run_of("actor", b"exit 0"), headers={"Idempotency-Key": "one"}
    )
    without = await client.post("/v1/executions:execute", json=run_of("actor", b"exit 0"))

    execution = first.json()["execution"]
    assert (execution["state"], execution["outputBytes"]) == ("EXECUTION_STATE_SUCCEEDED", "200000")
    assert execution["caller"] == "oidc:local/admin"
    assert execution["executionId"] == again.json()["execution"]["executionId"]
    assert (other.status_code, other.json()["reason"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert (without.status_code, without.json()["violations"][0]["pointer"]) == (400, "Idempotency-Key")
    body = await client.get(f"/v1/executions/{execution['executionId']}/bodies/BODY_KIND_OUTPUT")
    assert (body.status_code, len(body.content)) == (200, 200_000)
    assert body.headers["content-type"] == "application/octet-stream"
    return execution


async def runs_a_large_input(client):
    large = b"exit 0 " + b"x" * 300_000
    uploaded = await client.post(
        "/v1/bodies",
        files={
            "digest": (None, f"sha256:{hashlib.sha256(large).hexdigest()}"),
            "sizeBytes": (None, str(len(large))),
            "body": large,
        },
    )
    ran = await client.post(
        "/v1/executions:execute",
        json={"execution": {"agent": "actor", "bodyId": uploaded.json()["bodyId"]}},
        headers={"Idempotency-Key": "large"},
    )

    assert (uploaded.status_code, ran.status_code) == (201, 200), ran.text
    assert str(len(large)) == ran.json()["execution"]["inputBytes"]


async def watches_and_cancels(client):
    submitted = await client.post(
        "/v1/executions", json=run_of("actor", b"sleep 30000"), headers={"Idempotency-Key": "long"}
    )
    assert submitted.status_code == 202, submitted.text
    path = f"/v1/executions/{submitted.json()['execution']['executionId']}"
    await eventually(
        lambda: client.get(path),
        lambda answer: answer.json()["execution"]["state"] == "EXECUTION_STATE_RUNNING",
        "the start",
    )

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(
            read_events(client, f"{path}:watch", until=lambda event: event[0] == "end")
        )
        cancelled = await client.post(f"{path}:cancel")
    events, text = watching.result()

    assert cancelled.status_code == 200, cancelled.text
    states = [data["execution"]["state"] for kind, data, _ in events if kind == "message"]
    assert states[-1] == "EXECUTION_STATE_CANCELLED"
    assert events[-1][0] == "end"
    assert text.startswith("retry: ")


async def lists_in_pages(client):
    first = await client.get("/v1/executions", params={"pageSize": 2, "agent": "actor"})
    second = await client.get(
        "/v1/executions", params={"pageSize": 2, "pageToken": first.json()["nextPageToken"]}
    )
    cancelled = await client.get("/v1/executions", params={"states": ["EXECUTION_STATE_CANCELLED"]})

    found = [one["executionId"] for page in (first, second) for one in page.json()["executions"]]
    assert 3 == len(found) == len(set(found))
    assert [len(cancelled.json()["executions"]), cancelled.json()["nextPageToken"]] == [1, ""]


async def follows_the_audit_log(client):
    page = await client.get("/v1/audit-entries", params={"action": "agent.created"})
    (created,) = page.json()["auditEntries"]

    events, _ = await read_events(
        client,
        "/v1/audit-entries:watch",
        until=lambda event: event[0] == "message",
        **{"Last-Event-ID": created["auditEntryId"]},
    )
    _, data, event_id = next(event for event in events if event[0] == "message")
    assert created["actor"] == "oidc:local/admin"
    assert event_id == data["auditEntry"]["auditEntryId"] > created["auditEntryId"]


async def proves(client, execution):
    receipt = await client.get(f"/v1/receipts/{execution['receiptId']}")

    assert (200, execution["receiptId"]) == (receipt.status_code, receipt.json()["receiptId"])
    assert base64.b64decode(receipt.json()["envelope"]).startswith(b"{")


async def is_counted_and_stops(gateway):
    metrics = await probe.get(gateway.admin_port, "/metrics")
    assert 'af_gateway_request_seconds_count{rpc="Execute",status="200"}' in metrics.body

    await stop(gateway.child)

    assert gateway.child.process.returncode == 0


@pytest.mark.timeout(240)
async def test_what_goes_wrong_is_a_problem_document():
    async with running_stack(nodes=0) as stack, running_gateway(stack) as gateway, gateway.client() as client:
        nobody = {"Authorization": "Bearer nonsense.of.mine"}
        asked = {
            (404, "NOT_FOUND"): client.get("/v1/agents/nobody"),
            (404, "NO_ROUTE"): client.get("/v2/agents"),
            (405, "METHOD_NOT_ALLOWED"): client.put("/v1/agents/x"),
            (400, "INVALID_INPUT"): client.get("/v1/agents", params={"pageSize": "501"}),
            (400, "MALFORMED"): client.post(
                "/v1/agents", content=b'{"name":"a","name":"b"}', headers={"Content-Type": "application/json"}
            ),
            (415, "UNSUPPORTED_MEDIA_TYPE"): client.post("/v1/agents", data={"name": "a"}),
            (413, "BODY_TOO_LARGE"): client.post(
                "/v1/agents", content=b" " * 3_000_000, headers={"Content-Type": "application/json"}
            ),
            (401, "UNAUTHENTICATED"): client.get("/v1/agents", headers=nobody),
        }
        answers = {wanted: await answer for wanted, answer in asked.items()}
        no_token = await client.get("/v1/agents", headers={"Authorization": ""})
        await stack.kill_control_plane()
        away = await client.get("/v1/agents")
        ready = await probe.get(gateway.admin_port, "/readyz")

    assert {(one.status_code, one.json()["reason"]) for one in answers.values()} == set(answers)
    assert {PROBLEM} == {one.headers["content-type"] for one in answers.values()}
    assert all(one.json()["status"] == one.status_code for one in answers.values())
    assert answers[405, "METHOD_NOT_ALLOWED"].headers["allow"] == "DELETE, GET, PATCH"
    assert no_token.status_code == 401
    assert no_token.headers["www-authenticate"].startswith("Bearer")
    assert (away.status_code, away.json()["reason"], away.headers["retry-after"]) == (503, "UNAVAILABLE", "1")
    assert "127.0.0.1" not in away.text  # nothing of the inside
    assert ready.status == 503
    for answer in (*answers.values(), away):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers

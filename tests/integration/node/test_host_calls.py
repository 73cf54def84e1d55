"""Host calls through a real node: guest, worker, node, session and back; and what the receipt says about them."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentfactory.v1 import nodes_pb2

from shared.digests import commit_body, sha256_digest
from shared.errors import RejectionReason
from shared.manifest import Capabilities, HttpCapability, Profile
from shared.outcomes import Outcome
from shared.receipts import Denial
from tests.fakes.control_plane import TENANT, publish
from tests.integration.node.test_orders import limits, run

CALLER = Path(__file__).parents[2] / "guests" / "caller.wasm"
TOKEN = "a-token-that-nobody-sees"


def request(method: str, **params: object) -> str:
    return json.dumps({"method": method, "params": params})


def fetch(url: str, method: str = "GET", **params: object) -> str:
    return json.dumps({"method": "http.fetch", "params": {"method": method, "url": url, **params}})


class Api:
    """A local HTTP server that answers every request with its own text."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.url = ""

    @asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(head)
        body = head.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()


@pytest.fixture
async def api():
    async with Api().listening() as api:
        yield api


async def ask(control_plane, session, capabilities, *lines: str, profile=Profile.DEFAULT, **changes):
    """Run the guest on these requests; return its receipt and the answers."""
    template = await publish(CALLER.read_bytes(), capabilities=capabilities, profile=profile)
    receipt = await run(
        control_plane,
        session,
        template,
        "\n".join(lines).encode(),
        capabilities=capabilities,
        host_call_grants=capabilities.host_call_grants,
        profile=profile,
        **changes,
    )
    output = control_plane.output_of(receipt)
    return (
        receipt.predicate,
        [json.loads(line) for line in output.splitlines()],
        control_plane.deliveries[receipt.hash],
    )


def may(api: Api, *methods: str, **changes: object) -> Capabilities:
    http = tuple(
        HttpCapability(method=method, url=api.url, addresses=("127.0.0.1/32",))
        for method in methods or ("GET",)
    )
    return Capabilities(**{"http": http} | changes)


def allowing(api: Api) -> dict[str, object]:
    return {"allowed_http": (f"* {api.url}",), "allowed_networks": ("127.0.0.0/8",)}


async def test_log_and_budget_need_no_grant(control_plane, start_node):
    await start_node()
    said, answers, delivery = await ask(
        control_plane,
        await control_plane.session(),
        Capabilities(),
        request("log", level="info", message="hello", fields={"n": 1}),
        request("budget.left"),
    )
    assert said.outcome is Outcome.SUCCEEDED
    assert answers[0] == {"ok": {}}
    assert answers[1]["ok"]["host_calls"] == limits().host_calls - 2
    assert 0 < answers[1]["ok"]["wall_ms"] <= limits().wall_ms
    assert json.loads(delivery.log.inline) == {"level": "info", "message": "hello", "n": 1}
    assert (said.denials, said.recording_commitment, said.kv_writes_digest) == ((), None, None)
    assert said.resources.host_calls == 2


async def test_what_is_not_granted_is_an_answer_and_a_line_in_the_receipt(control_plane, start_node):
    await start_node()
    said, answers, _ = await ask(
        control_plane,
        await control_plane.session(),
        Capabilities(),
        fetch("https://example.test/"),
        fetch("https://example.test/"),
        request("kv.get", key="a"),
        request("format.disk"),
        "no json",
    )
    assert said.outcome is Outcome.SUCCEEDED
    reasons = [answer["error"]["reason"] for answer in answers]
    assert reasons == ["NOT_GRANTED", "NOT_GRANTED", "NOT_GRANTED", "UNKNOWN_METHOD", "INVALID_REQUEST"]
    assert said.denials == (
        Denial(method="http.fetch", reason="not_granted", count=2),
        Denial(method="kv.get", reason="not_granted", count=1),
        Denial(method="unknown", reason="unknown_method", count=1),
    )


async def test_fetch_reaches_what_order_template_and_operator_name(control_plane, start_node, api):
    await start_node(**allowing(api))
    said, answers, delivery = await ask(
        control_plane, await control_plane.session(), may(api), fetch(api.url + "x", headers={"x-a": "b"})
    )
    body = base64.b64decode(answers[0]["ok"]["body_base64"]).decode()
    assert body == api.requests[0]
    assert body.startswith("GET /v1/x HTTP/1.1\r\n")
    assert "x-a: b\r\n" in body
    assert control_plane.unsafe_intents == []
    (line,) = (json.loads(line) for line in delivery.recording.inline.splitlines())
    assert (line["index"], line["method"], line["status"]) == (0, "http.fetch", "ok")
    assert commit_body(delivery.recording.inline, delivery.recording.salt) == said.recording_commitment


@pytest.mark.parametrize("missing", ["allowed_http", "allowed_networks"])
async def test_operator_of_the_node_has_the_last_word(control_plane, start_node, api, missing):
    await start_node(**allowing(api) | {missing: ()})
    said, answers, _ = await ask(control_plane, await control_plane.session(), may(api), fetch(api.url))
    reason = "NOT_ALLOWED_HERE" if missing == "allowed_http" else "ADDRESS_FORBIDDEN"
    assert answers[0]["error"]["reason"] == reason
    assert said.denials == (Denial(method="http.fetch", reason=reason.lower(), count=1),)
    assert api.requests == []


async def test_rule_6_unsafe_call_leaves_after_the_control_plane_has_recorded_it(
    control_plane, start_node, api
):
    await start_node(**allowing(api))
    session = await control_plane.session()
    control_plane.host_call_denial = "LEASE_NOT_HELD"
    said, answers, _ = await ask(control_plane, session, may(api, "POST"), fetch(api.url, "POST"))
    assert answers[0]["error"]["reason"] == "LEASE_NOT_HELD"
    assert said.denials == (Denial(method="http.fetch", reason="lease_not_held", count=1),)
    assert api.requests == []

    control_plane.host_call_denial = ""
    _, answers, _ = await ask(
        control_plane, session, may(api, "POST"), fetch(api.url, "POST", body="x"), fetch(api.url, "POST")
    )
    assert [answer["ok"]["status"] for answer in answers] == [200, 200]
    assert len(control_plane.unsafe_intents) == 1
    assert len(api.requests) == 2


async def test_rule_17_secret_of_the_tenant_is_injected_and_never_shown(
    control_plane, start_node, api, tmp_path
):
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({TENANT: {"api": {"value": TOKEN, "urls": [api.url]}}}))
    secrets.chmod(0o600)
    await start_node(**allowing(api), secrets_file=secrets)
    session = await control_plane.session()
    seed = bytes(32)
    granted = may(api, secrets=("api",), record_host_calls=True)
    changes = {"seed": seed, "execution_id": "exe_01990000-0000-7000-8000-000000000000"}
    _, answers, _ = await ask(control_plane, session, granted, request("secret.ref", name="api"), **changes)
    handle = answers[0]["ok"]["handle"]
    said, answers, delivery = await ask(
        control_plane,
        session,
        granted,
        request("secret.ref", name="api"),
        fetch(api.url, headers={"authorization": {"secret": handle, "prefix": "Bearer "}}),
        **changes | {"attempt_number": 2, "fencing_token": 2},
    )
    assert f"authorization: Bearer {TOKEN}\r\n" in api.requests[0]
    body = base64.b64decode(answers[1]["ok"]["body_base64"]).decode()
    assert "authorization: Bearer [secret]\r\n" in body
    assert TOKEN not in delivery.recording.inline.decode()
    assert json.loads(delivery.recording.inline.splitlines()[1])["scrubbed"] is True
    assert said.outcome is Outcome.SUCCEEDED


async def test_rule_6_values_are_read_committed_and_written_with_the_result(control_plane, start_node):
    await start_node()
    control_plane.kv_values["runs"] = b"41"
    said, answers, delivery = await ask(
        control_plane,
        await control_plane.session(),
        Capabilities(kv=True),
        request("kv.get", key="runs"),
        request("kv.put", key="runs", value_base64=base64.b64encode(b"42").decode()),
        request("kv.get", key="runs"),
        request("kv.put", key="gone", value_base64=None),
    )
    values = [answer["ok"].get("value_base64") for answer in answers]
    assert values == [base64.b64encode(b"41").decode(), None, base64.b64encode(b"42").decode(), None]
    assert delivery.kv_writes == nodes_pb2.KvWrites(
        writes=[
            nodes_pb2.KvWrite(key="gone", deleted=True),
            nodes_pb2.KvWrite(key="runs", value=b"42"),
        ]
    )
    assert said.kv_writes_digest == sha256_digest(delivery.kv_writes.SerializeToString(deterministic=True))


async def test_run_that_is_killed_writes_nothing(control_plane, start_node):
    await start_node()
    said, _, delivery = await ask(
        control_plane,
        await control_plane.session(),
        Capabilities(kv=True),
        request("kv.put", key="a", value_base64=""),
        request("kv.put", key="b", value_base64=""),
        limits=limits(host_calls=1),
    )
    assert (said.outcome, said.limit) == (Outcome.KILLED, "host_calls")
    assert said.kv_writes_digest is None
    assert not delivery.kv_writes.writes
    assert said.recording_commitment is not None


async def test_order_that_grants_more_than_the_template_asks_for_is_refused(control_plane, start_node):
    await start_node()
    session = await control_plane.session()
    template = await publish(CALLER.read_bytes())
    granted = Capabilities(kv=True)
    receipt = await run(
        control_plane, session, template, b"", capabilities=granted, host_call_grants=granted.host_call_grants
    )
    assert receipt.predicate.rejection.reason is RejectionReason.POLICY


async def test_repeatable_profile_learns_no_time(control_plane, start_node):
    await start_node()
    session = await control_plane.session()
    runs = [
        await ask(
            control_plane, session, Capabilities(), request("budget.left"), profile=Profile.DETERMINISTIC
        )
        for _ in range(2)
    ]
    (_, first, _), (_, second, _) = runs
    assert first == second
    assert not [name for name in first[0]["ok"] if name.endswith("_ms")]

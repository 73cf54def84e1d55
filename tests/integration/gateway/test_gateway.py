"""What a gateway does between HTTP and gRPC: metadata, streams and their ends, uploads, bounds on hostile peers."""

import asyncio
import json
import ssl
from datetime import timedelta

import httpx
import pytest
import trustme
from agentfactory.v1 import agents_pb2, audit_pb2, executions_pb2, templates_pb2

from control_plane.gateway.main import run
from control_plane.gateway.settings import GatewaySettings
from shared.errors import (
    FieldViolation,
    InvalidInputError,
    PackageAlteredError,
    PortInUseError,
    SettingsError,
)
from shared.rpc.errors import wire_error
from shared.settings import load_settings
from tests.integration.gateway.conftest import LIMIT, serving

EXECUTION = "exe_0190f5ac-7e2d-7b3c-8a1b-0123456789ab"
WATCH = f"/v1/executions/{EXECUTION}:watch"
DOWNLOAD = f"/v1/executions/{EXECUTION}/bodies/BODY_KIND_OUTPUT"


async def get_agent(request, _):
    return agents_pb2.GetAgentResponse(agent=agents_pb2.Agent(name=request.name, revision=2**63))


async def refuse(context, error):
    wire = wire_error(error)
    await context.abort(wire.code, wire.message, wire.trailing_metadata)


async def raw(client, data):
    """Return what the gateway says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("localhost", client.base_url.port)
    try:
        async with asyncio.timeout(LIMIT.total_seconds()):
            writer.write(data)
            return await reader.read()
    finally:
        writer.close()


async def test_the_callers_token_and_tenant_go_through_and_nothing_else(gateway):
    async with gateway({"GetAgent": get_agent}) as (client, scripted, _, _):
        answer = await client.get(
            "/v1/agents/a", headers={"AF-Tenant": "team", "Cookie": "x=y", "X-Forwarded-By": "somebody"}
        )

    assert {"name": "a", "revision": str(2**63)}.items() <= answer.json()["agent"].items()
    (metadata,) = scripted.metadata
    assert metadata["authorization"] == "Bearer a.b.c"
    assert metadata["af-tenant"] == "team"
    assert metadata["x-forwarded-by"] == "gateway/gateway"
    assert "cookie" not in metadata


@pytest.mark.parametrize("token", ["", "Basic YTpi", "Bearer", "Bearer a b", "Bearer " + "a" * 9000])
async def test_what_is_no_bearer_token_goes_no_further(gateway, token):
    async with gateway({"GetAgent": get_agent}) as (client, scripted, _, _):
        answer = await client.get("/v1/agents/a", headers={"Authorization": token})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert scripted.metadata == []


async def test_events_come_with_ids_heartbeats_and_an_end(gateway):
    go_on = asyncio.Event()

    async def watch(request, _):
        yield executions_pb2.WatchExecutionResponse(
            execution=executions_pb2.Execution(execution_id=request.execution_id)
        )
        await go_on.wait()

    async with gateway({"WatchExecution": watch}, heartbeat_every=timedelta(milliseconds=100)) as (
        client,
        *_,
    ):
        text = ""
        async with client.stream("GET", WATCH) as answer:
            async for piece in answer.aiter_text():
                text += piece
                if ": still here" in text:
                    go_on.set()

    assert text.startswith("retry: 2000\n\nid: 1\nevent: message\ndata: {")
    assert text.endswith("event: end\ndata: {}\n\n")


async def test_a_failure_before_the_first_event_is_a_status_and_after_it_an_event(gateway):
    async def early(_, context):
        await refuse(context, PackageAlteredError("no"))
        yield  # pragma: no cover - what makes it a stream

    async def late(_, context):
        yield audit_pb2.WatchAuditEntriesResponse(
            audit_entry=audit_pb2.AuditEntry(audit_entry_id="aud_1", actor="x")
        )
        await refuse(context, PackageAlteredError("no"))

    async with gateway({"WatchExecution": early, "WatchAuditEntries": late}) as (client, *_):
        refused = await client.get(WATCH)
        torn = await client.get("/v1/audit-entries:watch")

    assert (refused.status_code, refused.json()["reason"]) == (400, "PACKAGE_ALTERED")
    assert "id: aud_1\nevent: message" in torn.text
    failure = torn.text.partition("event: error\ndata: ")[2]
    assert json.loads(failure)["reason"] == "PACKAGE_ALTERED"


async def test_last_event_id_takes_an_audit_stream_up(gateway):
    asked = []

    async def watch(request, _):
        asked.append(request.after)
        if False:
            yield

    async with gateway({"WatchAuditEntries": watch}) as (client, *_):
        await client.get(
            "/v1/audit-entries:watch", params={"after": "aud_1"}, headers={"Last-Event-ID": "aud_2"}
        )

    assert asked == ["aud_2"]


@pytest.mark.parametrize(("path", "name"), [(WATCH, "WatchExecution"), (DOWNLOAD, "DownloadBody")])
async def test_a_caller_that_goes_away_ends_the_rpc(gateway, path, name):
    ended = asyncio.Event()
    answers = {
        "WatchExecution": executions_pb2.WatchExecutionResponse(),
        "DownloadBody": executions_pb2.DownloadBodyResponse(chunk=b"x"),
    }

    async def forever(_, context):
        context.add_done_callback(lambda _: ended.set())
        yield answers[name]
        await asyncio.Event().wait()

    async with gateway({name: forever}) as (client, *_), asyncio.timeout(LIMIT.total_seconds()):
        async with client.stream("GET", path) as answer:
            await anext(answer.aiter_raw())
        await ended.wait()


async def test_a_caller_that_goes_away_ends_the_wait_for_an_execution(gateway):
    started, ended = asyncio.Event(), asyncio.Event()

    async def execute(_, context):
        context.add_done_callback(lambda _: ended.set())
        started.set()
        await asyncio.Event().wait()

    async with gateway({"Execute": execute}) as (client, *_), asyncio.timeout(LIMIT.total_seconds()):
        call = asyncio.create_task(
            client.post(
                "/v1/executions:execute",
                json={"execution": {"agent": "a"}},
                headers={"Idempotency-Key": "1"},
            )
        )
        await started.wait()
        call.cancel()
        await ended.wait()


async def test_a_download_that_fails_in_the_middle_is_torn(gateway):
    async def download(_, context):
        yield executions_pb2.DownloadBodyResponse(chunk=b"half")
        await refuse(context, PackageAlteredError("no"))

    async with gateway({"DownloadBody": download}) as (client, *_):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(DOWNLOAD)


async def test_streams_end_without_a_word_when_the_gateway_stops(gateway):
    async def forever(_, __):
        yield executions_pb2.WatchExecutionResponse()
        await asyncio.Event().wait()

    async with gateway({"WatchExecution": forever}) as (client, _, stop, running):
        text = ""
        async with client.stream("GET", WATCH) as answer:
            async for piece in answer.aiter_text():
                text += piece
                stop.set()
        async with asyncio.timeout(LIMIT.total_seconds()):
            await running

    assert "event: message" in text
    assert "event: end" not in text


async def test_an_upload_is_passed_on_in_pieces(gateway):
    got = []

    async def publish(requests, _):
        got.extend([request async for request in requests])
        return templates_pb2.PublishTemplateResponse()

    module = bytes(range(256)) * 4096
    async with gateway({"PublishTemplate": publish}) as (client, *_):
        answer = await client.post("/v1/templates", files={"envelope": b"{}", "module": module})

    assert answer.status_code == 201, answer.text
    assert got[0].header.envelope == b"{}"
    assert module == b"".join(request.chunk.data for request in got[1:])
    assert max(len(request.chunk.data) for request in got[1:]) < 400_000


async def test_a_refusal_in_the_middle_of_an_upload_is_told_as_it_is(gateway):
    async def publish(requests, context):
        async for _ in requests:
            await refuse(context, PackageAlteredError("check 2: no"))

    async with gateway({"PublishTemplate": publish}) as (client, *_):
        answers = [
            await client.post("/v1/templates", files={"envelope": b"{}", "module": b"x" * size})
            for size in (
                1,
                300_000,
                *[3_000_000] * 40,
            )  # the refusal meets a write now before, now after its end
        ]

    assert {(400, "PACKAGE_ALTERED")} == {(one.status_code, one.json()["reason"]) for one in answers}


@pytest.mark.parametrize(
    ("files", "pointer"),
    [
        ({"module": b"m"}, "/envelope"),
        ({"envelope": b"{}"}, "/module"),
        ({"module": b"m", "envelope": b"{}"}, "/envelope"),
        ({"envelope": b"", "module": b"m"}, "/envelope"),
        ({"envelope": b"x" * 524_289, "module": b"m"}, "/envelope"),
        ({"envelope": b"{}", "other": b"x", "module": b"m"}, "/other"),
        ([("envelope", b"{}"), ("envelope", b"{}"), ("module", b"m")], "/envelope"),
        ([("envelope", b"{}"), ("module", b"m"), ("module", b"m")], ""),
    ],
    ids=["no envelope", "no module", "order", "empty", "large", "unknown", "twice", "two modules"],
)
async def test_a_form_that_is_not_as_documented_is_refused(gateway, files, pointer):
    async def publish(requests, _):
        async for _ in requests:
            pass
        return templates_pb2.PublishTemplateResponse()

    async with gateway({"PublishTemplate": publish}) as (client, *_):
        answer = await client.post("/v1/templates", files=files)

    assert answer.status_code == 400
    assert [pointer] == [one["pointer"] for one in answer.json()["violations"]]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"x", 415),
        ("multipart/form-data; boundary=" + "b" * 300, b"x", 400),
        ("multipart/form-data; boundary=b", b"--c\r\n\r\n", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x: y\r\n" * 50, 400),
        ("multipart/form-data; boundary=b", b"--b\r\nx: " + b"y" * 5000, 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="envelope"\r\n\r\n{',
            400,
        ),
    ],
    ids=["json", "none", "long", "other", "heads", "head", "ends early"],
)
async def test_what_is_no_form_is_refused(gateway, content_type, body, status):
    async def publish(requests, _):
        async for _ in requests:
            pass
        return templates_pb2.PublishTemplateResponse()

    async with gateway({"PublishTemplate": publish}) as (client, *_):
        answer = await client.post("/v1/templates", content=body, headers={"Content-Type": content_type})

    assert (status, "application/problem+json") == (answer.status_code, answer.headers["content-type"])


async def test_an_upload_above_its_bound_is_refused_on_the_way(gateway):
    async def publish(requests, _):
        async for _ in requests:
            pass
        return templates_pb2.PublishTemplateResponse()

    async def without_length():
        yield b'--b\r\ncontent-disposition: form-data; name="envelope"\r\n\r\n{}\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="module"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 4096

    async with gateway({"PublishTemplate": publish}, max_upload_bytes=100_000) as (client, *_):
        told = await client.post("/v1/templates", files={"envelope": b"{}", "module": b"x" * 200_000})
        untold = await client.post(
            "/v1/templates",
            content=without_length(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )

    assert (told.status_code, untold.status_code) == (413, 413)


async def test_no_more_streams_and_requests_than_allowed(gateway):
    async def forever(_, __):
        yield executions_pb2.WatchExecutionResponse()
        await asyncio.Event().wait()

    async with (
        gateway({"WatchExecution": forever, "GetAgent": get_agent}, max_streams=1, max_requests=2) as (
            client,
            *_,
        ),
        client.stream("GET", WATCH) as one,
    ):
        pieces = one.aiter_raw()  # kept: the stream ends with the last who can read it
        await anext(pieces)
        second = await client.get(WATCH)
        other = await client.get("/v1/agents/a")
    assert (
        second.status_code,
        second.json()["reason"],
        second.headers["retry-after"],
    ) == (429, "RESOURCE_EXHAUSTED", "1")
    assert other.status_code == 200


async def test_a_head_that_does_not_end_is_cut(gateway):
    async with gateway({}, head_timeout=timedelta(milliseconds=200)) as (client, *_):
        silent = await raw(client, b"")
        half = await raw(client, b"GET /v1/agents HTTP/1.1\r\nHost: x\r\n")

    assert (silent, half) == (b"", b"")


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["whole", "without an end"])
async def test_a_head_that_is_too_large_is_refused(gateway, end):
    async with gateway({}) as (client, *_):
        answer = await raw(client, b"GET /v1/agents HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + end)

    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_does_not_come_is_not_waited_for(gateway):
    async with gateway({}, read_timeout=timedelta(milliseconds=200)) as (client, *_):
        answer = await raw(
            client,
            b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\n"
            b"Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{",
        )

    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_https_with_a_certificate_of_its_own(tmp_path):
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(tmp_path / "tls.key")
    (tmp_path / "tls.key").chmod(0o600)
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(tmp_path / "tls.crt", append=True)
    async with serving(
        {"GetAgent": get_agent}, tmp_path, certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key"
    ) as (client, *_):
        authority.cert_pem.write_to_path(tmp_path / "ca2.crt")
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca2.crt"))
        async with httpx.AsyncClient(verify=trust, base_url=client.base_url, headers=client.headers) as own:
            answer = await own.get("/v1/agents/a")

    assert answer.status_code == 200
    assert "strict-transport-security" in answer.headers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"], ids=["named", "unnamed"])
async def test_a_rotated_certificate_serves_the_next_handshake_and_a_broken_one_none(tmp_path, host):
    def place(pems, key):
        (tmp_path / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in pems))
        key.write_to_path(tmp_path / "tls.key")
        (tmp_path / "tls.key").chmod(0o600)

    async def served(port, authority):
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port, ssl=trust), LIMIT.total_seconds()
        )
        found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        writer.close()
        return found

    first, second = trustme.CA(), trustme.CA()
    old, new = (ca.issue_cert("localhost", "127.0.0.1") for ca in (first, second))
    place(old.cert_chain_pems, old.private_key_pem)
    async with serving(
        {}, tmp_path, certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", host="127.0.0.1"
    ) as (client, *_):
        port = client.base_url.port
        before = await served(port, first)
        (tmp_path / "tls.crt").write_bytes(new.cert_chain_pems[0].bytes()[:100])
        meanwhile = await served(port, first)
        place(new.cert_chain_pems, new.private_key_pem)
        after = await served(port, second)

    assert before == meanwhile
    assert after != before


async def test_fields_that_the_control_plane_names_are_parts_of_the_http_request(gateway):
    async def not_so(_, context):
        await refuse(
            context,
            InvalidInputError(
                "two fields",
                violations=[
                    FieldViolation(field="parameters/rules/0/pattern", description="expected a string"),
                    FieldViolation(field="update_mask", description="names no field"),
                    FieldViolation(field="name", description="has a space"),
                ],
            ),
        )

    async with gateway({"UpdateAgent": not_so, "ListAgents": not_so}) as (client, *_):
        changed = await client.patch("/v1/agents/a", json={"revision": "1", "parameters": "e30="})
        listed = await client.get("/v1/agents")

    assert (changed.status_code, changed.json()["reason"]) == (400, "INVALID_INPUT")
    assert changed.json()["violations"] == [
        {"in": "body", "pointer": "/parameters/rules/0/pattern", "detail": "expected a string"},
        {"in": "body", "pointer": "/update_mask", "detail": "names no field"},
        {"in": "path", "pointer": "name", "detail": "has a space"},
    ]
    assert listed.json()["violations"][0]["in"] == "query"


async def test_a_taken_port_is_said(gateway, tmp_path):
    async with gateway({}) as (client, *_), asyncio.timeout(LIMIT.total_seconds()):
        settings = GatewaySettings(data_dir=tmp_path, port=client.base_url.port, admin_port=0)
        with pytest.raises(PortInUseError):
            await run(settings, stop=asyncio.Event(), started=lambda _: None)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"AF_GATEWAY_HOST": "0.0.0.0"}, "tokens would travel in clear"),
        ({"AF_GATEWAY_CERTIFICATE": "x"}, "belong together"),
        ({"AF_GATEWAY_PROT": "1"}, "did you mean AF_GATEWAY_PORT"),
    ],
    ids=["clear", "half", "typo"],
)
def test_settings_that_are_wrong_stop_the_start(environment, said):
    with pytest.raises(SettingsError, match=said):
        load_settings(GatewaySettings, environ=environment)


def test_clear_text_behind_a_proxy_has_to_be_said():
    environment = {"AF_GATEWAY_HOST": "0.0.0.0", "AF_GATEWAY_PLAINTEXT": "behind-proxy"}

    assert load_settings(GatewaySettings, environ=environment).host == "0.0.0.0"

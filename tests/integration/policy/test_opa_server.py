"""What the adapter for OPA servers does with servers that are away, slow, strange or behind."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trustme

from control_plane.policy.domain import PolicyBundle
from control_plane.policy.opa_server import MAX_ANSWER_BYTES, OpaPolicyEngines, TokenFile
from shared.errors import PolicyUndecidedError, UnavailableError

BUNDLE = PolicyBundle.of({"a.rego": "package agentfactory\n\nexecute := 1\n"}, {})
RULE = "data.agentfactory.execute"
TIMEOUT = timedelta(milliseconds=500)
GIVES_UP_WITHIN_SECONDS = 20


def answer(result: object = 1, revision: str = BUNDLE.digest) -> bytes:
    provenance = {"version": "1.22.2", "bundles": {"agentfactory": {"revision": revision}}}
    return json.dumps({"provenance": provenance, "result": result, "decision_id": "d-1"}).encode()


def response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


async def request_of(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
    return head, await reader.readexactly(length)


@asynccontextmanager
async def serving(
    say: Callable[[str], bytes | None], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A server that says what it is told; None: nothing at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head, _ = await request_of(reader)
                said = say(head)
                if said is None:
                    await reader.read()
                    return
                writer.write(said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        server.close()


async def evaluated(*urls: str, **options: object) -> object:
    engines = OpaPolicyEngines(urls, timeout=TIMEOUT, **options)
    try:
        return (await (await engines.load(BUNDLE)).evaluate(RULE, "{}")).value_json
    finally:
        await engines.close()


async def test_the_answer_and_the_decision_id_are_the_servers():
    async with serving(lambda _: response(answer({"a": 1}))) as url:
        engines = OpaPolicyEngines([url], timeout=TIMEOUT)
        said = await (await engines.load(BUNDLE)).evaluate(RULE, "{}")
        await engines.close()
    assert (json.loads(said.value_json), said.engine_decision_id) == ({"a": 1}, "d-1")


async def test_provenance_and_strict_errors_are_asked_for():
    heads = []
    async with serving(lambda head: heads.append(head) or response(answer())) as url:
        await evaluated(url)
    assert heads[-1].startswith("post /v1/data/agentfactory/execute?")
    assert "provenance=true" in heads[-1] and "strict-builtin-errors=true" in heads[-1]  # noqa: PT018 - one line


@pytest.mark.parametrize(
    "said",
    [
        response(answer(revision="sha256:other")),
        response(b'{"result": true}'),
        response(b'{"provenance": {}, "result": true}'),
        response(b'{"provenance": {"bundles": []}, "result": true}'),
        response(b'{"provenance": {"bundles": {"a": "sha256"}}, "result": true}'),
        response(b"[1]"),
        response(b"null"),
        response(b"<html>"),
        response(b""),
        response(answer("x" * MAX_ANSWER_BYTES)),
        response(answer(), status="500 Internal Server Error"),
        response(answer(), status="302 Found", headers="Location: http://127.0.0.1:1/\r\n"),
        response(answer(), status="401 Unauthorized"),
        b"nonsense\r\n\r\n",
        b"",
        None,
    ],
    ids=lambda said: None,
)
async def test_anything_but_an_answer_of_the_bundle_in_force_is_none(said):
    """The load comes through, later answers are strange: as when a server is changed under the control plane."""
    asked = []

    def say(head: str) -> bytes | None:
        asked.append(head)
        return response(answer()) if len(asked) == 1 else said

    started = time.monotonic()
    async with serving(say) as url:
        with pytest.raises(PolicyUndecidedError):
            await evaluated(url)
    assert time.monotonic() - started < GIVES_UP_WITHIN_SECONDS


async def test_an_undefined_rule_has_no_answer():
    undefined = json.loads(answer())
    del undefined["result"]
    async with serving(lambda _: response(json.dumps(undefined).encode())) as url:
        with pytest.raises(PolicyUndecidedError, match="undefined"):
            await evaluated(url)


async def test_a_server_that_is_away_or_behind_leaves_it_to_one_that_is_not():
    async with (
        serving(lambda _: response(answer(2, revision="sha256:old"))) as behind,
        serving(lambda _: response(answer(3))) as right,
    ):
        assert await evaluated("http://127.0.0.1:1", behind, right) == "3"


async def test_a_server_that_hangs_is_asked_last_the_next_time():
    hung = []

    def hang(head: str) -> bytes | None:
        hung.append(head)
        return response(answer(1)) if len(hung) == 1 else None

    async with serving(hang) as slow, serving(lambda _: response(answer(2))) as quick:
        engines = OpaPolicyEngines([slow, quick], timeout=TIMEOUT)
        engine = await engines.load(BUNDLE)
        with pytest.raises(PolicyUndecidedError, match="no answer within 500 ms"):
            await engine.evaluate(RULE, "{}")
        assert (await engine.evaluate(RULE, "{}")).value_json == "2"
        await engines.close()


async def test_without_a_server_that_has_the_bundle_it_is_not_loaded_and_says_what_they_have():
    async with serving(lambda _: response(answer(revision="sha256:old"))) as url:
        with pytest.raises(UnavailableError, match="it serves sha256:old") as caught:
            await evaluated(url)
    assert "policy export" in (caught.value.hint or "")


async def test_a_renewed_token_is_read_when_the_old_one_is_refused(tmp_path):
    file = tmp_path / "token"
    file.write_text("old\n")
    accepted = "old"

    def say(head: str) -> bytes:
        right = f"authorization: bearer {accepted}\r\n" in head
        return response(answer()) if right else response(b"{}", status="401 Unauthorized")

    async with serving(say) as url:
        engines = OpaPolicyEngines([url], timeout=timedelta(seconds=5), token=TokenFile(file))
        engine = await engines.load(BUNDLE)
        accepted = "new"
        with pytest.raises(PolicyUndecidedError, match="401"):
            await engine.evaluate(RULE, "{}")
        file.write_text("new\n")
        assert (await engine.evaluate(RULE, "{}")).value_json == "1"
        await engines.close()


async def test_only_the_named_authority_is_trusted(tmp_path):
    ours, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    files = {}
    for name, authority in (("ours", ours), ("other", other)):
        files[name] = tmp_path / f"{name}.pem"
        authority.cert_pem.write_to_path(files[name])
    async with serving(lambda _: response(answer()), tls=context) as url:
        assert await evaluated(url, ca_file=files["ours"]) == "1"
        with pytest.raises(UnavailableError):
            await evaluated(url, ca_file=files["other"])
        with pytest.raises(UnavailableError):
            await evaluated(url)

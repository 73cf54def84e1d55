"""The log before the world: a real witness cosigns it, and a stranger's client reads and checks it over HTTP."""

import base64
import json
import urllib.request
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import asyncpg
import httpx
import pytest

from shared.checkpoints import ED25519, VerifierKey, log_origin, parse_checkpoint
from shared.key_files import read_private_key
from tests.e2e.gateway import running_gateway
from tests.e2e.stack import eventually, running_stack
from tests.fixtures.go_verifier import verdicts, verifier_binary
from tests.fixtures.omniwitness import omniwitness

ORIGIN = log_origin("local", 1)
SOON = timedelta(seconds=60)
ENTRIES = 700
"""More than two whole tiles."""

FILL = """INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, result, details)
SELECT 'aud_fill' || n, 'default', 'test', 'test.filled', 'log', 'ok', '{}' FROM generate_series(1, $1) n"""


def log_key(stack):
    return read_private_key(stack.paths.log_key).public


@contextmanager
def altering(url, path, at):
    """Serve what is at `url`, with one bit of what is at `path` turned."""

    class Altered(BaseHTTPRequestHandler):
        def do_GET(self):
            with urllib.request.urlopen(url + self.path, timeout=10) as answer:
                data = bytearray(answer.read())
            if self.path == path:
                data[at] ^= 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Altered)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


async def fill(stack):
    connection = await asyncpg.connect(stack.database.url())
    try:
        await connection.execute(FILL, ENTRIES)
    finally:
        await connection.close()


async def leaves(stack):
    connection = await asyncpg.connect(stack.database.url())
    try:
        rows = await connection.fetch("SELECT commitment FROM log_entries ORDER BY log_index")
        return [row["commitment"] for row in rows]
    finally:
        await connection.close()


@pytest.mark.timeout(400)
async def test_strangers_read_and_check_the_witnessed_log(tmp_path, monkeypatch):
    verifier_binary()
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("logged")
        key = log_key(stack)
        with omniwitness(tmp_path, {ORIGIN: key}) as witness:
            witnesses = [{"url": witness.url, "key": witness.key.text}]
            monkeypatch.setenv("AF_CONTROL_LOG_WITNESSES", json.dumps(witnesses))
            monkeypatch.setenv("AF_CONTROL_LOG_WITNESS_QUORUM", "1")
            monkeypatch.setenv("AF_CONTROL_LOG_WITNESS_EVERY", "PT0.5S")
            await stack.kill_control_plane()
            await stack.start_control_plane()
            execution, _ = await stack.execute("logged", b"exit 0")
            await fill(stack)
            async with running_gateway(stack) as gateway, httpx.AsyncClient(base_url=gateway.url) as stranger:
                await as_a_stranger(stack, gateway, stranger, key, witness)
            await receipts_carry_cosignatures(stack, execution, witness, tmp_path)
            await metrics_tell(stack, witness)


async def as_a_stranger(stack, gateway, stranger, key, witness):
    async def checkpoint():
        return await stranger.get("/log/checkpoint")

    def witnessed(answer):
        if answer.status_code != 200:
            return False
        signed = parse_checkpoint(answer.content)
        return signed.checkpoint.size > ENTRIES and signed.signatures[-1].name == witness.name

    answer = await eventually(checkpoint, witnessed, "a witnessed checkpoint", within=SOON)
    assert answer.headers["cache-control"] == "public, max-age=1"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    size = parse_checkpoint(answer.content).checkpoint.size
    await tiles_are_as_they_should(stranger, size)
    base = {
        "Kind": "tiles",
        "Origin": ORIGIN,
        "LogKey": VerifierKey(name=ORIGIN, kind=ED25519, public=key).text,
        "Witnesses": [witness.key.text],
    }
    found = await leaves(stack)
    url = gateway.url + "/log"
    true = [{**base, "URL": url, "Index": index, "Leaf": found[index]} for index in (0, 255, 256, size - 1)]
    assert verdicts(true) == [""] * len(true)
    assert verdicts([{**true[0], "Leaf": found[1]}]) == ["another leaf is there"]
    with (
        altering(url, "/tile/0/001", 40) as leaf,
        altering(url, "/tile/1/000.p/" + str(size // 256), 0) as inner,
        altering(url, "/checkpoint", 30) as head,
    ):
        wrong = verdicts(
            [
                {**base, "URL": leaf, "Index": 257, "Leaf": found[257]},
                {**base, "URL": inner, "Index": 0, "Leaf": found[0]},
                {**base, "URL": head, "Index": 0, "Leaf": found[0]},
            ]
        )
    assert all(wrong), wrong


async def tiles_are_as_they_should(stranger, size):
    whole = await stranger.get("/log/tile/0/000")
    assert (whole.status_code, len(whole.content)) == (200, 256 * 32)
    assert whole.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert whole.headers["content-type"] == "application/octet-stream"
    part = await stranger.get("/log/tile/0/000.p/7")
    assert part.content == whole.content[: 7 * 32]
    assert part.headers["cache-control"] == "public, max-age=3600"
    beyond = ("/log/tile/0/x999/999", "/log/tile/3/000.p/1", f"/log/tile/1/000.p/{size // 256 + 200}")
    no_paths = (
        "/log/tile/0/x000/000",
        "/log/tile/00/000",
        "/log/tile/8/000",
        "/log/tile/0/0",
        "/log/tile/0/000.p/0",
    )
    more = (
        "/log/tile/0/000.p/257",
        "/log/tile/0/000.p/256",
        "/log/tile/0/000/",
        "/log/tile/0/",
        "/log/tile/entries/000",
    )
    for path in (*beyond, *no_paths, *more):
        answer = await stranger.get(path)
        assert answer.status_code == 404, path
        assert answer.headers["cache-control"] == "no-store"
    assert (await stranger.post("/log/checkpoint")).status_code == 405
    assert (await stranger.get("/v1/checkpoint")).status_code == 401  # the API itself asks for a token


async def receipts_carry_cosignatures(stack, execution, witness, tmp_path):
    evidence = tmp_path / "evidence.json"

    async def get():
        await stack.cli("receipt", "get", execution.execution_id, "-o", str(evidence))
        return (await stack.cli("receipt", "get", execution.execution_id, "--json")).json()

    def is_witnessed(answer):
        return witness.name in base64.b64decode(answer.get("log", {}).get("checkpoint", "")).decode()

    await eventually(get, is_witnessed, "a witnessed receipt", within=SOON)
    await get()  # the file may be older than the answer
    checks = (await stack.cli("receipt", "verify", str(evidence), "--json")).json()["checks"]
    assert any("leaf" in str(check) for check in checks)


async def metrics_tell(stack, witness):
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{stack.ports.control_admin}/metrics")).text
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line[0] != "#"
    }
    assert 0 <= values[f'af_log_witness_age_seconds{{witness="{witness.name}"}}'] < 120
    assert values["af_log_witnessed_size"] > ENTRIES
    assert values["af_log_stopped"] == 0

"""An agent that asks a language model, through the whole system: its budget, its receipt, its replay, and its key."""

import base64
import json
import zipfile
import zlib
from pathlib import Path

import pytest
from agentfactory.v1 import executions_pb2

from shared.errors import LlmQuotaExhaustedError
from tests.bench.peers import postgres_server
from tests.e2e.stack import ROOT, TestStack, eventually, running_stack
from tests.e2e.test_replay import bundled, replay, results
from tests.fixtures.llm_endpoint import KEY, ModelServer, model_server

CALLER = ROOT / "tests" / "guests" / "caller.wasm"
LLM = 'llm = { models = ["local/small"], max_tokens = 120 }\n'
ASK = json.dumps(
    {
        "method": "llm.complete",
        "params": {
            "model": "local/small",
            "messages": [{"role": "user", "content": "two and two?"}],
            "max_tokens": 40,
        },
    }
).encode()


def node_settings(server: ModelServer, folder: Path) -> dict[str, str]:
    secrets = folder / "secrets.json"
    secrets.write_text(json.dumps({"_operator": {"llm-key": {"value": KEY, "urls": [server.url]}}}))
    secrets.chmod(0o600)
    endpoint = {
        "url": server.url,
        "secret": "llm-key",
        "models": {"small": {"prompt_micros": 1_000_000, "answer_micros": 2_000_000}},
    }
    return {"AF_NODE_LLM_ENDPOINTS": json.dumps({"local": endpoint}), "AF_NODE_SECRETS_FILE": str(secrets)}


@pytest.mark.timeout(900)
async def test_an_agent_asks_a_model_within_its_budget_and_is_run_again_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AF_CONTROL_ALLOWED_LLM", json.dumps(["local/small"]))
    async with model_server() as server, running_stack(**node_settings(server, tmp_path)) as stack:
        for name, more in (("thinker", "record_host_calls = true"), ("forgetful", "")):
            await stack.make_agent(name, CALLER, capabilities=LLM + more, profile="portable")
        execution, output = await stack.execute("thinker", b"\n".join([ASK] * 4) + b"\n", timeout_seconds=120)

        assert execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED, execution
        first, *_, last = map(json.loads, output.splitlines())
        assert first["ok"]["message"]["content"] == "four"
        assert first["ok"]["usage"] == {"prompt_tokens": 12, "answer_tokens": 3, "cost_micros": 18}
        assert last["error"]["reason"] == "BUDGET_EXHAUSTED"
        used = execution.resources_used
        assert 15 <= used.llm_tokens <= 120
        assert used.llm_cost_micros == 18 * used.llm_tokens // 15
        shown = (await stack.cli("receipt", "get", execution.execution_id)).out
        assert "llm.complete (budget_exhausted)" in shown
        assert "model tokens" in shown

        asked = len(server.heard)
        bundle = await bundled(stack, tmp_path, execution.execution_id)
        again = results(await replay(stack, bundle))
        assert again["output"] == again["host calls"] == "same"
        assert len(server.heard) == asked
        digests, _ = await stack.execute("forgetful", ASK + b"\n", timeout_seconds=120)
        other = await bundled(stack, tmp_path, digests.execution_id)
        refused = await stack.cli(
            *("replay", str(other), "--trust", str(stack.folder / "trust.json")), expect=None
        )
        assert refused.code != 0
        assert "record_host_calls" in refused.err + refused.out

        await nobody_has_the_key(stack, bundle, other)
        recording = (await stack.cli("execution", "recording", execution.execution_id)).out
        unpacked = b"".join(unpack(line) for line in recording.splitlines())
        assert b"two and two?" in unpacked
        assert KEY.encode() not in unpacked
        await the_tenants_day_ends(stack, used.llm_tokens + digests.resources_used.llm_tokens)
        assert all(KEY in one.head for one in server.heard)


def unpack(line: str) -> bytes:
    """The bytes of one recorded call."""
    call = json.loads(line)
    return b"".join(zlib.decompress(base64.b64decode(call[name])) for name in ("request", "response"))


def contents(path: Path) -> list[bytes]:
    """A file's content, and that of what it packs."""
    if not zipfile.is_zipfile(path):
        return [path.read_bytes()]
    with zipfile.ZipFile(path) as packed:
        return [packed.read(name) for name in packed.namelist()]


async def nobody_has_the_key(stack: TestStack, *bundles: Path) -> None:
    """Postgres, logs, spool, recordings and bundles: the key is in none of them."""
    forms = (KEY.encode(), KEY.encode().hex().encode())
    sql = await postgres_server.connect(stack.database.url())
    try:
        tables = [
            row["tablename"]
            for row in await sql.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ]
        assert "llm_use" in tables
        for table in tables:
            for row in await sql.fetch(f'SELECT t::text AS whole FROM "{table}" t'):
                assert not any(form in row["whole"].encode() for form in forms), table
    finally:
        await sql.close()
    files = [path for path in stack.folder.rglob("*") if path.is_file() and "postgres" not in path.parts]
    for path in (*files, *bundles):
        assert not any(form in content for form in forms for content in contents(path)), path


async def the_tenants_day_ends(stack: TestStack, used: int) -> None:
    """What the receipts say is counted for the tenant, and beyond its quota nothing of the kind is accepted."""
    sql = await postgres_server.connect(stack.database.url())
    try:
        (row,) = await sql.fetch("SELECT tenant_id, tokens, runs FROM llm_use")
    finally:
        await sql.close()
    assert tuple(row) == ("default", used, 2)
    await stack.cli("tenant", "update", "default", "--llm-tokens", str(used))

    async def is_refused() -> bool:
        try:
            await stack.execute("forgetful", b'{"method":"budget.left"}\n', timeout_seconds=120)
        except LlmQuotaExhaustedError as error:
            return error.retry_after is not None
        return False

    await eventually(is_refused, bool, "the end of the tenant's day")
    await stack.make_agent("plain")
    plain, _ = await stack.execute("plain", b"sleep 1", timeout_seconds=120)
    assert plain.state == executions_pb2.EXECUTION_STATE_SUCCEEDED

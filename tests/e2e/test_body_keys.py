"""Encrypted bodies in a whole installation with a real vault: run, refused while it is sealed, rotated, erased."""

import asyncio
import json
from pathlib import Path

import pytest
from agentfactory.v1 import executions_pb2

from cli.client import connect
from cli.run import to_message
from cli.settings import CliSettings
from shared.errors import AgentFactoryError, KeyUnavailableError
from tests.bench.peers import postgres_server
from tests.e2e.stack import TestStack, eventually, new_request, running_stack
from tests.e2e.tenants import add_tenant
from tests.fixtures.openbao import running_bao
from tests.fixtures.vault_roles import make_custody_role

AGENT = "actor"
LARGE = 200_000
SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED
KEY_LIFE = "PT10S"
"""The least that the setting takes."""

READABLE = """
SELECT count(*) FROM bodies b JOIN executions e ON b.body_id IN (e.input_body_id, e.output_body_id)
WHERE e.execution_id = $1 AND octet_length(b.content) = b.size_bytes"""
TRACES = "SELECT count(*) FROM bodies WHERE position($1::bytea IN content) > 0 AND tenant_id = 'default'"


async def submit_as(settings: CliSettings, body: bytes) -> str:
    async with connect(settings) as client:
        message = await to_message(client, new_request(AGENT, body, 100))
        answer = await client.executions.SubmitExecution(
            executions_pb2.SubmitExecutionRequest(execution=message), timeout=10
        )
        return answer.execution.execution_id


async def refusal(stack: TestStack) -> AgentFactoryError | None:
    try:
        await submit_as(stack.settings, b"exit 0")
    except AgentFactoryError as error:
        return error
    return None


@pytest.mark.timeout(400)
async def test_bodies_are_sealed_refused_without_a_key_rotated_and_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_bao() as bao:
        access = make_custody_role(bao, tmp_path)
        async with running_stack() as stack:
            await stack.make_agent(AGENT)
            for name, value in {
                "CUSTODY": "vault",
                "VAULT_URL": bao.url,
                "VAULT_ROLE_ID": access.role_id,
                "VAULT_SECRET_ID_FILE": str(access.secret_id_file),
                "BODY_KEY_LIFE": KEY_LIFE,
            }.items():
                monkeypatch.setenv(f"AF_CONTROL_{name}", value)
            await stack.kill_control_plane()
            await stack.start_control_plane()
            for purpose in ("order", "log"):
                await stack.cli("keys", "rotate", purpose)
            sql = await postgres_server.connect(stack.database.url())
            try:
                plain = await add_tenant(stack, sql, "plain", agent=AGENT)
                before, _ = await stack.execute(AGENT, b"sleep 1", timeout_seconds=90)
                assert before.state == SUCCEEDED, (before.pending_reason, before.attempts)
                assert await sql.fetchval(READABLE, before.execution_id) == 2

                shown = await stack.cli("tenant", "update", "default", "--encrypt-bodies", "--json")
                assert shown.json()["encryptBodies"] is True
                small, answer = await stack.execute(AGENT, b"sleep 2")
                assert (small.state, answer.strip()) == (SUCCEEDED, b'{"slept_ms":2}')
                large, answer = await stack.execute(AGENT, f"output {LARGE}".encode())
                assert (large.state, len(answer)) == (SUCCEEDED, LARGE)
                for one in (small, large):
                    assert await sql.fetchval(READABLE, one.execution_id) == 0
                assert await sql.fetchval(TRACES, b"sleep 1") > 0  # what is looked for is found
                assert await sql.fetchval(TRACES, b"sleep 2") == 0
                assert (await stack.get(small.execution_id)).output.strip() == b'{"slept_ms":2}'

                await asyncio.to_thread(bao.seal)
                refused = await eventually(lambda: refusal(stack), bool, "a refusal")
                assert isinstance(refused, KeyUnavailableError)
                other = await submit_as(plain, b"sleep 3")
                await asyncio.to_thread(bao.unseal)
                ended = "SELECT state = 'succeeded' FROM executions WHERE execution_id = $1"
                await eventually(lambda: sql.fetchval(ended, other), bool, "the other tenant's")
                assert await sql.fetchval(READABLE, other) == 2

                async def accepted() -> bool:
                    return await refusal(stack) is None

                await eventually(accepted, bool, "inputs after the vault is back")
                rotated = (await stack.cli("tenant", "rotate-key", "--json")).json()["bodyKeyId"]
                newest, _ = await stack.execute(AGENT, b"sleep 4")
                assert await sql.fetchval(TRACES, rotated.encode()) > 1
                assert newest.state == SUCCEEDED
                await erases(stack, small.execution_id, before.execution_id)
            finally:
                await sql.close(timeout=5)


async def erases(stack: TestStack, gone: str, kept: str) -> None:
    assert "erased" not in (await stack.cli("receipt", "get", gone)).err

    async def erased() -> bool:
        done = await stack.cli("tenant", "erase-key", "default", "--reason", "asked for", expect=None)
        assert done.code == 0 or "have not ended" in done.err, done.err
        return done.code == 0

    await eventually(erased, bool, "the end of what runs")
    assert "erased at" in (await stack.cli("receipt", "get", gone)).err
    assert "erased" not in (await stack.cli("receipt", "get", kept)).err
    assert (await stack.get(gone)).output == b""
    assert (await stack.get(kept)).output.strip() == b'{"slept_ms":1}'
    [tombstone] = (await stack.cli("audit", "list", "--action", "tenant.body_keys_erased", "--json")).json()[
        "auditEntries"
    ]
    assert (tombstone["subject"], json.loads(tombstone["details"])["reason"]) == ("default", "asked for")
    refused = await refusal(stack)
    assert isinstance(refused, KeyUnavailableError)
    assert "rotate-key" in (refused.hint or "")
    await stack.cli("tenant", "rotate-key")
    assert (await stack.execute(AGENT, b"sleep 5"))[0].state == SUCCEEDED

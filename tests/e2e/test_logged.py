"""Nodes and the transparency log, as real processes: the owner of the database lies, and a node does not run it."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from agentfactory.v1 import executions_pb2, templates_pb2

from cli.agents import create_with
from shared.errors import AgentFactoryError
from tests.e2e.stack import TestStack, eventually, running_stack

SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED
PENDING = executions_pb2.EXECUTION_STATE_PENDING
NOT_ANNOUNCED = "ALTER TABLE template_versions DISABLE TRIGGER announce"
ANNOUNCED = "ALTER TABLE template_versions ENABLE TRIGGER announce"
ANNOUNCE_NOW = """
INSERT INTO log_pending (kind, tenant_ids, subjects, contents)
SELECT 'template', array_agg(tenant_id), array_agg(tenant_id || '/' || digest),
    array_agg(decode(substr(digest, 8), 'hex')) FROM template_versions WHERE name = 'hidden'
"""
REWRITE = "TRUNCATE log_entries, log_tiles, log_head, log_checkpoints, log_pending"
GROW = """
INSERT INTO log_pending (kind, tenant_ids, subjects, contents)
SELECT 'audit_entry', array_agg('default'::text), array_agg('rewritten/' || n), array_agg(sha256('x'))
FROM generate_series(1, 10000) n
"""


@asynccontextmanager
async def owner(stack: TestStack) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(stack.database.url())
    try:
        yield connection
    finally:
        await connection.close()


async def refusals(connection: asyncpg.Connection) -> int:
    """Return how many receipts say that something is not in the log."""
    envelopes = [
        json.loads(row["envelope"]) for row in await connection.fetch("SELECT envelope FROM receipts")
    ]
    return sum(b"check 20: NOT_LOGGED" in base64.b64decode(one["payload"]) for one in envelopes)


@pytest.mark.timeout(300)
async def test_a_template_that_is_kept_out_of_the_log_runs_only_once_it_is_in_it_and_a_rewritten_log_stops_the_node():
    async with running_stack(nodes=1) as stack, owner(stack) as connection:
        await stack.make_agent("open")
        assert (await stack.execute("open", b"exit 0"))[0].state == SUCCEEDED

        await connection.execute(NOT_ANNOUNCED)
        await stack.make_agent("hidden")
        await connection.execute(ANNOUNCED)
        hidden = await stack.submit("hidden", b"exit 0")
        await eventually(lambda: refusals(connection), lambda count: count > 0, "a refusal of the node")
        assert (await stack.get(hidden)).state == PENDING
        # Others are not held up, and once it is in the log it runs: no attempt was counted against it.
        assert (await stack.execute("open", b"exit 0"))[0].state == SUCCEEDED
        await connection.execute(ANNOUNCE_NOW)
        assert (await stack.wait_for_end(hidden)).state == SUCCEEDED

        await stack.kill_control_plane()
        await connection.execute(REWRITE)
        await connection.execute(GROW)
        await stack.start_control_plane()
        await stack.make_agent("later")
        later = await stack.submit("later", b"exit 0")
        nodes = await eventually(
            stack.list_nodes, lambda nodes: bool(nodes[0].log.problem), "the fork in the list of nodes"
        )
        assert "continue" in nodes[0].log.problem
        assert (await stack.get(later)).state == PENDING
        shown = await stack.cli("node", "list")
        assert "continue" in shown.out
        assert (stack.nodes[0].paths.data_dir / "log.fork").exists()


@pytest.mark.timeout(300)
async def test_what_was_published_when_the_control_plane_died_runs_after_its_return():
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("before")
        assert (await stack.execute("before", b"exit 0"))[0].state == SUCCEEDED
        names = [f"during-{number}" for number in range(6)]
        publishing = [asyncio.create_task(stack.publish(name)) for name in names]
        await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
        await stack.kill_control_plane()
        with contextlib.suppress(AgentFactoryError):
            await asyncio.gather(*publishing)
        await asyncio.wait(publishing)
        await stack.start_control_plane()
        async with stack.client() as client:
            listed = await client.templates.ListTemplates(templates_pb2.ListTemplatesRequest(), timeout=10)
            committed = {one.name: one.digest for one in listed.template_versions if one.name in names}
            assert committed
            for name, digest in committed.items():
                await create_with(client, name, digest, b"{}")
        for name in committed:
            assert (await stack.execute(name, b"exit 0"))[0].state == SUCCEEDED

"""Recovery to a point in time by Postgres' own means, and the new epoch that has to begin after it."""

import asyncio
import base64
import json
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from agentfactory.v1 import executions_pb2

from cli.stack import postgres
from cli.stack.children import stop
from shared.errors import AgentFactoryError
from tests.e2e.stack import ENDED, TestStack, command, eventually, running_stack

SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED
SHORTER = "leaves under a checkpoint, not"
LOST = 40
"""Executions behind the moment: more leaves of the log than a start of the control plane makes."""


async def sql(stack: TestStack, statement: str) -> object:
    connection = await asyncpg.connect(stack.database.url())
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def said_by_node(stack: TestStack) -> str:
    return stack.nodes[0].log.read_text(errors="replace")


async def refused_orders(stack: TestStack) -> int:
    """Return how many receipts say that an order's facts are not proved to be in the log."""
    connection = await asyncpg.connect(stack.database.url())
    try:
        rows = await connection.fetch("SELECT envelope FROM receipts")
    finally:
        await connection.close()
    return sum(b"check 20" in base64.b64decode(json.loads(row["envelope"])["payload"]) for row in rows)


def folder_of_postgres(stack: TestStack, name: str) -> Path:
    folder = stack.database.data.parent / name
    folder.mkdir()
    if stack.database.user is not None:
        shutil.chown(folder, stack.database.user, stack.database.user)
    return folder


async def archive_wal(stack: TestStack) -> Path:
    archive = folder_of_postgres(stack, "wal")
    await sql(stack, "ALTER SYSTEM SET archive_mode = on")
    await sql(stack, f"ALTER SYSTEM SET archive_command = 'cp %p {archive}/%f'")
    await stop(stack.postgres)
    await stack.start_postgres()
    return archive


async def base_backup(stack: TestStack) -> Path:
    target = folder_of_postgres(stack, "base")
    user = (
        [] if stack.database.user is None else ["setpriv", f"--reuid={stack.database.user}", "--clear-groups"]
    )
    process = await asyncio.create_subprocess_exec(
        *user,
        str(stack.database.programs / "bin" / "pg_basebackup"),
        *("-D", str(target), "-h", str(stack.database.socket), "-U", postgres.SUPERUSER, "-c", "fast"),
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
    )
    async with asyncio.timeout(60):
        assert await process.wait() == 0
    return target


@pytest.mark.timeout(420)
async def test_a_database_of_an_earlier_time_runs_on_only_as_another_epoch(record_property):
    async with running_stack(nodes=1, AF_NODE_MAX_LOG_AGE_S="5") as stack:
        archive = await archive_wal(stack)
        await stack.kill_control_plane()
        await stack.start_control_plane()
        await stack.make_agent("actor", limits="wall_ms = 20000")
        base = await base_backup(stack)
        kept = [(await stack.execute("actor", b"exit 0"))[0].execution_id for _ in range(3)]
        before = (await stack.list_nodes())[0].log.size
        moment = await sql(stack, "SELECT clock_timestamp()::text")
        many = await asyncio.gather(*(stack.execute("actor", b"exit 0") for _ in range(LOST)))
        lost = [ended.execution_id for ended, _ in many]
        # The node has seen a log that the recovered database knows nothing of.
        await eventually(
            stack.list_nodes,
            lambda nodes: nodes[0].log.size > before + LOST,
            "a longer log at the node",
            timedelta(seconds=60),
        )
        await sql(stack, "SELECT pg_switch_wal()")
        await eventually(
            lambda: sql(
                stack,
                "SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1)"
                " OR last_archived_time > now() - interval '1 second' FROM pg_stat_archiver",
            ),
            bool,
            "the archived log of writes",
        )

        await stack.kill_control_plane()
        await stop(stack.postgres)
        began_at = time.monotonic()
        shutil.rmtree(stack.database.data)
        base.chmod(0o700)
        base.rename(stack.database.data)
        (stack.database.data / "recovery.signal").touch()
        with (stack.database.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"restore_command = 'cp {archive}/%f %p'\nrecovery_target_time = '{moment}'\n"
                "recovery_target_action = 'promote'\narchive_mode = off\n"
            )
        await stack.start_postgres()
        await eventually(
            lambda: sql(stack, "SELECT NOT pg_is_in_recovery()"), bool, "the end of the recovery"
        )
        # Without another epoch the node takes no order: the log that it has seen has become shorter, and what it
        # knows of it gets too old.
        await stack.start_control_plane()
        await eventually(
            lambda: said_by_node(stack), lambda text: SHORTER in text, "that the node sees a shorter log"
        )
        waiting = await stack.submit("actor", b"exit 0")
        await eventually(lambda: refused_orders(stack), lambda count: count > 0, "a refusal of the node")
        assert (await stack.get(waiting)).state not in ENDED
        await stack.kill_control_plane()
        done = await command(
            *("backup", "new-epoch", "--data-dir", str(stack.paths.data_dir)),
            *("--database-url", stack.database.url(), "--json"),
        )
        assert done.code == 0, done.err
        assert done.json()["epoch"] == 2
        await stack.start_control_plane()
        assert (await stack.wait_for_end(waiting)).state == SUCCEEDED
        took = time.monotonic() - began_at
        assert (await stack.execute("actor", b"exit 0", timeout_seconds=60))[0].state == SUCCEEDED
        for execution_id in kept:
            assert (await stack.get(execution_id)).state == SUCCEEDED
        for execution_id in lost:
            with pytest.raises(AgentFactoryError, match="there is no execution"):
                await stack.get(execution_id)
        assert not (await stack.list_nodes())[0].log.problem
        record_property("seconds_to_first_execution", round(took, 1))

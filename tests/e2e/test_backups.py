"""Backups of a running system: made under load, everything destroyed, restored into another epoch; and tampering."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from agentfactory.v1 import audit_pb2, executions_pb2

from cli.stack import postgres
from cli.stack.children import stop
from shared.checkpoints import parse_checkpoint
from tests.e2e.stack import Finished, TestStack, command, eventually, running_stack

pytestmark = pytest.mark.timeout(420)

SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED
CLIENTS = 4


class Load:
    """Executions that never stop coming, and what was acknowledged of them, with the time."""

    def __init__(self, stack: TestStack) -> None:
        self._stack = stack
        self._is_over = False
        self.acknowledged: dict[str, tuple[float, bytes]] = {}

    async def run(self) -> None:
        number = 0
        while not self._is_over:
            number += 1
            ended, body = await self._stack.execute("actor", b"sleep 5")
            assert ended.state == SUCCEEDED
            self.acknowledged[ended.execution_id] = (time.time(), body)

    def stop(self) -> None:
        self._is_over = True


@asynccontextmanager
async def load_on(stack: TestStack) -> AsyncIterator[Load]:
    load = Load(stack)
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(load.run())
        try:
            yield load
        finally:
            load.stop()


async def backup(stack: TestStack, *arguments: str) -> Finished:
    return await command("backup", *arguments, "--data-dir", str(stack.paths.data_dir), "--json")


def where(stack: TestStack) -> list[str]:
    return ["--place", str(stack.folder / "backups")]


def opens(stack: TestStack) -> list[str]:
    return ["--key", str(stack.folder / "backup-restore.key"), *where(stack)]


async def make_keys(stack: TestStack) -> None:
    made = await command("backup", "keys", "--out", str(stack.folder))
    assert made.code == 0, made.err


async def create(stack: TestStack, *more: str) -> dict:
    key = ["--key", str(stack.folder / "backup-create.key")]
    made = await backup(stack, "create", *key, *where(stack), "--database-url", stack.database.url(), *more)
    assert made.code == 0, made.err
    return made.json()


async def checkpoint(stack: TestStack, name: str) -> Path:
    path = stack.folder / name
    async with stack.client() as client:
        answer = await client.audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10)
    path.write_bytes(answer.checkpoint)
    return path


async def destroy(stack: TestStack) -> None:
    """Lose the database, with everything that was in it."""
    await stack.kill_control_plane()
    await stop(stack.postgres)
    postgres.remove(stack.paths.data_dir)


async def empty_postgres(stack: TestStack) -> None:
    stack.database = postgres.locate(stack.paths.data_dir)
    stack.postgres = await postgres.start(stack.database)


async def test_what_was_acknowledged_before_a_backup_under_load_is_there_after_the_restore(record_property):
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("actor", limits="wall_ms = 20000")
        await make_keys(stack)
        async with load_on(stack) as load:
            await eventually(lambda: asyncio.sleep(0, len(load.acknowledged)), lambda n: n > 20, "load")
            before = await checkpoint(stack, "before.note")
            began_at = time.time()
            await create(stack)
            taken = time.time() - began_at
            promised = {one for one, (at, _) in load.acknowledged.items() if at < began_at}
            already = len(load.acknowledged)
            await eventually(
                lambda: asyncio.sleep(0, len(load.acknowledged)), lambda n: n > already + 20, "load behind it"
            )
        after = await eventually(
            lambda: checkpoint(stack, "after.note"),
            lambda path: parse_checkpoint(path.read_bytes()).checkpoint.size > 0,
            "a checkpoint",
        )
        lost = set(load.acknowledged) - promised
        assert lost
        old_receipt = (await stack.get(min(promised))).receipt_id

        await destroy(stack)
        await empty_postgres(stack)
        kept = ["--checkpoint", str(before), "--checkpoint", str(after)]
        began_at = time.time()
        restored = await backup(
            stack, "restore", "latest", *opens(stack), *kept, "--database-url", stack.database.url()
        )
        assert restored.code == 0, restored.err
        said = restored.json()
        assert said["epoch"] == 2
        assert said["checkpoints"][0]["lost"] == 0
        assert said["checkpoints"][1]["lost"] > 0

        await stack.start_control_plane()
        ended, _ = await stack.execute("actor", b"sleep 5", timeout_seconds=60)
        serving = time.time() - began_at
        assert ended.state == SUCCEEDED
        for execution_id in promised:
            found = await stack.get(execution_id)
            assert found.state == SUCCEEDED
            assert found.receipt_id
        assert len(promised) >= 20
        record_property("seconds_of_backup", round(taken, 1))
        record_property("seconds_to_first_execution", round(serving, 1))

        # The node went on with the same spool, and what it did before the restore is proved as before.
        nodes = await stack.list_nodes()
        assert not nodes[0].log.problem
        trust = stack.folder / "trust-of-verifiers.json"
        exported = await command(
            "trust", "export", "--out", str(trust), "--data-dir", str(stack.paths.data_dir)
        )
        assert exported.code == 0, exported.err
        fetched = await eventually(
            lambda: stack.cli("receipt", "get", old_receipt, "--out", str(stack.folder / "old.receipt")),
            lambda done: done.code == 0,
            "an old receipt under the new epoch's log",
        )
        assert fetched.code == 0, fetched.err
        checked = await command("verify", str(stack.folder / "old.receipt"), "--trust", str(trust), "--json")
        assert checked.code == 0, checked.out + checked.err


async def owner_says(stack: TestStack, query: str) -> object:
    connection = await asyncpg.connect(stack.database.url())
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_a_restore_overwrites_nothing_and_needs_the_root_key_or_a_keyset_that_it_signed():
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("actor", limits="wall_ms = 20000")
        await make_keys(stack)
        assert (await stack.execute("actor", b"exit 0"))[0].state == SUCCEEDED
        await create(stack)
        url = ["--database-url", stack.database.url()]
        refused = await backup(stack, "restore", "latest", *opens(stack), *url)
        assert (refused.code, refused.json()["error"]["reason"]) == (2, "CONFLICT")

        await destroy(stack)
        await empty_postgres(stack)
        url = ["--database-url", stack.database.url()]
        root_key = stack.folder / "elsewhere.key"
        stack.paths.root_key.rename(root_key)
        unsigned = await backup(stack, "restore", "latest", *opens(stack), *url)
        assert unsigned.code == 2, unsigned.err
        assert "keys keyset sign" in unsigned.json()["error"]["hint"]
        assert await owner_says(stack, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        (wanted,) = Path.cwd().glob("keyset-*.json")
        signed = stack.folder / "epoch.dsse"
        try:
            made = await command(
                *("keys", "keyset", "sign", str(wanted), "--root-key", str(root_key)),
                *("--current", str(stack.paths.keyset), "--out", str(signed), "--json"),
            )
        finally:
            wanted.unlink()
        assert made.code == 0, made.err
        assert any("epoch 1 becomes 2" in line for line in made.json()["changes"])
        done = await backup(stack, "restore", "latest", *opens(stack), *url, "--epoch-keyset", str(signed))
        assert done.code == 0, done.err
        await stack.start_control_plane()
        assert (await stack.execute("actor", b"exit 0", timeout_seconds=60))[0].state == SUCCEEDED


def flipped(archive: bytes, at: int) -> bytes:
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


async def test_whatever_is_changed_in_an_archive_verification_says_which_check_failed():
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("actor", limits="wall_ms = 20000")
        await make_keys(stack)
        assert (await stack.execute("actor", b"exit 0"))[0].state == SUCCEEDED
        made = await create(stack)
        path = stack.folder / "backups" / made["name"]
        whole = path.read_bytes()
        fine = await backup(stack, "verify", made["name"], *opens(stack))
        assert fine.code == 0, fine.err
        assert fine.json()["rows"]["receipts"] == 1

        wrong = {
            "the magic": (flipped(whole, 3), "check 1"),
            "the header": (flipped(whole, 200), "check"),
            "the first segment": (flipped(whole, 3000), "segment 0"),
            "the end": (flipped(whole, len(whole) - 1), "segment"),
            "what is cut off": (whole[:-40], "segment"),
            "what is added": (whole + b"x", "segment"),
            "two headers": (whole[:10] + whole[:10] + whole[10:], "check 1"),
        }
        for what, (data, said) in wrong.items():
            path.write_bytes(data)
            found = await backup(stack, "verify", made["name"], *opens(stack))
            assert found.code == 3, (what, found.out, found.err)
            error = json.loads(found.out)["error"]
            assert said in error["message"] or error["reason"] in {"MALFORMED", "SIGNATURE_INVALID"}, what
        path.write_bytes(whole)

        # Whoever can write to the place and knows how to encrypt for the recipient forges nothing.
        forged = stack.folder / "forged"
        other = await command("backup", "keys", "--out", str(forged))
        assert other.code == 0
        shutil.rmtree(stack.folder / "backups")
        key = ["--key", str(forged / "backup-create.key"), "--database-url", stack.database.url()]
        assert (await backup(stack, "create", *key, *where(stack))).code == 0
        found = await backup(stack, "verify", "latest", *opens(stack))
        assert (found.code, found.json()["error"]["reason"]) == (3, "UNKNOWN_KEY")

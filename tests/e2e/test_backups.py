"""Backups of a running system: made under load, everything destroyed, restored into another epoch; and tampering."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest
from agentfactory.v1 import audit_pb2, executions_pb2

from cli.stack import postgres
from cli.stack.children import stop
from control_plane.backup.directory import DirectoryPlace
from control_plane.backup.keys import read_create_key, read_restore_key, write_keys
from control_plane.backup.service import verify_backup
from control_plane.backup.verification import VerifiedBackup
from control_plane.setup_backup import backup_service
from shared.checkpoints import parse_checkpoint
from shared.errors import UnknownKeyError, VerificationError
from shared.key_files import read_public_key
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
        await stack.publish("actor", version="1.1.0")
        await stack.cli("template", "channel", "set", "actor@stable", "--to", "1.0.0")
        await stack.cli("agent", "create", "follower", "--template", "actor@stable")
        assert (await stack.execute("follower", b"exit 0"))[0].state == SUCCEEDED
        first, second = await signed_policies(stack)
        await put_in_force(stack, first)
        await create(stack)
        await put_in_force(stack, second)
        await stack.cli("template", "channel", "set", "actor@stable", "--to", "1.1.0")
        await stack.cli("agent", "rollout", "actor", "--to", "1.1.0", "--percent", "100")
        assert await version_of(stack, "follower") == await version_of(stack, "actor") == "1.1.0"
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
        await what_was_moved_behind_the_backup_moves_again_and_back(stack, first, second)


async def what_was_moved_behind_the_backup_moves_again_and_back(
    stack: TestStack, first: "SignedPolicy", second: "SignedPolicy"
) -> None:
    """By the same single commands as before."""
    assert await version_of(stack, "follower") == await version_of(stack, "actor") == "1.0.0"
    await stack.cli("template", "channel", "set", "actor@stable", "--to", "1.1.0")
    await stack.cli("agent", "rollout", "actor", "--to", "1.1.0", "--percent", "100")
    assert await version_of(stack, "follower") == await version_of(stack, "actor") == "1.1.0"
    await stack.cli("template", "channel", "set", "actor@stable", "--to", "1.0.0")
    await stack.cli("agent", "rollback", "actor", "--reason", "worse")
    assert await version_of(stack, "follower") == await version_of(stack, "actor") == "1.0.0"

    assert await policy_in_force(stack) == first.digest
    await put_in_force(stack, second)
    assert (await stack.execute("actor", b"exit 0"))[0].state == SUCCEEDED
    await stack.cli("policy", "rollback")
    assert await policy_in_force(stack) == first.digest
    assert (await stack.execute("follower", b"exit 0"))[0].state == SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPolicy:
    folder: Path
    version: str
    digest: str


async def signed_policies(stack: TestStack) -> tuple[SignedPolicy, SignedPolicy]:
    """Return two bundles that decide as the built-in one does, and are not it."""
    made = []
    for version in ("1", "2"):
        folder = stack.folder / f"policy-{version}"
        await stack.cli("policy", "init", str(folder))
        rules = folder / "builtin.rego"
        rules.write_text(f"{rules.read_text()}\n# version {version}\n")
        signed = await stack.cli("policy", "sign", str(folder), "--version", version, "--json")
        made.append(SignedPolicy(folder=folder, version=version, digest=signed.json()["digest"]))
    return made[0], made[1]


async def put_in_force(stack: TestStack, policy: SignedPolicy) -> None:
    await stack.cli("policy", "publish", str(policy.folder))
    await stack.cli("policy", "activate", policy.version)
    assert await policy_in_force(stack) == policy.digest


async def policy_in_force(stack: TestStack) -> str:
    return (await stack.cli("policy", "show", "--json")).json()["bundle"]["digest"]


async def version_of(stack: TestStack, agent: str) -> str:
    shown = await stack.cli("agent", "show", agent, "--json")
    return shown.json()["templateVersion"]


def flipped(archive: bytes, at: int) -> bytes:
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


async def verified(stack: TestStack, name: str) -> VerifiedBackup:
    return await verify_backup(
        DirectoryPlace(stack.folder / "backups"),
        name,
        read_restore_key(stack.folder / "backup-restore.key"),
        programs=[stack.database.programs / "bin"],
        root=lambda _: read_public_key(stack.paths.root_public_key),
        kept=(),
        told=lambda _: None,
    )


async def made_now(stack: TestStack) -> str:
    """Make a backup as the command does, without a process of its own."""
    async with backup_service(stack.database.url(), [stack.database.programs / "bin"]) as service:
        made = await service.create(
            DirectoryPlace(stack.folder / "backups"),
            read_create_key(stack.folder / "backup-create.key"),
            files={},
            keep=1,
            told=lambda _: None,
        )
    return made.header.name


LIES = {
    # What the owner of the database may do, and how it is taken back: which check tells.
    "check 5": (
        "UPDATE installation SET installation = 'other'",
        "UPDATE installation SET installation = 'local'",
    ),
    "check 6": (
        "UPDATE keysets SET envelope = set_byte(envelope, 40, get_byte(envelope, 40) # 1) WHERE version = 1",
        "UPDATE keysets SET envelope = set_byte(envelope, 40, get_byte(envelope, 40) # 1) WHERE version = 1",
    ),
    "check 7": (
        "UPDATE artifacts SET module = set_byte(module, 99, get_byte(module, 99) # 1)",
        "UPDATE artifacts SET module = set_byte(module, 99, get_byte(module, 99) # 1)",
    ),
    "check 8": (
        "UPDATE template_versions SET envelope = set_byte(envelope, 60, get_byte(envelope, 60) # 1)",
        "UPDATE template_versions SET envelope = set_byte(envelope, 60, get_byte(envelope, 60) # 1)",
    ),
    "check 10: audit_entry": (
        "UPDATE audit_entries SET actor = actor || 'x' WHERE action = 'installation.initialized'",
        "UPDATE audit_entries SET actor = left(actor, -1) WHERE action = 'installation.initialized'",
    ),
    "check 10: receipt": (
        "UPDATE receipts SET hash = sha256(envelope || '1'), envelope = envelope || '1'",
        (
            "UPDATE receipts SET hash = sha256(substr(envelope, 1, length(envelope) - 1)),"
            " envelope = substr(envelope, 1, length(envelope) - 1)"
        ),
    ),
    "check 11: tile": (
        "UPDATE log_tiles SET hashes = set_byte(hashes, 1, get_byte(hashes, 1) # 1) WHERE level = 0",
        "UPDATE log_tiles SET hashes = set_byte(hashes, 1, get_byte(hashes, 1) # 1) WHERE level = 0",
    ),
    "check 11: the log's head": (
        "UPDATE log_head SET root = set_byte(root, 1, get_byte(root, 1) # 1)",
        "UPDATE log_head SET root = set_byte(root, 1, get_byte(root, 1) # 1)",
    ),
    "check 12": (
        (
            "UPDATE log_checkpoints SET note = set_byte(note, 45, get_byte(note, 45) # 1) WHERE tree_size ="
            " (SELECT min(tree_size) FROM log_checkpoints)"
        ),
        (
            "UPDATE log_checkpoints SET note = set_byte(note, 45, get_byte(note, 45) # 1) WHERE tree_size ="
            " (SELECT min(tree_size) FROM log_checkpoints)"
        ),
    ),
}


async def test_whatever_was_changed_in_the_database_before_a_backup_verification_says_which_check_failed():
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("actor", limits="wall_ms = 20000")
        await make_keys(stack)
        assert (await stack.execute("actor", b"exit 0"))[0].state == SUCCEEDED
        await eventually(
            lambda: owner_says(stack, "SELECT count(*) FROM log_pending"), lambda left: left == 0, "the log"
        )
        await stack.kill_control_plane()
        connection = await asyncpg.connect(stack.database.url())
        try:
            fine = await verified(stack, await made_now(stack))
            assert fine.counts["receipts"] == 1
            assert fine.log_size > 0
            for said, (lie, truth) in LIES.items():
                await connection.execute(lie)
                name = await made_now(stack)
                # What is signed in the header is what the database says: a lie about it is found by the root key.
                wanted = "check" if said == "check 5" else said
                with pytest.raises(VerificationError, match=wanted):
                    await verified(stack, name)
                await connection.execute(truth)
            assert (await verified(stack, await made_now(stack))).counts == fine.counts | {
                "audit_entries": fine.counts["audit_entries"] + len(LIES) + 1
            }
        finally:
            await connection.close()


async def test_whatever_is_changed_in_an_archive_verification_refuses_it():
    async with running_stack(nodes=0) as stack:
        await make_keys(stack)
        made = await create(stack)
        path = stack.folder / "backups" / made["name"]
        whole = path.read_bytes()
        fine = await backup(stack, "verify", made["name"], *opens(stack))
        assert fine.code == 0, fine.err
        listed = await backup(stack, "list", *where(stack))
        assert [one["backup_id"] for one in listed.json()["backups"]] == [made["backup_id"]]

        wrong = {
            "the magic": (flipped(whole, 3), "check 1"),
            "the header": (flipped(whole, 200), ""),
            "the first segment": (flipped(whole, 3000), "segment 0"),
            "the end": (flipped(whole, len(whole) - 1), "segment"),
            "what is cut off": (whole[:-40], "segment"),
            "what is added": (whole + b"x", "segment"),
            "two beginnings": (whole[:10] + whole, "check 1"),
        }
        for what, (data, said) in wrong.items():
            path.write_bytes(data)
            with pytest.raises(VerificationError) as raised:
                await verified(stack, made["name"])
            assert said in str(raised.value), what
        found = await backup(stack, "verify", made["name"], *opens(stack))
        assert found.code == 3, found.out

        # Whoever can write to the place and knows how to encrypt for the recipient forges nothing.
        forged = stack.folder / "forged"
        write_keys(forged / "backup-create.key", forged / "backup-restore.key")
        forger = replace(
            read_create_key(forged / "backup-create.key"),
            recipient=read_create_key(stack.folder / "backup-create.key").recipient,
        )
        place = DirectoryPlace(stack.folder / "backups")
        async with backup_service(stack.database.url(), [stack.database.programs / "bin"]) as service:
            made_by_other = await service.create(place, forger, files={}, keep=None, told=lambda _: None)
        with pytest.raises(UnknownKeyError):
            await verified(stack, made_by_other.header.name)

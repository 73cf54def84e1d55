"""A whole installation whose order key and secrets are in a real vault: sealed, opened, and searched for leaks."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from agentfactory.v1 import executions_pb2, keys_pb2

from tests.e2e.stack import TestStack, eventually, running_stack
from tests.e2e.test_host_calls import TOKEN, fetch, node_settings, open_api, publish
from tests.e2e.test_keys import keys_of, signing_key
from tests.fixtures.openbao import BaoServer, running_bao
from tests.fixtures.vault_roles import SECRETS_POLICY, make_custody_role, make_role

pytestmark = pytest.mark.timeout(400)

PENDING, SUCCEEDED = executions_pb2.EXECUTION_STATE_PENDING, executions_pb2.EXECUTION_STATE_SUCCEEDED


@pytest.fixture(scope="module")
def bao() -> Iterator[BaoServer]:
    with running_bao() as server:
        yield server


async def test_orders_are_signed_in_a_vault_and_wait_while_it_is_sealed(
    bao: BaoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = make_custody_role(bao, tmp_path)
    async with running_stack() as stack:
        await stack.make_agent("actor")
        in_files = await signing_key(stack)
        for name, value in {
            "CUSTODY": "vault",
            "VAULT_URL": bao.url,
            "VAULT_ROLE_ID": access.role_id,
            "VAULT_SECRET_ID_FILE": str(access.secret_id_file),
        }.items():
            monkeypatch.setenv(f"AF_CONTROL_{name}", value)
        await stack.kill_control_plane()
        await stack.start_control_plane()

        # Custody and keyset do not match yet: what is asked for waits.
        waiting = await stack.submit("actor", b"exit 0")
        assert (await stack.get(waiting)).state == PENDING
        await stack.cli("keys", "rotate", "order")
        # Nodes take what the log proves, and its key is in the vault now too.
        await stack.cli("keys", "rotate", "log")
        assert (await stack.wait_for_end(waiting)).state == SUCCEEDED
        assert await signing_key(stack) != in_files
        assert not (stack.paths.data_dir / "keys" / "order-2.key").exists()

        # The key in files is listed for hours yet, and nobody holds it here: it signs nothing.
        in_vault = await signing_key(stack)
        await stack.cli("keys", "revoke", in_vault)
        assert await signing_key(stack) not in {in_vault, in_files}
        assert (await stack.execute("actor", b"exit 0"))[0].state == SUCCEEDED

        await asyncio.to_thread(bao.seal)
        waiting = await stack.submit("actor", b"exit 0")
        problem = await eventually(lambda: _problem(stack), bool, "word of the seal")
        assert "sealed" in problem
        assert (await stack.get(waiting)).state == PENDING
        await asyncio.to_thread(bao.unseal)
        ended = await stack.wait_for_end(waiting)
        assert ended.state == SUCCEEDED
        await _no_trace(stack, access.secret_id_file.read_bytes())


async def _problem(stack: TestStack) -> str:
    found: keys_pb2.ListKeysResponse = await keys_of(stack)
    return found.custody_problem


async def test_secrets_of_a_vault_reach_the_request_and_nothing_else(
    bao: BaoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bao.client()
    root.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
    access = make_role(bao, "node", SECRETS_POLICY, tmp_path)
    async with open_api() as api:
        await eventually(
            lambda: asyncio.to_thread(_store, root, api.url), bool, "the engine, which is upgraded at first"
        )
        monkeypatch.setenv("AF_CONTROL_ALLOWED_HTTP", json.dumps([f"GET {api.url}"]))
        settings = node_settings(api, tmp_path) | {
            "AF_NODE_VAULT_URL": bao.url,
            "AF_NODE_VAULT_ROLE_ID": access.role_id,
            "AF_NODE_VAULT_SECRET_ID_FILE": str(access.secret_id_file),
        }
        del settings["AF_NODE_SECRETS_FILE"]
        (tmp_path / "secrets.json").unlink()
        async with running_stack(**settings) as stack:
            await publish(stack, api)
            execution, (answer,) = await fetch(stack, f"{api.url}weather")
            assert answer["ok"]["status"] == 200
            assert f"authorization: Bearer {TOKEN}\r\n" in api.heads[0]
            shown = await stack.cli("execution", "recording", execution.execution_id)
            receipt = await stack.cli("receipt", "get", execution.execution_id, "--json")
            audit = await stack.cli("audit", "list", "--json")
            assert TOKEN not in shown.out + receipt.out + audit.out
            assert not await asyncio.to_thread(_in_workers, stack, TOKEN.encode())
            await _no_trace(stack, TOKEN.encode())
            # The check finds what is there.
            assert await asyncio.to_thread(_in_workers, stack, b"\x7fELF")
            assert await asyncio.to_thread(_files_with, stack.folder, execution.execution_id.encode())


def _store(root, url: str) -> bool:
    import hvac.exceptions  # noqa: PLC0415 - nobody else here knows it

    try:
        root.secrets.kv.v2.create_or_update_secret(
            "agentfactory/default/api-token", secret={"value": TOKEN, "urls": url}, mount_point="secret"
        )
    except hvac.exceptions.VaultError:
        return False
    return True


async def _no_trace(stack: TestStack, secret: bytes) -> None:
    """Nothing below the stack holds it: Postgres' files and log, spool, artifacts, logs of every process."""
    assert await asyncio.to_thread(_files_with, stack.folder, secret) == []


def _files_with(folder: Path, wanted: bytes) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and wanted in path.read_bytes()
    ]


def _in_workers(stack: TestStack, wanted: bytes) -> bool:
    """Whether the memory of a living sandbox worker holds these bytes."""
    (node,) = stack.nodes
    workers = psutil.Process(node.running.process.pid).children(recursive=True)
    assert workers
    return any(_in_memory(worker.pid, wanted) for worker in workers)


def _in_memory(pid: int, wanted: bytes) -> bool:
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            start, end = (int(word, 16) for word in place.split("-"))
            if not rights.startswith("r") or end - start > 1 << 28:
                continue
            try:
                memory.seek(start)
                if wanted in memory.read(end - start):
                    return True
            except (OSError, ValueError, OverflowError):
                continue
    return False

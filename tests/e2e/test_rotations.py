"""Keys that are replaced while the installation works: nothing is refused that should not be."""

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from agentfactory.v1 import audit_pb2, executions_pb2

from shared.errors import UnknownPublisherError
from shared.key_files import read_private_key, write_private_key
from shared.signatures import PrivateKey
from tests.e2e.stack import TestStack, eventually, running_stack
from tests.e2e.test_keys import SUCCEEDED, load

pytestmark = pytest.mark.timeout(300)

OVERLAP_HOURS = "0.01"
SOON = timedelta(seconds=120)


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[TestStack]:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("actor", limits="wall_ms = 20000")
        yield stack


async def checkpoint_signer(stack: TestStack) -> bytes:
    """Return the hash by which the newest checkpoint names its key (C2SP signed note)."""
    async with stack.client() as client:
        answer = await client.audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10)
    return base64.b64decode(answer.checkpoint.decode().splitlines()[-1].split()[-1])[:4]


async def evidence_of(stack: TestStack, execution_id: str, file: Path) -> Path:
    async def get() -> dict[str, object]:
        await stack.cli("receipt", "get", execution_id, "-o", str(file))
        found: dict[str, object] = json.loads(file.read_bytes())
        return found

    await eventually(get, lambda answer: "log" in answer, "the receipt in the log")
    return file


async def test_rotating_the_log_key_under_load_breaks_no_proof(stack: TestStack, tmp_path: Path) -> None:
    execution, _ = await stack.execute("actor", b"exit 0")
    before = await evidence_of(stack, execution.execution_id, tmp_path / "before.json")
    old = await checkpoint_signer(stack)
    async with load(stack) as ended:
        await stack.cli("keys", "rotate", "log", "--overlap-hours", OVERLAP_HOURS)
        await eventually(
            lambda: checkpoint_signer(stack),
            lambda found: found != old,
            "a checkpoint by the new key",
            within=SOON,
        )
    assert {one.state for one in ended} == {SUCCEEDED}
    after = await evidence_of(stack, execution.execution_id, tmp_path / "after.json")
    late = await evidence_of(stack, ended[-1].execution_id, tmp_path / "late.json")
    for evidence in (before, after, late):
        await stack.cli("receipt", "verify", str(evidence))


@asynccontextmanager
async def signed_by(stack: TestStack, key: PrivateKey) -> AsyncIterator[None]:
    """Publish as this publisher for the length of the block."""
    kept = read_private_key(stack.paths.publisher_key)
    stack.paths.publisher_key.unlink()
    write_private_key(stack.paths.publisher_key, key)
    try:
        yield
    finally:
        stack.paths.publisher_key.unlink()
        write_private_key(stack.paths.publisher_key, kept)


async def test_rotating_a_publishers_key_refuses_nobody_until_its_end(
    stack: TestStack, tmp_path: Path
) -> None:
    old, new = read_private_key(stack.paths.publisher_key), PrivateKey.generate_rsa()
    (tmp_path / "new.pub").write_bytes(new.public.to_pem())
    stop, published = asyncio.Event(), 0

    async def publish_again_and_again() -> None:
        nonlocal published
        while not stop.is_set():
            await stack.publish("loaded", version=f"1.0.{published}")
            published += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(publish_again_and_again())
        rotate = ("keys", "rotate", "publisher", "--public-key", str(tmp_path / "new.pub"))
        await stack.cli(*rotate, "--replaces", old.key_id, "--overlap-hours", OVERLAP_HOURS)
        during = published
        while published < during + 2:
            await asyncio.sleep(0.05)
        stop.set()
    async with signed_by(stack, new):
        await stack.make_agent("fresh")
    for agent in ("actor", "fresh"):
        assert (await stack.execute(agent, b"exit 0"))[0].state == SUCCEEDED

    versions = itertools.count()

    async def refused() -> bool:
        try:
            await stack.publish("late", version=f"1.0.{next(versions)}")
        except UnknownPublisherError:
            return True
        return False

    await eventually(refused, bool, "the end of the old key", within=SOON)
    # Nodes ask the same: what it signed has to be signed again by the new one before that.
    assert (await stack.execute("actor", b"exit 0"))[0].state == executions_pb2.EXECUTION_STATE_REJECTED
    assert (await stack.execute("fresh", b"exit 0"))[0].state == SUCCEEDED


async def test_rotating_the_authority_leaves_nodes_and_callers_where_they_are(stack: TestStack) -> None:
    async with load(stack) as ended:
        moved = (await stack.cli("keys", "rotate-authority", "--overlap-hours", "24", "--json")).json()
        await stack.add_node()
        joined = len(ended)
        await eventually(lambda: _count(ended), lambda count: count > joined + 10, "load with the new node")
    assert moved["servers_move_at"] < moved["old_until"]
    assert {one.state for one in ended} == {SUCCEEDED}
    assert len({one.attempts[-1].node_id for one in ended}) == len(stack.nodes)


async def _count(ended: list[object]) -> int:
    return len(ended)


async def test_a_new_root_takes_over_under_load_and_old_trust_files_still_lead_to_it(
    stack: TestStack, tmp_path: Path
) -> None:
    pinned, old, new = stack.paths.trust.read_bytes(), stack.paths.root_key, tmp_path / "root2.key"
    signed = tmp_path / "next.dsse"
    rotate = ("keys", "root", "rotate", "--old", str(old), "--new", str(new), "--out", str(signed), "--json")
    async with load(stack) as ended:
        made = (await stack.cli(*rotate)).json()
        await stack.cli("keys", "keyset", "publish", str(signed))
        await stack.cli("keys", "keyset", "publish", str(signed))
        # The root key in the data folder signs nothing more, and the command says so.
        refused = await stack.cli("keys", "rotate", "order", "--json", expect=2)
        assert refused.json()["error"]["reason"] == "WRONG_STATE"
        again = await stack.cli(*rotate, expect=2)
        assert again.json()["error"]["reason"] == "WRONG_STATE"
        old.rename(tmp_path / "old.key")
        new.rename(old)
        await stack.cli("keys", "rotate", "order", "--overlap-hours", OVERLAP_HOURS)
        await stack.add_node()  # pins the first root, as its trust.json does
        joined = len(ended)
        await eventually(lambda: _count(ended), lambda count: count > joined + 10, "load with the new node")
    assert {one.state for one in ended} == {SUCCEEDED}
    assert len({one.attempts[-1].node_id for one in ended}) == len(stack.nodes)
    assert stack.paths.trust.read_bytes() == pinned
    shown = (await stack.cli("keys", "keyset", "show", "--json")).json()
    assert shown["root_key_id"] == made["root_key_id"]
    evidence = await evidence_of(stack, ended[-1].execution_id, tmp_path / "late.json")
    await stack.cli("receipt", "verify", str(evidence))
    trust = tmp_path / "trust.json"
    exported = (await stack.cli("trust", "export", "-o", str(trust), "--json")).json()
    assert exported["root_key_ids"] == [made["root_key_id"]]
    assert (await stack.cli("keys", "root", "pin", "--json")).json()["root_key_id"] == made["root_key_id"]
    assert stack.paths.trust.read_bytes() != pinned

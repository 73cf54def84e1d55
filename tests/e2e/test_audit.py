"""Evidence for people, from the outside: found by who and when, checked, exported, and erased with proof kept."""

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.e2e.stack import TestStack, eventually, running_stack

SOON = timedelta(seconds=30)


async def entries(stack: TestStack, *filters: str) -> list[dict[str, Any]]:
    return (await stack.cli("audit", "list", *filters, "--json")).json().get("auditEntries", [])


async def by_owner(stack: TestStack, statement: str) -> None:
    connection = await asyncpg.connect(stack.database.url(), timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=5)


@pytest.mark.timeout(300)
async def test_evidence_is_found_checked_exported_and_erased(tmp_path: Path) -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("proved")
        first, second = [(await stack.execute("proved", b"exit 0"))[0].execution_id for _ in range(2)]
        about = await entries(stack, "--subject", first)
        assert [one["action"] for one in about] == ["execution.succeeded", "execution.submitted"]
        ran = await entries(stack, "--action", "execution.*", "--oldest-first")
        assert {one["subject"] for one in ran} == {first, second}
        assert ran[0]["subject"] == first
        by_node = await entries(stack, "--actor", about[0]["actor"], "--outcome", "ok")
        assert {one["actor"] for one in by_node} == {about[0]["actor"]}
        assert await entries(stack, "--outcome", "refused", "--from", "2020-01-01") == []
        assert await entries(stack, "--before", "2020-01-01") == []
        await exports_and_checks(stack, tmp_path)
        await watches_over_a_restart(stack, after=ran[0]["auditEntryId"])
        await erases(stack, first, second)
        await by_owner(stack, "UPDATE audit_entries SET actor = 'eve' WHERE action = 'agent.created'")
        found = await stack.cli("audit", "check", "--json", expect=1)
        [finding] = found.json()["findings"]
        assert finding["message"].endswith("is not what was recorded")


async def exports_and_checks(stack: TestStack, folder: Path) -> None:
    out = folder / "evidence.jsonl"

    async def check() -> Any:
        return await stack.cli("audit", "check", "--all", "--json", expect=None)

    checked = await eventually(check, lambda done: done.code == 0, "evidence that is whole", within=SOON)
    said = checked.json()["summary"]
    assert said["leaves"] == said["tree_size"] > 4
    # The others stand for what is no row of the audit: the template, the policy, the keyset, the node.
    assert 4 < said["facts"] < said["leaves"]
    await stack.cli("audit", "export", "-o", str(out))
    await stack.cli("audit", "list")  # the export was recorded, too
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])  # as if it had been interrupted
    await stack.cli("audit", "export", "-o", str(out))
    events = [json.loads(line) for line in out.read_text().splitlines()]
    places = [int(one["logindex"]) for one in events]
    assert places == sorted(set(places))
    assert out.read_bytes().startswith(whole)
    kinds = [one["type"] for one in events]
    assert kinds.count("dev.agentfactory.receipt.v1") == 2
    assert kinds.count("dev.agentfactory.audit.execution.submitted.v1") == 2


async def erases(stack: TestStack, gone: str, kept: str) -> None:
    refused = await stack.cli("audit", "erase", "--execution", gone, expect=2)
    assert "reason" in refused.err
    await stack.cli("audit", "erase", "--execution", gone, "--reason", "asked for by its caller")
    assert "erased at" in (await stack.cli("receipt", "get", gone)).err
    assert "erased at" not in (await stack.cli("receipt", "get", kept)).err
    [tombstone] = await entries(stack, "--action", "execution.erased")
    assert tombstone["subject"] == gone
    assert (await stack.cli("audit", "check")).code == 0


async def watches_over_a_restart(stack: TestStack, *, after: str) -> None:
    before = await entries(stack, "--action", "execution.*", "--oldest-first")
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "audit", "watch", "--json", "--action", "execution.*"),
        *("--after", after, "--data-dir", str(stack.paths.data_dir)),
        *("--target", f"localhost:{stack.ports.grpc}"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert watching.stdout is not None
    try:
        async with asyncio.timeout(SOON.total_seconds()):
            seen = [json.loads(await watching.stdout.readline()) for _ in before[1:]]
        await stack.kill_control_plane()
        await stack.start_control_plane()
        await eventually(stack.list_nodes, bool, "the nodes", within=SOON)
        newest, _ = await stack.execute("proved", b"exit 0")
        async with asyncio.timeout(SOON.total_seconds()):
            seen += [json.loads(await watching.stdout.readline()) for _ in range(2)]
    finally:
        watching.kill()
        await watching.wait()
    assert [one["subject"] for one in seen[-2:]] == [newest.execution_id] * 2
    ids = [one["auditEntryId"] for one in seen]
    assert sorted(ids[:-2]) == sorted(one["auditEntryId"] for one in before[1:])

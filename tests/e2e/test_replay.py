"""Executions run again from the outside: the same is found to be the same, and what was altered is found."""

import hashlib
import json
import zipfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from agentfactory.v1 import audit_pb2, engines_pb2

from cli.receipt_source import fetch_with
from shared.digests import commit_body, sha256_digest
from shared.dsse import IN_TOTO_TYPE, encode_envelope, envelope_of, pae
from shared.ids import NodeId
from shared.key_files import read_private_key
from shared.receipt_codec import encode_readable_receipt, verify_receipt
from shared.signatures import PrivateKey, PublicKey, Signature
from tests.e2e.stack import ROOT, TestStack, eventually, running_stack

CALLER = ROOT / "tests" / "guests" / "caller.wasm"
SAME = dict.fromkeys(
    ("receipt", "policy decision", "host calls", "outcome", "output", "log", "kv writes", "fuel"), "same"
)
CALLS = (
    b'{"method":"log","params":{"level":"info","message":"x"}}\n'
    b'{"method":"kv.get","params":{"key":"n"}}\n'
    b'{"method":"kv.put","params":{"key":"n","value_base64":"MQ=="}}\n'
    b'{"method":"budget.left"}\n'
)
LIE = b"abX"


async def bundled(stack: TestStack, tmp_path: Path, execution_id: str) -> Path:
    bundle = tmp_path / f"{execution_id}.bundle"
    await stack.cli("receipt", "bundle", execution_id, "-o", str(bundle))
    return bundle


async def replay(stack: TestStack, bundle: Path, *options: str, expect: int = 0) -> dict:
    """Replay as somebody who has no control plane."""
    trust = stack.folder / "trust.json"
    if not trust.exists():
        await stack.cli("trust", "export", "-o", str(trust))
    nowhere = ("--trust", str(trust), "--target", "127.0.0.1:1")
    return (await stack.cli("replay", str(bundle), *nowhere, "--json", *options, expect=expect)).json()


def results(answer: dict) -> dict[str, str]:
    return {step["name"]: step["result"] for step in answer["steps"]}


def altered(bundle: Path, member: str, change: bytes) -> Path:
    """Return a bundle with another content of one member, its index made to fit."""
    other = bundle.with_suffix(f".{member}")
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(other, "w") as target:
        contents = {name: source.read(name) for name in source.namelist()}
        contents[member] = change
        index = json.loads(contents["index.json"])
        for entry in index["members"]:
            if entry["name"] == member:
                entry |= {"digest": sha256_digest(change), "size_bytes": len(change)}
        contents["index.json"] = json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
        for name, content in contents.items():
            target.writestr(name, content)
    return other


@pytest.mark.timeout(600)
async def test_what_ran_is_run_again_from_a_bundle_on_both_engines_and_altered_bundles_are_refused(
    tmp_path: Path,
) -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("exact", profile="deterministic")
        await stack.make_agent("anywhere", profile="portable")
        await stack.make_agent("plain")
        await stack.make_agent(
            "asks", CALLER, profile="portable", capabilities="kv = true\nrecord_host_calls = true"
        )
        exact, _ = await stack.execute("exact", b"output 3")
        bundle = await bundled(stack, tmp_path, exact.execution_id)

        assert results(await replay(stack, bundle)) == SAME
        refused = await replay(stack, bundle, "--engine", "wasmtime", expect=2)
        assert refused["error"]["reason"] == "NOT_REPLAYABLE"
        for member, change in (("module.wasm", b"\0asm"), ("input", b"output 4"), ("output", LIE)):
            refused = await replay(stack, altered(bundle, member, change), expect=3)
            assert refused["error"]["reason"] == "PACKAGE_ALTERED", member

        for asked in (b"output 1000", b"exit 7", b"trap 0", b"sleep 1000"):
            execution = await stack.wait_for_end(await stack.submit("anywhere", asked))
            bundle = await bundled(stack, tmp_path, execution.execution_id)
            assert results(await replay(stack, bundle)) == SAME, asked
            again = await replay(stack, bundle, "--engine", "wasmtime")
            assert results(again) == SAME | {"fuel": "skipped"}, asked

        execution, _ = await stack.execute("asks", CALLS)
        bundle = await bundled(stack, tmp_path, execution.execution_id)
        assert results(await replay(stack, bundle)) == SAME
        assert results(await replay(stack, bundle, "--engine", "wasmtime")) == SAME | {"fuel": "skipped"}

        plain, _ = await stack.execute("plain", b"output 3")  # its libc may read the clock
        bundle = await bundled(stack, tmp_path, plain.execution_id)
        refused = await replay(stack, bundle, expect=2)
        assert refused["error"]["reason"] == "NOT_REPLAYABLE"

        # A receipt alone: what is missing is fetched.
        receipt = tmp_path / "receipt.json"
        await stack.cli("receipt", "get", exact.execution_id, "--out", str(receipt))
        answer = (await stack.cli("replay", str(receipt), "--json")).json()
        assert results(answer) == SAME


async def lie(stack: TestStack, answer: audit_pb2.GetReceiptResponse, execution_id: str) -> None:
    """Make it so as if the node had said, under its signature, that the output was another one."""
    key = read_private_key(stack.nodes[0].paths.receipt_key)
    assert isinstance(key, PrivateKey)
    verified = verify_receipt(
        answer.envelope,
        node_id=NodeId(stack.nodes[0].node_id),
        node_key=PublicKey.from_spki_der(answer.receipt_public_key),
    )
    connection = await asyncpg.connect(stack.database.url())
    try:
        row = await connection.fetchrow(
            "SELECT b.body_id, b.salt FROM executions e JOIN bodies b ON b.body_id = e.output_body_id"
            " WHERE e.execution_id = $1",
            execution_id,
        )
        commitment = commit_body(LIE, row["salt"])
        payload = encode_readable_receipt(replace(verified.predicate, output_commitment=commitment))
        made = Signature(key_id=key.key_id, key_version=1, value=key.sign(pae(IN_TOTO_TYPE, payload)))
        envelope = encode_envelope(envelope_of(IN_TOTO_TYPE, payload, [made]))
        await connection.execute(
            "UPDATE bodies SET content = $1, commitment = $2, digest = $3 WHERE body_id = $4",
            LIE, commitment, sha256_digest(LIE), row["body_id"],
        )  # fmt: skip
        await connection.execute(
            "UPDATE receipts SET envelope = $1 WHERE receipt_id = $2", envelope, answer.receipt_id
        )
        # The log covers what the node said, so it covers the lie.
        await connection.execute("DELETE FROM log_entries WHERE subject = $1", answer.receipt_id)
        await connection.execute(
            "INSERT INTO log_pending (kind, tenant_ids, subjects, contents) VALUES ('receipt', $1, $2, $3)",
            ["default"], [answer.receipt_id], [hashlib.sha256(envelope).digest()],
        )  # fmt: skip
    finally:
        await connection.close()


@pytest.mark.timeout(600)
async def test_a_sample_finds_the_execution_whose_result_is_another_and_quarantines_its_template() -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("honest", profile="portable")
        await stack.make_agent("lied-about", profile="portable")
        await stack.execute("honest", b"output 3")
        victim, _ = await stack.execute("lied-about", b"output 3")
        clean = (await stack.cli("replay", "--sample", "5", "--json")).json()
        assert (clean["replayed"], clean["different"]) == (2, 0), clean
        async with stack.client() as client:
            answer = await fetch_with(client, victim.execution_id)
        await lie(stack, answer, victim.execution_id)

        found = (await stack.cli("replay", "--sample", "5", "--json", expect=1)).json()

        (bad,) = [one for one in found["executions"] if one["result"] == "different"]
        assert bad["execution_id"] == victim.execution_id
        (stop,) = (await stack.cli("stop", "list", "--json")).json()["stops"]
        assert stop["stopId"] == bad["stop_id"]
        assert stop["isQuarantine"]
        shown = (await stack.cli("stop", "show", stop["stopId"], "--evidence")).json()
        assert shown["receipt_id"] == answer.receipt_id
        assert shown["again"]["outcome"] == "succeeded"
        assert [step["name"] for step in shown["again"]["steps"] if step["result"] == "different"] == [
            "output"
        ]
        refused = await stack.cli("run", "lied-about", "--input", "-", "--json", stdin=b"output 3", expect=3)
        assert refused.json()["error"]["reason"] == "STOPPED"
        assert (await stack.execute("honest", b"output 3"))[1] == b"abc"
        entries = (await stack.cli("audit", "list", "--json")).json()["auditEntries"]
        assert "template.quarantined" in {entry["action"] for entry in entries}


@pytest.mark.timeout(600)
async def test_a_denied_engine_gets_no_further_order_and_no_session_until_it_is_allowed_again() -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("waits")
        execution, _ = await stack.execute("waits", b"exit 0")
        name = (await stack.list_nodes())[0].engine.name
        await stack.cli("engine", "deny", name, "--reason", "a test")
        async with stack.client() as client:
            (denial,) = (
                await client.engines.ListEngineDenials(engines_pb2.ListEngineDenialsRequest(), timeout=10)
            ).denials
        assert (denial.engine.name, denial.reason) == (name, "a test")

        waiting = await eventually(
            lambda: submitted_and_waits(stack), bool, "an execution that no node takes", timedelta(seconds=15)
        )
        await stack.cli("engine", "deny", name, "--reason", "again")  # repeat: no effect
        await stack.cli("engine", "allow", name)

        assert (await stack.wait_for_end(waiting)).exit_code == 0
        assert execution.exit_code == 0
        assert "no engine" in (await stack.cli("engine", "list")).err


async def submitted_and_waits(stack: TestStack) -> str:
    """Return an execution that was not taken while a node was free for it."""
    execution_id = await stack.submit("waits", b"exit 0")
    found = await stack.get(execution_id)
    return execution_id if not found.attempts else ""

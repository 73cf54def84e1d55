"""The receipt file from the outside: it proves what ran, offline, and no part of it may be altered."""

import json
from pathlib import Path

import pytest

from tests.e2e.stack import running_stack

NAMES = [
    "file",
    "keyset",
    "batch",
    "order",
    "templates",
    "decision",
    "receipt",
    "answer",
    "checkpoint",
    "witnesses",
    "inclusion",
    "submission",
    "enrollment",
    "revocations",
    "keys",
]


@pytest.mark.timeout(300)
async def test_a_receipt_travels_and_is_verified_by_whoever_trusts_the_root_and_the_log(
    tmp_path: Path,
) -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("logged")
        executions = [(await stack.execute("logged", b"exit 0"))[0] for _ in range(3)]
        failed = (await stack.execute("logged", b"exit 3"))[0]
        trust = tmp_path / "trust.json"
        exported = (await stack.cli("trust", "export", "-o", str(trust), "--json")).json()
        assert exported["logs"] == ["agentfactory.dev/log/local/1"]
        places = set()
        for number, execution in enumerate([*executions, failed]):
            file = tmp_path / f"{number}.json"
            await stack.cli("receipt", "get", execution.execution_id, "-o", str(file))
            elsewhere = ("--data-dir", str(tmp_path / "elsewhere"))
            arguments = ("verify", str(file), "--trust", str(trust), "--json", *elsewhere)
            said = (await stack.cli(*arguments)).json()
            assert said["verified"], said
            assert [check["name"] for check in said["checks"]] == NAMES
            assert said["execution_id"] == execution.execution_id
            assert said["outcome"] == ("failed" if execution is failed else "succeeded")
            places.add(json.loads(file.read_bytes())["log"]["receipt"]["index"])
        assert len(places) == len(executions) + 1

        forged = json.loads(file.read_bytes())
        forged["decision"]["input"]["subject"]["roles"] = ["admin", "caller"]
        file.write_bytes(
            json.dumps(forged, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode() + b"\n"
        )
        refused = (await stack.cli(*arguments, expect=1)).json()
        wrong = next(check for check in refused["checks"] if check["result"] == "failed")
        assert (wrong["name"], wrong["reason"]) == ("submission", "EVIDENCE_MISMATCH"), wrong
        assert refused["checks"][-1]["result"] == "not_reached"

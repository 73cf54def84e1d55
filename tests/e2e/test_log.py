"""The transparency log from the outside: a receipt is proved by it, offline, and nothing of the proof may be altered."""

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import TestStack, eventually, running_stack

SOON = timedelta(seconds=20)


def flipped(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(bytes(data)).decode()


def other_path(log: dict[str, Any]) -> None:
    log["path"][0] = flipped(log["path"][0])


ALTERED: dict[str, Callable[[dict[str, Any]], None]] = {
    "salt": lambda log: log.update(salt=flipped(log["salt"])),
    "salt of another length": lambda log: log.update(salt=base64.b64encode(bytes(17)).decode()),
    "checkpoint": lambda log: log.update(checkpoint=flipped(log["checkpoint"])),
    "path": other_path,
    "no path": lambda log: log.update(path=[]),
    "index": lambda log: log.update(logIndex=str(int(log.get("logIndex", 0)) + 1)),
    "kind": lambda log: log.update(kind="audit_entry"),
    "subject": lambda log: log.update(subject="rcp_" + "0" * 32),
}


async def proved(stack: TestStack, execution_id: str) -> dict[str, Any]:
    async def get() -> dict[str, Any]:
        return (await stack.cli("receipt", "get", execution_id, "--json")).json()

    return await eventually(get, lambda answer: "log" in answer, "the receipt in the log", within=SOON)


@pytest.mark.timeout(300)
async def test_a_receipt_is_proved_by_the_log_and_no_part_of_the_proof_may_be_altered(tmp_path: Path) -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("logged")
        executions = [(await stack.execute("logged", b"exit 0"))[0] for _ in range(5)]
        answers = [await proved(stack, one.execution_id) for one in executions]
        places = [int(answer["log"].get("logIndex", 0)) for answer in answers]
        assert len(set(places)) == len(places)
        evidence = tmp_path / "evidence.json"
        evidence.write_text(json.dumps(answers[0]))
        checks = (await stack.cli("receipt", "verify", str(evidence), "--json")).json()["checks"]
        assert len(checks) == 7
        assert checks[-1].startswith(f"the receipt is leaf {places[0]} of log agentfactory.dev/log/local/1")
        for what, alter in ALTERED.items():
            altered = json.loads(json.dumps(answers[0]))
            alter(altered["log"])
            evidence.write_text(json.dumps(altered))
            refused = await stack.cli("receipt", "verify", str(evidence), "--json", expect=3)
            assert "error" in refused.json(), what

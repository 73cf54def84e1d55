"""`make demo`'s story ends well, says what it must say and leaves nothing behind."""

import asyncio
import sys
import tempfile
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT


@pytest.mark.timeout(180)
async def test_the_demo_tells_result_outcome_resources_times_and_proof() -> None:
    before = set(Path(tempfile.gettempdir()).glob("agentfactory-demo-*"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.demo"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    async with asyncio.timeout(170):
        out, err = (part.decode() for part in await process.communicate())
    assert process.returncode == 0, err
    assert "36 tickets read; redacted: 27 email, 12 iban, 5 card, 13 ip, 16 phone" in out
    assert "succeeded, exit code 0, attempt 1" in out
    assert "8. the receipt answers exactly this order" in out
    assert "15. the 4 keys of the file are those that signed" in out
    for step in ("Postgres is up", "control plane is ready", "node is ready", "published", "agent ran on"):
        assert step in err
    assert set(Path(tempfile.gettempdir()).glob("agentfactory-demo-*")) <= before

"""What /openapi.json says is what the running gateway does: schemathesis with every check, seeded and bounded."""

import asyncio
import sys
from datetime import timedelta

import pytest

from tests.e2e.gateway import running_gateway
from tests.e2e.stack import running_stack

SEED = 20261130
WITHIN = timedelta(seconds=150)
"""Of the whole run; on an idle machine it takes about a third."""


CONFIG = """
seed = {seed}
continue-on-failure = true
wait-for-schema = 10

[auth]
openapi.token = {{ bearer = "{token}" }}

[generation]
max-examples = 8
deterministic = true

[phases.coverage]
enabled = true

[phases.stateful]
enabled = false
"""


@pytest.mark.timeout(300)
async def test_behaviour_equals_documentation(tmp_path):
    async with running_stack(nodes=0) as stack, running_gateway(stack) as gateway:
        await stack.make_agent("echo")
        (tmp_path / "schemathesis.toml").write_text(CONFIG.format(seed=SEED, token=gateway.token))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(tmp_path / "schemathesis.toml")),
            *("run", f"{gateway.url}/openapi.json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        async with asyncio.timeout(WITHIN.total_seconds()):
            out, _ = await process.communicate()

    assert process.returncode == 0, out.decode()

"""What /openapi.json says is what the running gateway does: schemathesis with every check, seeded and bounded."""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.e2e.gateway import running_gateway
from tests.e2e.stack import running_stack

SEED = 20261130
EXAMPLES = 3
BUDGET = timedelta(seconds=40)
"""Of random cases; those that walk every bound of the schemas come before them and are as many as there are."""

PATIENCE = timedelta(seconds=280)
"""Of the test on a machine with much else to do."""

CONFIG = """
hooks = "{hooks}"
seed = {seed}
continue-on-failure = true
request-timeout = 20
max-time = {budget}
headers = {{ Authorization = "Bearer {token}" }}

[generation]
max-examples = {examples}
no-shrink = true

[phases.stateful]
enabled = false

[parameters]
# One that there is and that the token may name: of another, each operation says the same 403.
"header.AF-Tenant" = "default"

# A service may refuse what a schema cannot say (a page token that no list returned, the parameters of a
# template): then the answer has no `violations`, which the check of ours in the hooks looks at.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "429"]

[[operations]]
# A stream of events that has no end; test_gateway.py reads it.
include-operation-id = "WatchAuditEntries"
enabled = false
"""


@pytest.mark.timeout(PATIENCE.total_seconds() + 60)
async def test_behaviour_equals_documentation(tmp_path):
    async with running_stack(nodes=0) as stack, running_gateway(stack) as gateway:
        await stack.make_agent("echo")
        configuration = tmp_path / "schemathesis.toml"
        configuration.write_text(
            CONFIG.format(
                hooks=Path(__file__).with_name("schemathesis_hooks.py"),
                seed=SEED,
                examples=EXAMPLES,
                budget=int(BUDGET.total_seconds()),
                token=gateway.token,
            )
        )
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration)),
            *("run", f"{gateway.url}/openapi.json", "--no-color"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()

    assert process.returncode == 0, out.decode()
    assert " passed" in out.decode()  # and not: nothing was tried

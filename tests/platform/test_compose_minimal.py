"""The profile `minimal`, and an installation that grows from it to `full`."""

from pathlib import Path

import pytest

from tests.platform.compose import Compose
from tests.platform.conftest import first_agent

SUCCEEDED = "EXECUTION_STATE_SUCCEEDED"

pytestmark = pytest.mark.timeout(2700)


def test_minimal_runs_agents_and_grows_to_full(docker: None, tmp_path: Path) -> None:
    small = Compose(project="agentfactory-minimal", profile="minimal")
    small.down()
    try:
        small.up()
        assert {one["Service"] for one in small.containers()} == {
            *("secrets", "postgres", "install", "control-plane-1", "control-plane-2", "hand-out"),
            *("node-1", "node-2", "node-3", "gateway"),
        }
        first_agent(small, tmp_path)
        run = ("run", "desk", "--input", "redact/data/tickets.jsonl")
        assert small.cli(*run, mount=tmp_path)["state"] == SUCCEEDED
        assert {one["engine"] for one in small.cli("policy", "decisions")["decisions"]} == {"embedded"}

        small.profile = "full"
        small.up()
        assert small.cli(*run, mount=tmp_path)["state"] == SUCCEEDED
        signing = [one for one in small.cli("keys", "list")["keys"] if one["state"] == "KEY_STATE_SIGNING"]
        assert "agentfactory-order" in {one["custodyName"] for one in signing}
    finally:
        small.down()

"""Executions run again from the outside: the same is found to be the same, and what was altered is found."""

from pathlib import Path

import pytest

from tests.e2e.stack import TestStack, running_stack


async def replayed(
    stack: TestStack, tmp_path: Path, execution_id: str, *options: str, expect: int = 0
) -> dict:
    """Bundle an execution and replay the bundle as somebody who has no control plane."""
    bundle = tmp_path / f"{execution_id}.bundle"
    await stack.cli("receipt", "bundle", execution_id, "-o", str(bundle))
    root_key = str(stack.paths.root_public_key)
    finished = await stack.cli(
        "replay", str(bundle), "--root-key", root_key, "--target", "127.0.0.1:1", "--json", *options,
        expect=expect,
    )  # fmt: skip
    return finished.json()


def results(answer: dict) -> dict[str, str]:
    return {step["name"]: step["result"] for step in answer["steps"]}


@pytest.mark.timeout(300)
async def test_a_bundle_is_replayed_without_a_control_plane_and_comes_out_the_same(tmp_path: Path) -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent("exact", profile="deterministic")
        execution, _ = await stack.execute("exact", b"output 3")

        answer = await replayed(stack, tmp_path, execution.execution_id)

        assert answer["same"], answer
        assert results(answer) == dict.fromkeys(
            ("receipt", "policy decision", "host calls", "outcome", "output", "log", "kv writes", "fuel"),
            "same",
        )

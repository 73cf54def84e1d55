"""The bad days of issue 3, one test each: real processes are killed, real disks are full."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from agentfactory.v1 import audit_pb2, executions_pb2

from shared.errors import UnavailableError
from tests.e2e.stack import ACTOR, TestStack, eventually, running_stack

pytestmark = pytest.mark.timeout(240)

SUCCEEDED = executions_pb2.EXECUTION_STATE_SUCCEEDED


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[TestStack]:
    async with running_stack() as stack:
        await stack.make_agent("actor", limits="wall_ms = 20000")
        yield stack


async def audit_actions(stack: TestStack, subject: str) -> list[str]:
    async with stack.client() as client:
        request = audit_pb2.ListAuditEntriesRequest(subject=subject)
        answer = await client.audit.ListAuditEntries(request, timeout=10)
    return [entry.action for entry in reversed(answer.audit_entries)]


async def test_kill_9_of_the_node_while_an_execution_runs_retries_it_and_it_ends_once(
    stack: TestStack,
) -> None:
    (node,) = stack.nodes
    execution = await stack.submit("actor", b"sleep 2000")
    await stack.wait_until_running(execution)
    node.running.process.kill()
    await node.running.process.wait()
    await stack.start_node(node)
    ended = await stack.wait_for_end(execution)
    assert ended.state == SUCCEEDED
    assert [attempt.state for attempt in ended.attempts] == [
        executions_pb2.ATTEMPT_STATE_LOST,
        executions_pb2.ATTEMPT_STATE_FINISHED,
    ]
    tokens = [attempt.fencing_token for attempt in ended.attempts]
    assert tokens[0] < tokens[1]
    endings = [action for action in await audit_actions(stack, execution) if action == "execution.succeeded"]
    assert len(endings) <= 1


async def test_kill_9_of_the_node_lets_another_node_take_over_after_the_lease(stack: TestStack) -> None:
    await stack.add_node()
    execution = await stack.submit("actor", b"sleep 2000")
    holder = (await stack.wait_until_running(execution)).attempts[0].node_id
    first, second = sorted(stack.nodes, key=lambda node: node.node_id != holder)
    first.running.process.kill()
    await first.running.process.wait()
    ended = await stack.wait_for_end(execution)
    assert ended.state == SUCCEEDED
    assert [attempt.node_id for attempt in ended.attempts] == [first.node_id, second.node_id]


async def test_kill_9_of_the_node_retries_an_unsafe_agent_that_called_nothing_outside(
    stack: TestStack,
) -> None:
    await stack.make_agent("unsafe", retry="unsafe")
    (node,) = stack.nodes
    execution = await stack.submit("unsafe", b"sleep 2000")
    await stack.wait_until_running(execution)
    node.running.process.kill()
    await node.running.process.wait()
    await stack.start_node(node)
    ended = await stack.wait_for_end(execution)
    # "unsafe" is about calls to the outside (protocol rule 6): without one a second run cannot be noticed.
    assert ended.state == SUCCEEDED
    assert len(ended.attempts) == 2


async def test_kill_9_of_the_control_plane_loses_nothing_and_nodes_deliver_spooled_receipts(
    stack: TestStack,
) -> None:
    running = await stack.submit("actor", b"sleep 1500")
    await stack.wait_until_running(running)
    waiting = [await stack.submit("actor", b"sleep 200") for _ in range(10)]
    await stack.kill_control_plane()
    refused = await stack.cli("run", "actor", "--json", expect=4)
    assert refused.json()["error"]["reason"] == "UNAVAILABLE"
    assert stack.nodes[0].running.is_running
    await stack.start_control_plane()
    ended = [await stack.wait_for_end(execution) for execution in [running, *waiting]]
    assert {each.state for each in ended} == {SUCCEEDED}
    # The run that went on meanwhile was not repeated: its receipt waited in the node's spool.
    assert [attempt.state for attempt in ended[0].attempts] == [executions_pb2.ATTEMPT_STATE_FINISHED]


async def test_postgres_stopped_means_unavailable_and_service_resumes_by_itself(stack: TestStack) -> None:
    accepted = await stack.submit("actor", b"sleep 500")
    await stack.stop_postgres()
    with pytest.raises(UnavailableError):
        await stack.execute("actor", b"exit 0", timeout_seconds=5)
    assert stack.control_plane is not None
    assert stack.control_plane.is_running
    await stack.start_postgres()

    async def attempt() -> int:
        try:
            return (await stack.execute("actor", b"exit 0", timeout_seconds=10))[0].state
        except UnavailableError:
            return 0

    await eventually(attempt, lambda state: state == SUCCEEDED, "service after Postgres came back")
    assert (await stack.wait_for_end(accepted)).state == SUCCEEDED


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
async def test_disk_full_on_the_nodes_cache_is_a_typed_error_and_the_node_stays_up(stack: TestStack) -> None:
    (node,) = stack.nodes
    await stack.execute("actor", b"exit 0")
    mounted = mount_small_disk(str(node.paths.artifacts))
    if not mounted:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        await stack.make_agent("second", another_module(stack, "second"))
        execution = await stack.submit("second", b"exit 0", timeout_seconds=60)

        async def attempts() -> list[executions_pb2.Attempt]:
            return list((await stack.get(execution)).attempts)

        seen = await eventually(attempts, lambda found: any(each.reason for each in found), "the refusal")
        assert "DISK_FULL" in seen[0].reason.upper() or "BUSY" in seen[0].reason.upper()
        assert node.running.is_running
        assert node.node_id in {each.node_id for each in await stack.list_nodes() if each.connected}
        subprocess.run(
            ["mount", "-o", "remount,size=256m", str(node.paths.artifacts)], check=True, timeout=10
        )
        await stack.make_agent("third", another_module(stack, "third"))
        assert (await stack.execute("third", b"exit 0"))[0].state == SUCCEEDED
    finally:
        await asyncio.to_thread(
            subprocess.run, ["umount", "-l", str(node.paths.artifacts)], check=False, timeout=10
        )


def another_module(stack: TestStack, name: str) -> Path:
    """The actor with a custom section of its own (WebAssembly 2.0, section 5.5.3): another digest to compile."""
    section = bytes([len(name)]) + name.encode()
    path = stack.folder / f"{name}.wasm"
    path.write_bytes(ACTOR.read_bytes() + bytes([0, len(section)]) + section)
    return path


def mount_small_disk(path: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", path]
    return subprocess.run(command, check=False, timeout=10, capture_output=True).returncode == 0


GUESTS = {
    "trap": (b"trap", "trapped", ""),
    "loop": (b"loop", "killed", "wall_ms"),
    "flood": (b"flood", "killed", "output_bytes"),
    "4 GiB": (b"memory 4096", "killed", "memory_bytes"),
}


async def test_a_guest_that_traps_loops_floods_or_asks_for_4_gib_has_a_named_outcome(
    stack: TestStack,
) -> None:
    await stack.make_agent("bad", limits="wall_ms = 1500\nmemory_bytes = 67108864\noutput_bytes = 1048576")
    for name, (body, state, limit) in GUESTS.items():
        execution, _ = await stack.execute("bad", body)
        found = executions_pb2.ExecutionState.Name(execution.state)
        assert f"EXECUTION_STATE_{state.upper()}" == found, name
        assert limit == execution.limit, name
        assert (state == "trapped") == bool(execution.trap), name
        assert execution.receipt_id, name
    healthy, _ = await stack.execute("bad", b"exit 0")
    assert healthy.state == SUCCEEDED

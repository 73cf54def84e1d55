"""Emergency stops over two replicas and two nodes, and the way of an agent from one version to the next."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from agentfactory.v1 import executions_pb2

from cli.stack import local, probe
from tests.e2e.stack import READY, TestStack, eventually, kill, running_stack
from tests.e2e.test_inheritance import publish, write_template

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PROMISED_SECONDS = 5.0
"""From a stop to the end of what runs, on every node."""
CANCELLED, SUCCEEDED = executions_pb2.EXECUTION_STATE_CANCELLED, executions_pb2.EXECUTION_STATE_SUCCEEDED
PENDING, RUNNING = executions_pb2.EXECUTION_STATE_PENDING, executions_pb2.EXECUTION_STATE_RUNNING


@asynccontextmanager
async def second_replica(stack: TestStack) -> AsyncIterator[local.Ports]:
    """Run another control plane on the same installation, with a node of its own."""
    ports, first = local.Ports.free(), stack.ports
    child = await local.start_control_plane(stack.paths.data_dir, ports, stack.database)
    try:
        await probe.wait_until_ready(child, ports.control_admin, within=READY)
        stack.ports = ports
        await stack.add_node(AF_NODE_SLOTS="2")
        yield ports
    finally:
        stack.ports = first
        await kill(child)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[TestStack]:
    async with running_stack(nodes=1, AF_NODE_SLOTS="2") as stack:
        await stack.make_agent("actor", limits="wall_ms = 120000")
        first = stack.ports
        async with second_replica(stack):
            stack.ports = first
            yield stack


async def ends(stack: TestStack, execution_ids: list[str]) -> list[executions_pb2.Execution]:
    return await asyncio.gather(*(stack.wait_for_end(one) for one in execution_ids))


async def test_a_stop_ends_what_runs_on_every_node_refuses_and_keeps_what_waits(stack: TestStack) -> None:
    running = [await stack.submit("actor", b"sleep 60000", timeout_seconds=300) for _ in range(4)]
    started = [await stack.wait_until_running(one) for one in running]
    assert len({one.attempts[-1].node_id for one in started}) == 2
    waiting = await stack.submit("actor", b"exit 0", timeout_seconds=300)

    began = time.monotonic()
    stop = (await stack.cli("stop", "template", "actor", "--reason", "it leaks", "--json")).json()
    ended = await ends(stack, running)
    took = time.monotonic() - began

    assert [(one.state, one.reason) for one in ended] == [(CANCELLED, "STOPPED")] * 4
    assert took <= PROMISED_SECONDS, f"took {took:.1f} s, with the start of the command"
    refused = (await stack.cli("run", "actor", "--json", expect=3)).json()["error"]
    assert (refused["reason"], "it leaks" in refused["message"]) == ("STOPPED", True)
    held = await stack.get(waiting)
    assert (held.state, held.pending_reason) == (PENDING, "STOPPED")

    # It holds whatever restarts.
    await stack.kill_control_plane()
    await stack.start_control_plane()
    assert (await stack.cli("run", "actor", "--json", expect=3)).json()["error"]["reason"] == "STOPPED"
    assert (await stack.get(waiting)).state == PENDING

    await stack.cli("stop", "lift", stop["stop"]["stopId"], "--reason", "fixed")
    assert (await stack.wait_for_end(waiting)).state == SUCCEEDED
    assert (await stack.execute("actor", b"exit 0"))[0].state == SUCCEEDED


async def test_a_stop_of_a_template_holds_what_extends_it(stack: TestStack) -> None:
    sources = stack.folder / "sources"
    child = '[template]\nname = "child"\nversion = "1.0.0"\nextends = "actor@1.0.0"\n'
    built = await stack.cli(
        "template", "build", str(write_template(sources / "child", child)), "--out", str(sources)
    )
    await publish(stack, Path(built.out.strip()))
    await stack.cli("agent", "create", "child", "--template", "child@1.0.0")
    parent = (await stack.cli("template", "show", "actor@1.0.0", "--json")).json()["digest"]

    for named in ("actor", parent):
        running = [await stack.submit("child", b"sleep 60000", timeout_seconds=300) for _ in range(4)]
        for one in running:
            await stack.wait_until_running(one)
        waiting = await stack.submit("child", b"exit 0", timeout_seconds=300)
        stop = (await stack.cli("stop", "template", named, "--reason", "it leaks", "--json")).json()
        ended = await ends(stack, running)
        assert [(one.state, one.reason) for one in ended] == [(CANCELLED, "STOPPED")] * 4
        assert (await stack.cli("run", "child", "--json", expect=3)).json()["error"]["reason"] == "STOPPED"
        held = await stack.get(waiting)
        assert (held.state, held.pending_reason) == (PENDING, "STOPPED")
        await stack.cli("stop", "lift", stop["stop"]["stopId"], "--reason", "fixed")
        assert (await stack.wait_for_end(waiting)).state == SUCCEEDED

    # The other way round nothing is held: a stop of the child is no stop of its parent.
    stop = (await stack.cli("stop", "template", "child", "--reason", "it leaks", "--json")).json()
    assert (await stack.execute("actor", b"exit 0"))[0].state == SUCCEEDED
    await stack.cli("stop", "lift", stop["stop"]["stopId"], "--reason", "fixed")


async def test_revoking_ends_what_runs_and_retiring_what_waits(stack: TestStack) -> None:
    for name in ("retired", "revoked"):
        await stack.make_agent(name, limits="wall_ms = 120000" if name == "revoked" else "wall_ms = 110000")
    runs = {
        name: [await stack.submit(name, b"sleep 30000", timeout_seconds=300) for _ in range(2)]
        for name in ("retired", "revoked")
    }
    for one in (*runs["retired"], *runs["revoked"]):
        await stack.wait_until_running(one)
    waiting = await stack.submit("retired", b"exit 0", timeout_seconds=300)

    began = time.monotonic()
    await stack.cli("template", "retire", "retired@1.0.0")
    await stack.cli("template", "revoke", "revoked@1.0.0", "--reason", "leak")
    (ended,) = await ends(stack, [waiting])
    revoked = await ends(stack, runs["revoked"])
    took = time.monotonic() - began

    assert (ended.state, ended.reason) == (CANCELLED, "TEMPLATE_RETIRED")
    assert {(one.state, one.reason) for one in revoked} == {(CANCELLED, "TEMPLATE_REVOKED")}
    assert took <= 2 * PROMISED_SECONDS, f"took {took:.1f} s, with the start of two commands"
    for name, reason in (("retired", "TEMPLATE_RETIRED"), ("revoked", "TEMPLATE_REVOKED")):
        assert (await stack.cli("run", name, "--json", expect=3)).json()["error"]["reason"] == reason
    assert {(await stack.get(one)).state for one in runs["retired"]} == {RUNNING}
    for one in runs["retired"]:
        await stack.cli("execution", "cancel", one)


async def test_a_rollout_goes_by_percent_to_all_and_back_in_one_command(stack: TestStack) -> None:
    old = await stack.publish("desk", limits="wall_ms = 9000")
    new = await stack.publish("desk", version="1.1.0", limits="wall_ms = 8000")
    await stack.cli("agent", "create", "desk", "--template", "desk@1.0.0")

    async def versions(count: int = 12) -> Counter[str]:
        done = [await stack.execute("desk", b"exit 0") for _ in range(count)]
        assert {execution.state for execution, _ in done} == {SUCCEEDED}
        return Counter(execution.template_digest for execution, _ in done)

    await stack.cli("agent", "rollout", "desk", "--to", "1.1.0", "--percent", "50")
    assert "1.1.0 for 50 %" in (await stack.cli("agent", "show", "desk")).out
    assert set(await versions(24)) == {old, new}
    again = [
        # It fails for want of a script; which version that was is told all the same.
        (await stack.cli("run", "desk", "--request-id", "same", "--json", expect=1)).json()["templateDigest"]
        for _ in range(2)
    ]
    assert again[0] == again[1]
    await stack.cli("agent", "rollout", "desk", "--to", "1.1.0", "--percent", "100")
    assert set(await versions()) == {new}
    compared = (await stack.cli("agent", "compare", "desk", "--json")).json()["versions"]
    assert [one["templateVersion"] for one in compared] == ["1.1.0", "1.0.0"]
    assert all(one["executions"]["succeeded"] > 0 for one in compared)
    await stack.cli("agent", "rollback", "desk", "--reason", "slower")
    assert set(await versions()) == {old}
    for arguments in (("--to", "7.0.0", "--percent", "10"), ("--to", "1.1.0", "--percent", "101")):
        await stack.cli("agent", "rollout", "desk", *arguments, expect=2)
    for action, count in (("agent.rollout", 2), ("agent.rolled_back", 1)):
        entries = (await stack.cli("audit", "list", "--action", action, "--json")).json()["auditEntries"]
        assert len(entries) == count


async def test_an_agent_follows_a_channel(stack: TestStack) -> None:
    first = await stack.publish("bulletin")
    second = await stack.publish("bulletin", version="2.0.0")
    await stack.cli("template", "channel", "set", "bulletin@stable", "--to", "1.0.0")
    await stack.cli("agent", "create", "reader", "--template", "bulletin@stable")
    assert (await stack.execute("reader", b"exit 0"))[0].template_digest == first
    moved = await stack.cli("template", "channel", "set", "bulletin@stable", "--to", "2.0.0", "--json")
    assert moved.json()["agentsMoved"] == 1
    await eventually(
        lambda: stack.execute("reader", b"exit 0"),
        lambda done: done[0].template_digest == second,
        "the move on this replica",
        within=timedelta(seconds=10),
    )
    assert "bulletin@stable" in (await stack.cli("agent", "show", "reader")).out

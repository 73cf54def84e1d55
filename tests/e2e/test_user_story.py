"""What a new user does, through the public command line and the gRPC API, on real processes."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from agentfactory.v1 import executions_pb2

from tests.e2e.stack import ROOT, TestStack, running_stack

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

EXAMPLE = ROOT / "examples" / "redact"
TICKETS = EXAMPLE / "data" / "tickets.jsonl"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[TestStack]:
    async with running_stack(nodes=2) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(stack: TestStack) -> str:
    """The agent of the README, made with the README's commands."""
    await stack.make_agent("actor")
    built = await stack.cli("template", "build", str(EXAMPLE), "--out", str(stack.folder / "build"))
    package = built.out.strip()
    await stack.cli("template", "sign", package)
    await stack.cli("template", "verify", package)
    await stack.cli("template", "publish", package)
    await stack.cli("agent", "create", "desk", "--template", "redact@1.0.0")
    return "desk"


async def test_run_prints_the_result_on_stdout_and_what_it_cost_on_stderr(
    stack: TestStack, desk: str
) -> None:
    done = await stack.cli("run", desk, "--input", str(TICKETS))
    assert done.json()["found"] == {"email": 27, "iban": 12, "card": 5, "ip": 13, "phone": 16}
    assert "succeeded" in done.err
    assert "receipt rcp_" in done.err


async def test_the_same_request_id_finds_the_same_execution(stack: TestStack, desk: str) -> None:
    arguments = ["run", desk, "--input", str(TICKETS), "--request-id", "story-1", "--json"]
    first, second = await stack.cli(*arguments), await stack.cli(*arguments)
    assert first.json()["executionId"] == second.json()["executionId"]
    other = await stack.cli("run", desk, "--request-id", "story-1", "--json", expect=2)
    assert other.json()["error"]["reason"] == "IDEMPOTENCY_CONFLICT"


async def test_a_limit_of_agent_toml_is_the_one_that_fires_and_all_that_was_used_is_shown(
    stack: TestStack,
) -> None:
    module = ROOT / "tests" / "guests" / "limits" / "make_files.wasm"
    await stack.make_agent("maker", module, limits="scratch_bytes = 4096\nscratch_inodes = 7")

    ended = (await stack.cli("run", "maker", "--json", expect=1)).json()
    assert (ended["state"], ended["limit"]) == ("EXECUTION_STATE_KILLED", "scratch_inodes")
    assert ended["resourcesUsed"]["scratchInodes"] == 7
    for command_ in (("execution", "show"), ("receipt", "get")):
        shown = (await stack.cli(*command_, ended["executionId"])).out
        assert re.search(r"scratch names +7\n", shown), shown
        assert "host calls" not in shown


async def test_the_receipt_is_verified_offline_and_a_forged_one_refused(stack: TestStack, desk: str) -> None:
    execution = (await stack.cli("run", desk, "--input", str(TICKETS), "--json")).json()["executionId"]
    file = stack.folder / "receipt.json"
    await stack.cli("receipt", "get", execution, "--out", str(file))
    verified = await stack.cli("receipt", "verify", str(file), "--json")
    assert verified.json()["verified"] is True
    assert verified.json()["outcome"] == "succeeded"
    forged = json.loads(file.read_text())
    forged["order"]["content"] = "A" + forged["order"]["content"][1:]
    file.write_text(json.dumps(forged, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n")
    refused = await stack.cli("receipt", "verify", str(file), "--json", expect=1)
    (wrong,) = (check for check in refused.json()["checks"] if check["result"] == "failed")
    assert (wrong["name"], wrong["reason"]) == ("order", "PROOF_INVALID")


async def test_unsigned_foreign_and_altered_packages_are_refused(stack: TestStack, tmp_path: Path) -> None:
    source = tmp_path / "evil"
    source.mkdir()
    (source / "agent.toml").write_text(
        '[template]\nname = "evil"\nversion = "1.0.0"\nmodule = "a.wasm"\nmedia_type = "text/plain"\n'
    )
    (source / "a.wasm").write_bytes((ROOT / "tests" / "guests" / "actor.wasm").read_bytes())
    package = Path((await stack.cli("template", "build", str(source), "--out", str(tmp_path))).out.strip())
    unsigned = await stack.cli("template", "publish", str(package), "--json", expect=3)
    assert unsigned.json()["error"]["reason"] == "UNSIGNED"
    await stack.cli("keys", "init", "--out", str(tmp_path / "mallory.key"))
    await stack.cli("template", "sign", str(package), "--key", str(tmp_path / "mallory.key"))
    foreign = await stack.cli("template", "publish", str(package), "--json", expect=3)
    assert foreign.json()["error"]["reason"] == "UNKNOWN_PUBLISHER"
    await stack.cli("template", "sign", str(package))
    (blob,) = (package / "blobs" / "sha256").iterdir()
    module = blob.read_bytes()
    blob.write_bytes(module[:-1] + bytes([module[-1] ^ 1]))
    altered = await stack.cli("template", "publish", str(package), "--json", expect=3)
    assert altered.json()["error"]["reason"] == "PACKAGE_ALTERED"


async def test_bodies_above_64_kib_travel_both_ways(stack: TestStack, desk: str) -> None:
    tickets = TICKETS.read_bytes() * 100
    done = await stack.cli("run", desk, "--input", "-", stdin=tickets)
    assert done.json()["tickets"] == 3600


async def test_parameters_outside_the_schema_are_refused(stack: TestStack, desk: str) -> None:
    arguments = ["agent", "create", "bad", "--template", "redact@1.0.0", "--json"]
    refused = await stack.cli(*arguments, "--parameters", '{"kinds": ["shoe size"]}', expect=2)
    assert refused.json()["error"]["reason"] == "INVALID_INPUT"
    await stack.cli(
        "agent", "create", "mails", "--template", "redact@1.0.0", "--parameters", '{"kinds": ["email"]}'
    )
    assert (await stack.cli("run", "mails", "--input", str(TICKETS))).json()["found"] == {"email": 27}


async def test_an_execution_can_be_submitted_watched_listed_and_read(stack: TestStack, desk: str) -> None:
    execution = (await stack.cli("run", desk, "--input", str(TICKETS), "--detach")).out.strip()
    assert "succeeded" in (await stack.cli("execution", "watch", execution)).out
    assert execution in (await stack.cli("execution", "list", "--agent", desk)).out
    assert "36 tickets read" in (await stack.cli("execution", "logs", execution)).out
    assert json.loads((await stack.cli("execution", "show", execution, "--output")).out)["tickets"] == 36
    shown = (await stack.cli("execution", "show", execution, "--json")).json()
    assert [attempt["state"] for attempt in shown["attempts"]] == ["ATTEMPT_STATE_FINISHED"]


async def test_a_running_execution_is_cancelled(stack: TestStack, desk: str) -> None:
    execution = await stack.submit("actor", b"sleep 9000")
    await stack.wait_until_running(execution)
    await stack.cli("execution", "cancel", execution)
    assert (await stack.wait_for_end(execution)).state == executions_pb2.EXECUTION_STATE_CANCELLED


async def test_a_failing_agent_is_exit_code_1_and_a_missing_one_2(stack: TestStack, desk: str) -> None:
    failed = await stack.cli("run", "actor", "--input", "-", stdin=b"exit 7", expect=1)
    assert "failed (exit code 7)" in failed.err
    missing = await stack.cli("run", "nobody", "--json", expect=2)
    assert missing.json()["error"]["reason"] == "NOT_FOUND"


async def test_streams_pair_results_with_requests(stack: TestStack, desk: str) -> None:
    count = 200
    wanted = {f"stream-{number}": number % 5 for number in range(count)}

    async def requests():
        for start in range(0, count, 50):
            names = [f"stream-{number}" for number in range(start, start + 50)]
            yield executions_pb2.StreamExecutionsRequest(
                executions=[
                    executions_pb2.ExecutionRequest(
                        agent="actor", request_id=name, inline=f"exit {wanted[name]}".encode()
                    )
                    for name in names
                ]
            )
        yield executions_pb2.StreamExecutionsRequest(
            executions=[executions_pb2.ExecutionRequest(agent="nobody", request_id="refused", inline=b"")]
        )

    results: dict[str, executions_pb2.ExecutionResult] = {}
    async with stack.client() as client:
        async for answer in client.executions.StreamExecutions(requests(), timeout=120):
            for result in answer.results:
                assert result.request_id not in results
                results[result.request_id] = result
    assert results.pop("refused").error.reason == "NOT_FOUND"
    assert wanted == {name: result.execution.exit_code for name, result in results.items()}


async def test_both_nodes_do_the_work(stack: TestStack, desk: str) -> None:
    executions = [await stack.submit("actor", b"sleep 300") for _ in range(12)]
    ended = [await stack.wait_for_end(execution) for execution in executions]
    assert {node.node_id for node in stack.nodes} == {each.attempts[0].node_id for each in ended}


async def test_a_drained_node_takes_nothing_and_the_other_one_all(stack: TestStack, desk: str) -> None:
    drained, other = stack.nodes
    await stack.cli("node", "drain", drained.node_id)
    ended = [(await stack.execute("actor", b"exit 0"))[0] for _ in range(6)]
    assert {each.attempts[0].node_id for each in ended} == {other.node_id}


async def test_every_state_change_is_in_the_audit(stack: TestStack, desk: str) -> None:
    for action in ("template.published", "agent.created", "execution.submitted", "node.enrolled"):
        listed = await stack.cli("audit", "list", "--action", action, "--limit", "3", "--json")
        assert {entry["action"] for entry in listed.json()["auditEntries"]} == {action}


async def test_a_stranger_gets_nowhere(stack: TestStack, desk: str) -> None:
    channel = grpc.aio.secure_channel(
        f"localhost:{stack.ports.grpc}", grpc.ssl_channel_credentials(stack.paths.ca_certificate.read_bytes())
    )
    async with channel:
        call = channel.unary_unary("/agentfactory.v1.ExecutionService/ListExecutions")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", timeout=30)
    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}

"""The gRPC adapter: what goes in and comes out, and a stream on which one refusal ends nothing."""

import asyncio

import pytest
from agentfactory.v1 import executions_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from control_plane.executions import streaming
from control_plane.executions.domain import Outcome
from control_plane.executions.servicer import ExecutionServicer
from shared.digests import sha256_digest
from shared.errors import InvalidInputError, WrongStateError
from shared.rpc.identity import Caller, reset_caller, set_caller
from tests.builders.executions import CALLER, TENANT
from tests.unit.control_plane.executions.conftest import BOUND_SECONDS


@pytest.fixture
def servicer(stack):
    token = set_caller(
        Caller(identity=CALLER, kind="caller", name="ann", tenant_id=TENANT, roles=frozenset({"caller"}))
    )
    yield ExecutionServicer(stack.service, stack.bodies, stack.crowd)
    reset_caller(token)


def asked(request_id="r1", **changes):
    return pb.ExecutionRequest(**{"agent": "redact", "request_id": request_id, "inline": b"in", **changes})


async def messages(*items):
    for item in items:
        yield item


async def test_execute_carries_every_field_of_the_end(stack, servicer):
    waiting = asyncio.ensure_future(servicer.Execute(pb.ExecuteRequest(execution=asked()), None))
    await stack.until(lambda: stack.placer.committed)
    await stack.finish(stack.placer.committed[0], Outcome.FAILED)

    execution = (await waiting).execution

    assert execution.state == pb.EXECUTION_STATE_FAILED
    assert (execution.exit_code, execution.output, execution.output_bytes) == (3, b"output", 6)
    assert execution.caller == CALLER
    assert execution.resources_used.wall.ToMilliseconds() == 5
    assert [(one.number, one.state) for one in execution.attempts] == [(1, pb.ATTEMPT_STATE_FINISHED)]
    assert execution.ended_at.seconds >= execution.created_at.seconds > 0


async def test_submit_get_list_and_cancel(stack, servicer):
    stack.placer.slots = 0
    request = asked(run_deadline=Duration(seconds=60))
    submitted = (await servicer.SubmitExecution(pb.SubmitExecutionRequest(execution=request), None)).execution
    named = {"execution_id": submitted.execution_id}

    got = (await servicer.GetExecution(pb.GetExecutionRequest(**named), None)).execution
    listed = await servicer.ListExecutions(
        pb.ListExecutionsRequest(states=[pb.EXECUTION_STATE_PENDING]), None
    )
    cancelled = (await servicer.CancelExecution(pb.CancelExecutionRequest(**named), None)).execution

    assert got.pending_reason == "QUEUED"
    assert [one.execution_id for one in listed.executions] == [submitted.execution_id]
    assert (cancelled.state, cancelled.reason) == (pb.EXECUTION_STATE_CANCELLED, "CANCEL_REQUESTED")
    with pytest.raises(WrongStateError):
        await servicer.CancelExecution(pb.CancelExecutionRequest(**named), None)


@pytest.mark.parametrize("execution_id", ["", "exe_1", "agt_0190f5ac-0000-7000-8000-000000000000"])
async def test_an_id_of_another_form_is_refused(servicer, execution_id):
    with pytest.raises(InvalidInputError):
        await servicer.GetExecution(pb.GetExecutionRequest(execution_id=execution_id), None)


async def test_watch_ends_with_the_execution(stack, servicer):
    stack.placer.slots = 0
    request = pb.SubmitExecutionRequest(execution=asked())
    execution_id = (await servicer.SubmitExecution(request, None)).execution.execution_id
    watching = servicer.WatchExecution(pb.WatchExecutionRequest(execution_id=execution_id), None)
    first = await anext(watching)
    await servicer.CancelExecution(pb.CancelExecutionRequest(execution_id=execution_id), None)
    rest = [one.execution.state async for one in watching]
    assert (first.execution.state, rest) == (pb.EXECUTION_STATE_PENDING, [pb.EXECUTION_STATE_CANCELLED])


async def test_uploads_and_downloads_travel_in_messages(stack, servicer):
    content = b"q" * 70_000
    header = pb.UploadBodyHeader(digest=sha256_digest(content), size_bytes=len(content))
    uploaded = await servicer.UploadBody(
        messages(pb.UploadBodyRequest(header=header), pb.UploadBodyRequest(chunk=content)), None
    )
    request = pb.ExecutionRequest(agent="redact", request_id="r1", body_id=uploaded.body_id)
    submitted = await servicer.SubmitExecution(pb.SubmitExecutionRequest(execution=request), None)
    asked_for = pb.DownloadBodyRequest(execution_id=submitted.execution.execution_id, kind=pb.BODY_KIND_INPUT)
    got = [one.chunk async for one in servicer.DownloadBody(asked_for, None)]
    assert b"".join(got) == content


@pytest.mark.parametrize("first", [[], [pb.UploadBodyRequest(chunk=b"x")]])
async def test_an_upload_without_a_header_first_is_refused(servicer, first):
    with pytest.raises(InvalidInputError, match="header"):
        await servicer.UploadBody(messages(*first), None)


async def test_a_second_header_is_refused(servicer):
    header = pb.UploadBodyRequest(header=pb.UploadBodyHeader(digest=sha256_digest(b""), size_bytes=0))
    with pytest.raises(InvalidInputError, match="header"):
        await servicer.UploadBody(messages(header, header), None)


# --- streams


async def collect(stack, servicer, *requests):
    results = []
    async with asyncio.timeout(BOUND_SECONDS):
        async for response in servicer.StreamExecutions(messages(*requests), None):
            results.extend(response.results)
    return {one.request_id: one for one in results}


async def finishing(stack, stop):
    done = 0
    while not stop.is_set():
        while done < len(stack.placer.committed):
            stack.placer.slots += 1
            await stack.finish(stack.placer.committed[done])
            done += 1
        await asyncio.sleep(0)


async def test_a_stream_pairs_results_by_request_id_and_outlives_refusals(stack, servicer):
    stop = asyncio.Event()
    node = asyncio.ensure_future(finishing(stack, stop))
    results = await collect(
        stack,
        servicer,
        pb.StreamExecutionsRequest(executions=[asked("a"), asked("b", agent="nobody")]),
        pb.StreamExecutionsRequest(executions=[asked("c")]),
    )
    stop.set()
    await node

    assert {key: one.WhichOneof("result") for key, one in results.items()} == {
        "a": "execution",
        "b": "error",
        "c": "execution",
    }
    assert (results["b"].error.reason, results["b"].error.code) == ("NOT_FOUND", 5)
    assert results["b"].error.hint


async def test_a_bug_in_one_request_is_masked_and_ends_no_other(stack, servicer, monkeypatch):
    resolve = stack.agents.resolve

    async def breaks(tenant_id, name):
        if name == "broken":
            raise RuntimeError("secret detail")
        return await resolve(tenant_id, name)

    monkeypatch.setattr(stack.agents, "resolve", breaks)
    stop = asyncio.Event()
    node = asyncio.ensure_future(finishing(stack, stop))
    results = await collect(
        stack,
        servicer,
        pb.StreamExecutionsRequest(executions=[asked("a", agent="broken"), asked("b")]),
    )
    stop.set()
    await node
    assert results["a"].error.reason == "INTERNAL"
    assert "secret" not in results["a"].error.message
    assert results["b"].WhichOneof("result") == "execution"


async def test_a_stream_reads_no_further_than_its_bound(stack, servicer, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_IN_FLIGHT", 2)
    read = []

    async def requests():
        for number in range(5):
            read.append(number)
            yield pb.StreamExecutionsRequest(executions=[asked(f"r{number}")])

    stream = servicer.StreamExecutions(requests(), None)
    first = asyncio.ensure_future(anext(stream))
    await stack.until(lambda: len(stack.placer.committed) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert read == [0, 1, 2]
    await stack.finish(stack.placer.committed[0])
    await first
    await stream.aclose()


async def test_a_caller_that_takes_no_answer_is_read_no_further_than_the_bound(servicer, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_IN_FLIGHT", 2)
    read = []

    async def requests():
        for number in range(50):
            read.append(number)
            yield pb.StreamExecutionsRequest(executions=[asked(f"r{number}", agent="nobody")])

    stream = servicer.StreamExecutions(requests(), None)
    await anext(stream)  # refusals end at once; nothing more is taken
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(read) <= 5
    await stream.aclose()


async def test_a_caller_that_goes_away_ends_its_stream_and_not_its_executions(stack, servicer):
    gone = asyncio.Event()

    async def requests():
        yield pb.StreamExecutionsRequest(executions=[asked("a")])
        await gone.wait()

    stream = servicer.StreamExecutions(requests(), None)
    first = asyncio.ensure_future(anext(stream))
    await stack.until(lambda: stack.placer.committed)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await stream.aclose()

    assert stack.completions.waiting == 0
    finished = await stack.finish(stack.placer.committed[0])
    assert finished.execution.state.is_terminal
